"""Type, clean and shard the ingested objects with Modin into the canonical tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("shard", lambda org, task, options: org.shard(), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
