"""Whether somebody answers at an address, before a library is given it that would wait for ever."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from limrank.errors import UserError, first_line

PATIENCE_S = 8.0
"""How long whoever lives at an address may take to say so."""


def check_ray(address: str | None = None) -> None:
    """Look whether a Ray cluster answers where ``ray.init(address="auto")`` would go.

    Args:
        address: ``host:port`` of a cluster's head; None: as RAY_ADDRESS says, else the cluster that
            was last started on this machine. Where neither names one there is nothing to look at.

    Raises:
        UserError: it is no address, nobody answers there, or not as Ray does.
    """
    address, told_by = (address, "--address") if address else _of_auto()
    if address in (None, "", "auto", "local"):
        return
    where = f"{told_by} {address}"
    plain = address.removeprefix("ray://")
    host, port = _host_and_port(plain, where, "HOST:PORT, as `ray start` prints it")
    _connect(host, port, where, "no Ray cluster is there")
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
        _check_speaks_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", where)


def check_dashboard(address: str) -> None:
    """Look whether the dashboard of a Ray cluster answers at a URL.

    Raises:
        UserError: it is no URL of one, nobody answers there, or not as a dashboard does.
    """
    import httpx

    where = f"--address {address}"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or any(each.isspace() for each in address):
        raise UserError(f"{where}: is no URL of a dashboard: take http://HOST:8265")
    _connect(host, port, where, "no Ray dashboard is there")
    try:
        answer = httpx.get(f"{address.rstrip('/')}/api/version", timeout=PATIENCE_S, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{where}: does not answer as a Ray dashboard: {first_line(error)}") from None
    # One that asks for a token is asked again by Ray, who has it.
    if answer.status_code not in (401, 403) and not _is_version(answer):
        raise UserError(f"{where}: does not answer as a Ray dashboard (status {answer.status_code})")


def _is_version(answer) -> bool:
    try:
        told = answer.json()
    except ValueError:
        return False
    return answer.status_code == 200 and isinstance(told, dict) and "ray_version" in told


def _of_auto() -> tuple[str | None, str]:
    if address := os.environ.get("RAY_ADDRESS"):
        return address.strip(), "RAY_ADDRESS"
    last = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        return last.read_text(encoding="utf-8").strip(), "the cluster that was last started here,"
    except (OSError, ValueError):
        return None, ""


def _host_and_port(text: str, where: str, shape: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    known = colon and host and port.isascii() and port.isdigit() and int(port) < 65536
    if not known or any(each.isspace() or each in "/@?#" for each in host):
        raise UserError(f"{where}: is no address: take {shape}")
    return host, int(port)


def _connect(host: str, port: int, where: str, otherwise: str) -> None:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S / 2).close()
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{where}: {otherwise}: {reason}") from None


def _check_speaks_grpc(address: str, where: str) -> None:
    import grpc

    channel = grpc.insecure_channel(address)
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
    except grpc.FutureTimeoutError:
        raise UserError(f"{where}: somebody listens there who does not answer as Ray does") from None
    finally:
        channel.close()
