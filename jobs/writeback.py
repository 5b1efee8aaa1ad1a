"""Bring the predictions into fields of the org's records, show what would be (--dry-run), or restore (--undo RUN).

Killed at any moment and started again it goes on where it was: no row is sent twice, none is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jobs import job

FLAGS = ("dry_run", "undo")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("writeback", lambda org, task, options: org.writeback(task, **options), flags=FLAGS, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
