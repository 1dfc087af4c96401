"""Whether a cluster's nodes are this machine, by what its dashboard says of them."""

import contextlib
import socket
from types import SimpleNamespace

import psutil
import pytest

from limrank.cluster import machines
from limrank.cluster.machines import is_this_machine


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A node of this machine, as a dashboard lists it."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as raylet:
        raylet.bind("raylet")
        yield {
            "hostname": socket.gethostname(),
            "bootTime": psutil.boot_time(),
            "raylet": {"state": "ALIVE", "rayletSocketName": "raylet"},
        }


def client(*answers):
    """A client whose dashboard lists the nodes of each answer in turn, and those of the last from then on."""
    left = list(answers)

    def request(method, path):
        nodes = left.pop(0) if len(left) > 1 else left[0]
        return SimpleNamespace(json=lambda: {"data": {"summary": nodes}})

    return SimpleNamespace(_do_request=request)


def test_nodes_of_this_machine(here):
    assert is_this_machine(client([here, here]))


@pytest.mark.parametrize(
    "other",
    [
        {"hostname": "another"},
        {"bootTime": psutil.boot_time() - 3600},
        {"raylet": {"state": "ALIVE", "rayletSocketName": "/nowhere/raylet"}},
    ],
    ids=["name", "boot time", "files"],
)
def test_one_node_elsewhere(here, other):
    assert not is_this_machine(client([here, here | other]))


def test_a_node_that_died_elsewhere_does_not_count(here):
    dead = {"raylet": {"state": "DEAD", "rayletSocketName": "/nowhere/raylet"}}
    assert is_this_machine(client([here, dead]))
    assert not is_this_machine(client([dead]))


def test_a_node_that_has_just_started_is_waited_for(here, monkeypatch):
    monkeypatch.setattr(machines.time, "sleep", lambda seconds: None)
    fresh = {"raylet": here["raylet"]}
    assert is_this_machine(client([fresh], [here]))
    monkeypatch.setattr(machines, "_REPORTED_S", 0.0)
    assert not is_this_machine(client([fresh]))
