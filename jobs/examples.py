"""Make a task's as-of rows: train, validation, test and now."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("examples", lambda org, task, options: org.examples(task), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
