"""Sandbox orgs for tests: real servers over TLS, each test with an org of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pulling
import pytest
from sandboxes import Browser
from writing import World

from crmray.salesforce import client as client_module
from crmray.salesforce import sending
from crmray.salesforce.sandbox.load import load_demo
from crmray.salesforce.sandbox.server import Sandbox
from crmray.salesforce.sandbox.store import Store

CUSTOMERS, MONTHS = 100, 24


@pytest.fixture(scope="session")
def sandbox_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of certificates and credentials, made once for all sandboxes."""
    return tmp_path_factory.mktemp("sandbox-keys")


@pytest.fixture(scope="session")
def demo_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo org's database, to be copied."""
    path = tmp_path_factory.mktemp("sandbox-demo") / "org.duckdb"
    with contextlib.closing(Store(path)) as store:
        load_demo(store, customers=CUSTOMERS, months=MONTHS)
    return path


@pytest.fixture(scope="session")
def sandbox_store(demo_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The small demo org, for tests that only read."""
    with contextlib.closing(_copy(demo_database, tmp_path_factory.mktemp("sandbox-read"))) as store:
        yield store


@pytest.fixture
def sandbox(demo_database: Path, sandbox_keys: Path, tmp_path: Path) -> Iterator[Sandbox]:
    """A server over a copy of the small demo org; `sandbox.store` is the test's to change."""
    with contextlib.closing(_copy(demo_database, tmp_path)) as store, Sandbox(store, folder=sandbox_keys) as server:
        yield server


@pytest.fixture
def empty_sandbox(sandbox_keys: Path) -> Iterator[Sandbox]:
    """A server over a new org: the standard objects, no rows but one User. Pages of 10 rows."""
    with contextlib.closing(Store()) as store, Sandbox(store, folder=sandbox_keys, page_rows=10) as server:
        yield server


@pytest.fixture
def call(empty_sandbox: Sandbox) -> Browser:
    """Calls to the empty sandbox, with a token."""
    return Browser(empty_sandbox)


@pytest.fixture
def small_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small org has many slices and pages; see pulling.py."""
    for (module, name), value in pulling.SMALL.items():
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def world(sandbox_keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """An org with accounts that predictions are written to, in chunks of 64 rows; see writing.py."""
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(sending, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(sending, "CHUNK_ROWS", 64)
    store = Store()
    with Sandbox(store, folder=sandbox_keys) as server:
        yield World(server, tmp_path)
    store.close()


def _copy(database: Path, folder: Path) -> Store:
    return Store(shutil.copy(database, folder / "copy.duckdb"))
