"""Where the processes of a server listen."""

from __future__ import annotations

from typing import Any


def listen_on_node_address() -> None:
    """In a replica's process, before Serve starts what other replicas ask it through: let that
    listen on the address of its node alone.

    Ray Serve 2.60 listens on every interface there, takes pickles, and asks nobody who they are;
    it has no setting for it.
    """
    import ray
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address

    def on_node_address(server: Any, wanted: str) -> int:
        return add_port(server, f"{host}:{wanted.rpartition(':')[2]}")

    replica.add_port_to_grpc_server = on_node_address
