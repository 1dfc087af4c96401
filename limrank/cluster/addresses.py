"""Whether somebody answers at an address, before a library is given it that would wait for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from limrank.errors import UserError, first_line

PATIENCE_S = 8.0
"""How long whoever lives at an address may take to say so."""

CALL_S = 60.0
"""How long a dashboard may take for what it is asked about jobs."""

_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call that the head of a Ray cluster knows, whether it lets this one in or not."""

Value = TypeVar("Value")


def within(seconds: float, call: Callable[[], Value]) -> Value:
    """What a call gives or raises. It runs in a thread that is left to itself after so long, so
    that a signal ends the wait at once, whatever the call waits for (a name's look-up does not
    know an end of its own).

    Raises:
        TimeoutError: it has not ended in time.
    """
    done: list[tuple[Value | None, BaseException | None]] = []

    def work() -> None:
        try:
            done.append((call(), None))
        except BaseException as error:  # raised below, where it is waited for
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
        head = not address.startswith("ray://")  # else it is one for Ray Client, with other calls
        _check_speaks_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", where, head)


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
        url = f"{address.rstrip('/')}/api/version"
        # The client's own limit is one for each piece of an answer.
        answer = within(PATIENCE_S, lambda: httpx.get(url, timeout=PATIENCE_S, trust_env=False))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise UserError(f"{where}: does not answer as a Ray dashboard: {first_line(error)}") from None
    # One that asks for a token is asked again by Ray, who has it.
    if answer.status_code not in (401, 403) and not _is_version(answer):
        raise UserError(f"{where}: does not answer as a Ray dashboard (status {answer.status_code})")


def _is_version(answer) -> bool:
    try:
        payload = answer.json()
    except ValueError:
        return False
    return answer.status_code == 200 and isinstance(payload, dict) and "ray_version" in payload


def _of_auto() -> tuple[str | None, str]:
    if address := os.environ.get("RAY_ADDRESS"):
        return address.strip(), "RAY_ADDRESS"
    from ray._private import services

    # As Ray finds it: a cluster that runs comes before the file of one that was started last.
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

    otherwise = f"{where}: somebody listens there who does not answer as Ray does"
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
