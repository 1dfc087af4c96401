"""Checks that an address answers, before a library would wait for it for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from limrank.errors import UserError, first_line

PATIENCE_S = 8.0
"""Time limit for the first answer at an address."""

CALL_S = 60.0
"""Time limit for a dashboard's answers about jobs."""

_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A gRPC method of a Ray cluster's head. It answers it with or without a valid token."""

Value = TypeVar("Value")


def within(seconds: float, call: Callable[[], Value]) -> Value:
    """The result or the error of a call that runs in a thread.

    A signal ends the wait at once, whatever the call waits for. A call that is too slow goes on in its
    thread: a name's look-up, for example, has no time limit of its own.

    Raises:
        TimeoutError: the call has not ended within ``seconds``.
    """
    done: list[tuple[Value | None, BaseException | None]] = []

    def work() -> None:
        try:
            done.append((call(), None))
        except BaseException as error:  # raised below, in the waiting thread
            done.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    value, error = done[0]
    if error is not None:
        raise error
    return value


def check_ray(address: str | None = None) -> None:
    """Check that a Ray cluster answers where ``ray.init(address="auto")`` would connect.

    Args:
        address: ``host:port`` of a cluster's head; None: RAY_ADDRESS, else the cluster that was last
            started on this machine. Without either, nothing is checked.

    Raises:
        UserError: it is not an address, nothing answers there, or it is not Ray.
    """
    address, source = (address, "--address") if address else _auto_address()
    if address in (None, "", "auto", "local"):
        return
    where = f"{source} {address}"
    plain = address.removeprefix("ray://")
    host, port = _host_and_port(plain, where, "HOST:PORT, as `ray start` prints it")
    _connect(host, port, where, "no Ray cluster is there")
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
        head = not address.startswith("ray://")  # Ray Client has other methods
        _check_speaks_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", where, head)


def check_dashboard(address: str) -> None:
    """Check that the dashboard of a Ray cluster answers at a URL.

    Raises:
        UserError: it is not a URL of a dashboard, nothing answers there, or it is not a dashboard.
    """
    import httpx

    where = f"--address {address}"
    try:
        url = urlsplit(address)
        host, port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        host = None
    if not host or url.scheme not in ("http", "https") or any(each.isspace() for each in address):
        raise UserError(f"{where}: is no URL of a dashboard: take http://HOST:8265")
    _connect(host, port, where, "no Ray dashboard is there")
    try:
        version = f"{address.rstrip('/')}/api/version"
        # httpx's time limit is for each read, not for the whole answer.
        answer = within(PATIENCE_S, lambda: httpx.get(version, timeout=PATIENCE_S, trust_env=False))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise UserError(f"{where}: does not answer as a Ray dashboard: {first_line(error)}") from None
    # A dashboard with a token answers 401 or 403 here; Ray itself sends the token.
    if answer.status_code not in (401, 403) and not _is_version(answer):
        raise UserError(f"{where}: does not answer as a Ray dashboard (status {answer.status_code})")


def _is_version(answer) -> bool:
    try:
        payload = answer.json()
    except ValueError:
        return False
    return answer.status_code == 200 and isinstance(payload, dict) and "ray_version" in payload


def _auto_address() -> tuple[str | None, str]:
    if address := os.environ.get("RAY_ADDRESS"):
        return address.strip(), "RAY_ADDRESS"
    from ray._private import services

    # Ray's own order: a running cluster, then the file of the one that was started last.
    services.find_gcs_addresses.cache_clear()
    try:
        return services.get_ray_address_from_environment("auto", None), "the cluster that was last started here,"
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
        within(PATIENCE_S / 2, lambda: socket.create_connection((host, port), timeout=PATIENCE_S / 2).close())
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{where}: {otherwise}: {reason}") from None


def _check_speaks_grpc(address: str, where: str, head: bool) -> None:
    import grpc

    otherwise = f"{where}: something listens there that does not answer as Ray does"
    channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
        if head:
            channel.unary_unary(_ALIVE)(b"", timeout=PATIENCE_S / 2)
    except grpc.FutureTimeoutError:
        raise UserError(otherwise) from None
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise UserError(f"{otherwise} ({error.code().name})") from None
    finally:
        channel.close()
