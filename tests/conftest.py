"""Tests leave the user's home alone: tokens, keys and the local head's state go to a folder of the session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Arrays in tests are small: threads would wait for each other longer than they compute. Set before numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("CRMRAY_HOME", str(folder / "crmray"))
    patch.setenv("CRMRAY_KEYS", str(folder / "keys.json"))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "CRMRAY_ORG"):
        patch.delenv(name, raising=False)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    yield
    patch.undo()
