"""Bring the source's objects into the lake as they are, reconciled."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("ingest", lambda org, task, options: org.ingest(), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
