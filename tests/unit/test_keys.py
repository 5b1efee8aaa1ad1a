"""Bearer keys: shown once, kept as hashes in a 0600 file, revocable while replicas run."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from crmray.errors import AuthError
from crmray.keys import KeyFile


def test_a_key_opens_until_it_is_revoked(tmp_path):
    path = tmp_path / "keys.json"
    key = KeyFile(path).add("flow")
    replica = KeyFile(path)
    assert replica.check(key) is None  # nothing read yet: closed
    assert replica.refresh() == 1
    assert replica.check(key) == "flow"
    assert replica.check(key[:-1]) is None
    assert replica.check("") is None
    assert replica.check("\ud800") is None
    KeyFile(path).revoke("flow")
    assert replica.refresh() == 0
    assert replica.check(key) is None


def test_the_file_holds_the_hash_alone_and_is_private(tmp_path):
    path = tmp_path / "keys.json"
    key = KeyFile(path).add("flow")
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in path.read_text()
    assert json.loads(path.read_text())["keys"][0]["sha256"] == hashlib.sha256(key.encode()).hexdigest()


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "keys.json"
    KeyFile(path).add("flow")
    os.chmod(path, 0o644)
    with pytest.raises(AuthError, match="got mode 0644, expected 0600"):
        KeyFile(path).refresh()


def test_mistakes_are_named(tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    keys.add("flow")
    with pytest.raises(AuthError, match="exists already"):
        keys.add("flow")
    with pytest.raises(AuthError, match=r"expected one of .*: flow"):
        keys.revoke("apex")
    with pytest.raises(AuthError, match="got key name 'a b'"):
        keys.add("a b")
    (tmp_path / "keys.json").write_text("[]")
    with pytest.raises(AuthError, match="not a key file"):
        keys.refresh()


def test_keys_added_at_the_same_time_are_all_kept(tmp_path):
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: KeyFile(path).add(f"k{number}"), range(24)))
    assert KeyFile(path).refresh() == 24
