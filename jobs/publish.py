"""Compare the current bundle with the champion; promote it or refuse with the reason; or go back with --rollback.

After a change of champion it waits until every replica on this cluster answers with the new version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crmray.cluster import connect
from crmray.errors import ConfigError
from crmray.head import local_head
from jobs import job
from serve.fleet import wait_for

if TYPE_CHECKING:
    from crmray.org import OpenOrg

FLAGS = ("version", "force", "rollback")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("publish", publish, flags=FLAGS, argv=argv)


def publish(org: OpenOrg, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """The ledger entry or the refusal, with the number of replicas that answer with the new champion."""
    rollback = options.pop("rollback", False)
    if rollback and options:
        raise ConfigError(f"got --rollback with --{', --'.join(options)}, expected --rollback alone")
    entry = org.rollback(task) if rollback else org.publish(task, **options)
    if not entry["promoted"] or not (os.environ.get("RAY_ADDRESS") or local_head()):
        return entry
    connect()
    return {**entry, "replicas": wait_for(task, entry["version"])}


if __name__ == "__main__":
    sys.exit(main())
