"""Whether all nodes of a cluster are this machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.cluster.addresses import PATIENCE_S, within

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_BOOT_TIME_S = 60.0
"""How far two readings of one machine's boot time may be apart: it is the clock's time less the time since."""


def is_this_machine(client: JobSubmissionClient) -> bool:
    """Whether every node of a cluster that is alive is this machine, with these files. False where the cluster does not
    say. The dashboard's address does not tell: it may be a tunnel."""
    # Ray's client has the token, and no method for this.
    answer = within(PATIENCE_S, lambda: client._do_request("GET", "/nodes?view=summary"))
    try:
        nodes = answer.json()["data"]["summary"]
        alive = [node for node in nodes if node["raylet"]["state"] == "ALIVE"]
        return bool(alive) and all(map(_is_here, alive))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_here(node: Mapping[str, Any]) -> bool:
    """Whether a node has this machine's name and boot time, and its raylet's socket is a file here."""
    return (
        node["hostname"] == socket.gethostname()
        and abs(node["bootTime"] - _boot_time()) < _BOOT_TIME_S
        and Path(node["raylet"]["rayletSocketName"]).is_socket()
    )


def _boot_time() -> float:
    import psutil

    return psutil.boot_time()
