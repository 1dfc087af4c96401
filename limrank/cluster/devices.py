"""GPUs of this machine, divided among the nodes of a cluster on it."""

from __future__ import annotations

import os
import shutil
import subprocess

from limrank.errors import UserError

_TELLS_S = 30.0


def visible_devices(nodes: int, gpus: int | None) -> list[str] | None:
    """``CUDA_VISIBLE_DEVICES`` of each node, so that no two nodes have a GPU in common.

    Args:
        gpus: GPUs of each node; None: they are not divided.

    Returns:
        None where nothing is divided: on a machine without GPUs, ``gpus`` are logical only.

    Raises:
        UserError: the machine has fewer.
    """
    found = _devices()
    if gpus is None or not found:
        return None
    if nodes * gpus > len(found):
        raise UserError(f"--gpus {gpus} on {nodes} nodes: this machine has {len(found)} GPUs")
    return [",".join(found[place * gpus : (place + 1) * gpus]) for place in range(nodes)]


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TELLS_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []
