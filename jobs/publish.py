"""Compare the current bundle with the champion; promote it or refuse with the reason; or go back with --rollback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from crmray.errors import ConfigError
from jobs import job

if TYPE_CHECKING:
    from crmray.org import OpenOrg

FLAGS = ("version", "force", "rollback")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    return job("publish", _publish, flags=FLAGS, argv=argv)


def _publish(org: OpenOrg, task: str, options: dict[str, Any]) -> dict[str, Any]:
    if not options.pop("rollback", False):
        return org.publish(task, **options)
    if options:
        raise ConfigError(f"got --rollback with --{', --'.join(options)}, expected --rollback alone")
    return org.rollback(task)


if __name__ == "__main__":
    sys.exit(main())
