"""Search the grids of a task's candidates with Ray Tune, refit the winner over all workers and write a bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job

FLAGS = ("candidates", "overrides", "num_workers", "concurrency", "scheduler", "search")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("tune", lambda org, task, options: org.tune(task, **options), flags=FLAGS, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
