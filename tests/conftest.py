"""Tests leave the user's home alone: tokens, keys and the local head's state go to a folder of the session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Arrays in tests are small: threads would wait for each other longer than they compute. Set before numpy is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


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


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """A Ray of two CPUs for the tests of one file, and its folder, where the logs are."""
    import ray

    from crmray import cluster

    folder = tempfile.mkdtemp(prefix="ry", dir="/tmp")  # short: a socket's path may have 107 bytes
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_SERVE_LOG_TO_STDERR", "0")
    patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # not 5: the machine may be busy
    patch.setenv("PYTHONPATH", f"{REPOSITORY}:{REPOSITORY / 'tests' / 'ray'}")  # workers import the tests' tasks
    cluster.connect("local", num_cpus=2, object_store_memory=200 << 20, _temp_dir=folder)
    yield Path(folder)
    ray.shutdown()
    patch.undo()
    shutil.rmtree(folder, ignore_errors=True)
