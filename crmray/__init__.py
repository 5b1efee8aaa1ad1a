"""crmray: three years of CRM history in, tuned, explained and served models out, on a Ray cluster.

import crmray
org = crmray.open("org.yaml")
org.train("churn")
org.bundle("churn").predict(rows)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from crmray.org import OpenOrg

__version__ = "0.1.0"


def open(path: str | Path) -> OpenOrg:
    """Open the organisation that an org file describes. Raises ConfigError for a wrong file; starts nothing."""
    from crmray.org import OpenOrg

    return OpenOrg.load(path)
