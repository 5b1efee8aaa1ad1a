"""The endpoints of all tasks, started once for the files that ask them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from endpoints import Service, running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("lake")) as found:
        yield found
