"""Joining a cluster that is not there: one clear error at once. No Ray is started."""

import socket

import pytest

from crmray import cluster
from crmray.errors import ClusterError


def test_a_cluster_that_does_not_answer_is_said_at_once(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ClusterError, match="no Ray head answers at 127.0.0.1"):
            cluster.connect()


def test_an_address_without_a_port_is_said():
    with pytest.raises(ClusterError, match="got cluster address 'somewhere', expected host:port"):
        cluster.connect("somewhere")
