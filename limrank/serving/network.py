"""The address on which the processes of a server listen."""

from __future__ import annotations

from typing import Any


def listen_on_node_address() -> None:
    """Make a replica's gRPC server listen on its node's address only. Call it in the replica's
    process, before Serve starts that server.

    Ray Serve 2.60 lets it listen on every interface, accepts pickles there without authentication,
    and has no setting for it.
    """
    import ray
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    address = ray.util.get_node_ip_address()
    host = f"[{address}]" if ":" in address else address

    def on_node_address(server: Any, wanted: str) -> int:
        return add_port(server, f"{host}:{wanted.rpartition(':')[2]}")

    replica.add_port_to_grpc_server = on_node_address
