"""GPUs divided among the nodes of one machine."""

import pytest

from limrank.cluster.devices import visible_devices
from limrank.errors import UserError


@pytest.mark.parametrize(
    ("visible", "nodes", "gpus", "expected"),
    [
        ("0,1,2,3", 2, 2, ["0,1", "2,3"]),
        ("3, 5,7", 3, 1, ["3", "5", "7"]),
        ("0", 2, 0, ["", ""]),
        ("0,1", 2, None, None),
        ("", 2, 4, None),  # logical ones
    ],
)
def test_no_two_nodes_share_one(monkeypatch, visible, nodes, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices(nodes, gpus) == expected


def test_more_than_there_are_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UserError, match="--gpus 2 on 2 nodes: this machine has 3 GPUs"):
        visible_devices(2, 2)


def test_without_a_variable_nvidia_smi_tells(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices(1, 1) is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0; echo 1\n")
    program.chmod(0o755)
    assert visible_devices(2, 1) == ["0", "1"]
