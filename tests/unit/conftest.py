"""Fixtures that several files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def org_file(tmp_path: Path) -> Path:
    path = tmp_path / "org.yaml"
    path.write_text("name: acme\nstorage: lake\nsource: {kind: demo, customers: 200}\ntasks: {churn: {}}\n")
    return path
