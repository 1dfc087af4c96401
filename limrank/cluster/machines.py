"""Whether all nodes of a cluster are this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.cluster.addresses import PATIENCE_S, within

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_BOOT_TIME_S = 60.0
"""How far two readings of one machine's boot time may be apart: it is the clock's time less the time since."""

_REPORTED_S = 10.0
"""Time in which a node that has just started tells the dashboard its name."""


def is_this_machine(client: JobSubmissionClient) -> bool:
    """Whether every node of a cluster that is alive is this machine, with these files. False where the cluster does not
    say. The dashboard's address does not tell: it may be a tunnel.

    Raises:
        Exception: one of :data:`~limrank.cluster.dashboard.NO_ANSWER`.
    """
    give_up = time.monotonic() + _REPORTED_S
    while True:
        nodes = _alive(client)
        if all(node.keys() >= _REPORTED for node in nodes) or time.monotonic() >= give_up:
            return bool(nodes) and all(map(_is_here, nodes))
        time.sleep(0.5)


_REPORTED = {"hostname", "bootTime"}


def _alive(client: JobSubmissionClient) -> list[dict[str, Any]]:
    # Ray's client has the token, and no method for this.
    answer = within(PATIENCE_S, lambda: client._do_request("GET", "/nodes?view=summary"))
    return [node for node in answer.json()["data"]["summary"] if node["raylet"]["state"] == "ALIVE"]


def _is_here(node: Mapping[str, Any]) -> bool:
    """Whether a node has this machine's name and boot time, and its raylet's socket is a file here."""
    import psutil

    return (
        node.get("hostname") == socket.gethostname()
        and abs(node.get("bootTime", 0) - psutil.boot_time()) < _BOOT_TIME_S
        and Path(node["raylet"]["rayletSocketName"]).is_socket()
    )
