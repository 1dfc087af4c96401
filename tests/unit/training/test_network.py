"""Which interface the workers of a training listen on."""

import os
import socket
from types import SimpleNamespace

import psutil
import pytest
import ray

from limrank.training.network import INTERFACE, NodeAddresses, listen_at_node_address

INTERFACES = {
    "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
    "eth0": [SimpleNamespace(family=socket.AF_INET, address="10.0.0.7")],
    "ib0": [
        SimpleNamespace(family=socket.AF_INET, address="10.1.0.7"),
        SimpleNamespace(family=socket.AF_INET6, address="fe80::7%ib0"),
    ],
}


@pytest.fixture(autouse=True)
def node(monkeypatch):
    """A machine with three interfaces, and a function that says which address its Ray node has."""
    monkeypatch.delenv(INTERFACE, raising=False)
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: INTERFACES)
    yield lambda address: monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: address)
    os.environ.pop(INTERFACE, None)


@pytest.mark.parametrize(
    ("address", "interface"),
    [("10.0.0.7", "eth0"), ("10.1.0.7", "ib0"), ("fe80::7", "ib0"), ("127.0.0.1", "lo"), ("10.9.9.9", None)],
)
def test_workers_listen_where_the_node_s_address_is(node, address, interface):
    node(address)
    listen_at_node_address()
    assert os.environ.get(INTERFACE) == interface


def test_an_interface_that_the_user_chose_stays(node, monkeypatch):
    monkeypatch.setenv(INTERFACE, "ib0")
    node("10.0.0.7")
    listen_at_node_address()
    assert os.environ[INTERFACE] == "ib0"


def test_every_worker_is_told_before_the_process_group_starts(monkeypatch):
    config = NodeAddresses()
    happened = []
    group = SimpleNamespace(execute=lambda function: happened.append(function))
    monkeypatch.setattr(config.backend_cls.__mro__[1], "on_start", lambda *_: happened.append("process group"))
    config.backend_cls().on_start(group, config)
    assert happened == [listen_at_node_address, "process group"]
