"""Compare the current bundle with the champion; promote it or refuse with the reason; or go back with --rollback.

After a change of champion it ends when every replica on this cluster answers with the new version.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import job

if TYPE_CHECKING:
    from crmray.org import OpenOrg

FLAGS = ("version", "force", "rollback")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("publish", publish, flags=FLAGS, argv=argv)


def publish(org: OpenOrg, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The ledger entry or the refusal, with the number of replicas that answer with the new champion."""
    return org.rollback(task) if options.pop("rollback", False) else org.publish(task, **options)


if __name__ == "__main__":
    sys.exit(main())
