"""What a node tries of storage and ports. What it says of itself is checked on a real cluster."""

import socket

import pytest

from limrank.diagnostics.probe import Probe


def test_storage_is_written_seen_and_left_as_it_was(tmp_path):
    node, root = Probe(), str(tmp_path)
    assert node.store(root, "mark") == ""
    assert (tmp_path / "mark").is_file()
    assert node.unseen(root, ["mark", "of-another-node"]) == ["of-another-node"]
    node.remove(root, ["mark", "of-another-node"])
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    assert Probe().store(str(tmp_path / "misspelt"), "mark") == "there is no such directory"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_says_why():
    # /proc takes no file from anybody, root included.
    assert Probe().store("/proc", "mark") == "No such file or directory"


@pytest.mark.parametrize("root", ["nosuch://bucket/runs", "s3:///"])
def test_a_uri_of_no_store_is_a_reason(root):
    assert Probe().store(root, "mark") != ""


def test_ports_that_accept_no_connection_are_named():
    with socket.socket() as listening, socket.socket() as bound:
        for each in (listening, bound):
            each.bind(("127.0.0.1", 0))
        listening.listen()
        places = [
            ("127.0.0.1", listening.getsockname()[1], "the head"),
            ("127.0.0.1", bound.getsockname()[1], "a raylet"),
        ]
        [failed] = Probe().unreachable(places)
    assert failed.startswith("a raylet at 127.0.0.1:") and "refused" in failed
