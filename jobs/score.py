"""Predict for all current rows of a task with the champion."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("score", lambda org, task, options: org.score(task), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
