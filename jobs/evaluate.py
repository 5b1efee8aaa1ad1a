"""Write the report of a task's champion on the current test rows; without a task the page that compares all tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job

FLAGS = ("version",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("evaluate", lambda org, task, options: org.evaluate(task, **options), flags=FLAGS, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
