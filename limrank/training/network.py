"""Where the workers of a training listen for each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass
class NodeAddresses(TorchConfig):
    """A process group whose workers reach each other at the addresses of their nodes."""

    @property
    def backend_cls(self) -> type:
        base: Any = super().backend_cls

        class Backend(base):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                worker_group.execute(listen_at_node_address)
                super().on_start(worker_group, backend_config)

        return Backend


def listen_at_node_address() -> None:
    """Have Gloo listen on the interface that has the node's address, unless GLOO_SOCKET_IFNAME is set.

    By itself Gloo takes the address of the host's name. On Debian and in many images that is a loopback address, which
    no other node can reach.
    """
    import psutil
    import ray

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            os.environ.setdefault(INTERFACE, name)
