"""The serve job: a reranker behind HTTP, on the Ray that this process is connected to."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any

from limrank import cluster, signals
from limrank.cluster.resources import reserve
from limrank.cluster.waiting import wait_for_nodes
from limrank.config import ServeJob
from limrank.engines import EngineSource, EngineSpec, check_scorer
from limrank.errors import EngineError, UserError, first_line
from limrank.models import served_name
from limrank.printable import printable
from limrank.progress import Progress
from limrank.result import JobResult
from limrank.scoring import prompt_template
from limrank.scoring.calibration import read_calibration
from limrank.serving.access import Access
from limrank.serving.access_log import check_path
from limrank.serving.deploying import DRAIN_S, Server, shut_down, silence_controller_retries
from limrank.serving.hosts import is_loopback
from limrank.serving.key_sources import keys_of_file
from limrank.serving.keys import KeyRing
from limrank.serving.proxy import controller_options
from limrank.serving.settings import requests_per_replica, target_pairs

ROUTES = (
    "POST /v1/rerank",
    "POST /rerank",
    "POST /v2/rerank",
    "POST /v1/score",
    "POST /score",
    "GET /v1/models",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
)

_REACHABLE_S = 30.0


def plan(config: ServeJob, *, insecure: bool = True) -> dict[str, Any]:
    """What :func:`run` would start. Nothing is started. ``first_prompt`` is the template.

    Args:
        insecure: False refuses an address that needs keys and has none, as :func:`run` does.

    Raises:
        UserError: the scoring cannot be served, there is no such prompt, or :meth:`Access.of` refuses the keys.
    """
    check_config(config)
    access = Access.of(config.serving, insecure=insecure)
    workers = config.workers
    gpus = workers.gpus if workers.gpus is not None else f"{workers.tensor_parallel} where there are GPUs"
    return {
        "model": served_name(config.model.id),
        "url": _url(config.serving.host, config.serving.port),
        "routes": list(ROUTES),
        "replicas": workers.replicas,
        "pairs_per_replica": target_pairs(config) if workers.min_replicas < workers.max_replicas else None,
        "spread_over_pairs": config.serving.spread_pairs,
        "drain_s": DRAIN_S,
        "resources_per_replica": {"cpus": workers.cpus, "gpus": gpus},
        "scoring": {"mode": config.scoring.mode, "max_think_tokens": config.scoring.think_tokens},
        "limits": {
            **access.limits.plan(),
            "requests_per_replica": requests_per_replica(config),
            "waiting_requests": config.serving.max_queued_requests,
            "pairs": config.serving.max_queued_pairs,
        },
        "keys": access.keys.names or "none: anyone who reaches the address may use the server",
        "pairs_per_minute_and_key": access.pairs_per_minute,
        "first_prompt": prompt_template(config.scoring),
    }


@contextmanager
def serving(
    config: ServeJob, source: EngineSource | None = None, keys: KeyRing | None = None, *, insecure: bool = False
) -> Iterator[str]:
    """:func:`running`, for whoever needs the URL only."""
    with running(config, source, keys, insecure=insecure) as server:
        yield server.url


@contextmanager
def running(
    config: ServeJob,
    source: EngineSource | None = None,
    keys: KeyRing | None = None,
    *,
    insecure: bool = False,
    progress: Progress | None = None,
) -> Iterator[Server]:
    """Serve while the ``with`` block runs. It gives the server once the engines are up. At the end of the block, running
    requests are answered first.

    Ray must be initialised, and Serve must not run on it: on exit Serve is shut down. The HTTP
    server is on the cluster's head node.

    Args:
        source: opens a replica's engine; None: an engine of the config.
        keys: the API keys; None: those of the environment and of ``serving.keys_file``.
        insecure: an address that is not loopback needs no keys.
        progress: says which nodes are waited for, where an autoscaler starts them.

    Raises:
        UserError: the keys are faulty or missing, the address is taken, the cluster cannot hold the replicas, or an
            engine refuses its settings.
        EngineError: an engine did not start.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayError

    if not ray.is_initialized():
        raise RuntimeError("limrank.serving.job needs a Ray that its caller has connected to")
    check_config(config)
    access = Access.of(config.serving, keys, insecure=insecure)
    source = source or EngineSpec(config.model, config.engine, config.workers.tensor_parallel)
    wanted = reserve([source], config.workers, config.workers.min_replicas)
    host, port = config.serving.host, _free_port(config.serving.host, config.serving.port)
    if serve.status().proxies:
        raise UserError("Ray Serve already runs on this cluster, and its address cannot be changed: stop it first")
    if not access.keys.names and not is_loopback(host):
        print(
            f"warning: serving.host {printable(host)}: anyone who reaches it may use it; no key is asked for",
            file=sys.stderr,
        )
    wait_for_nodes(wanted, source.startup_timeout_s, config.workers.min_replicas, progress=progress)
    silence_controller_retries()
    server = Server(config, access, insecure, _url(host, port))
    quiet = {"log_level": "WARNING"}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config=quiet,
                controller_options=controller_options(access, server.secret),
            )
        except (RayError, TimeoutError) as error:
            raise EngineError(f"the HTTP server did not come up on {host}:{port}: {first_line(error)}") from error
        server.start(source, wanted)
        _wait_until_reachable(server.url)
        try:
            yield server
        finally:
            with signals.deferred():
                server.drain()
    finally:
        with signals.deferred():
            shut_down()


def run(
    config: ServeJob,
    *,
    address: str,
    progress: Progress,
    overwrite: bool = False,
    insecure: bool = False,
    reread: Callable[[], ServeJob] | None = None,
) -> JobResult:
    """Serve until SIGINT or SIGTERM, then answer what runs, stop and return. A server writes no rows, so ``overwrite``
    has no effect.

    Args:
        reread: gives the recipe as it is now. SIGHUP has the server serve that one, unless it says that the server's
            terminal was closed: that ends it.

    Raises:
        UserError, EngineError: see :func:`serving`.
    """
    check_config(config)
    Access.of(config.serving, insecure=insecure)  # before Ray is started
    name = served_name(config.model.id)
    terminal_is_gone = _terminal_watch()
    with (
        suppress(KeyboardInterrupt),
        signals.stopping(),
        cluster.connect(address),
        running(config, insecure=insecure, progress=progress) as server,
    ):
        _report_keys_on_hangup(config.serving.keys_file)
        hangups = _hangups() if reread else SimpleQueue()
        print(printable(f"serving {name} at {server.url}"), flush=True)
        while hangups.get() and not terminal_is_gone():
            _say(_updated(server, reread))
    return JobResult(messages=[f"{name} is no longer served"])


def _terminal_watch() -> Callable[[], bool]:
    """Whether the terminal is gone on which this process was started. ``nohup`` and a service have none."""
    on_terminal = os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return lambda: on_terminal and not os.isatty(0)


def _hangups() -> SimpleQueue[int]:
    """Gets an item for each SIGHUP, besides what is done on one already."""
    received: SimpleQueue[int] = SimpleQueue()  # one may put into it in a signal's handler
    if threading.current_thread() is not threading.main_thread():
        return received
    before = signal.getsignal(signal.SIGHUP)

    def note(number: int, frame: Any) -> None:
        if callable(before):
            before(number, frame)
        received.put(number)

    signal.signal(signal.SIGHUP, note)
    return received


def _updated(server: Server, reread: Callable[[], ServeJob]) -> str:
    """Serve the recipe as it is now; what came of it."""
    try:
        config = reread()
        check_config(config)
        changed = server.update(config)
    except (UserError, EngineError) as error:
        return f"warning: the recipe is refused, and the old one is still served: {first_line(error)}"
    return f"updated: serving {served_name(config.model.id)}" if changed else "the recipe has not changed"


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(printable(line), file=sys.stderr, flush=True)


def check_config(config: ServeJob) -> None:
    """Raises UserError for a recipe that cannot be served, before anything is started."""
    if config.scoring.mode == "none":
        raise UserError("scoring.mode none gives no scores to serve: take direct, think or budget")
    prompt_template(config.scoring)
    read_calibration(config.scoring.calibration)
    check_scorer(config.model, config.engine, config.scoring.labels)
    if config.serving.access_log is not None:
        check_path(config.serving.access_log)


def _report_keys_on_hangup(file: str | None) -> None:
    """Have SIGHUP check the keys file and say what it holds, instead of ending the process. The proxy and the API's
    replica notice a changed file themselves, within a second of the next request."""
    if file is None or threading.current_thread() is not threading.main_thread():
        return

    def report(number: int, frame: Any) -> None:
        try:
            found = f"{len(keys_of_file(file))} keys in {file}"
        except UserError as error:
            found = f"warning: the keys stay as they are: {error}"
        with suppress(OSError):  # the terminal may be gone
            print(printable(found), file=sys.stderr, flush=True)

    signal.signal(signal.SIGHUP, report)


def _wait_until_reachable(url: str) -> None:
    """Wait until the proxy routes to the application, a moment after it runs."""
    import httpx

    deadline = time.monotonic() + _REACHABLE_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise EngineError(f"the server runs, but {url}/readyz did not say so within {_REACHABLE_S:g} s")
        time.sleep(0.1)


def _free_port(host: str, port: int) -> int:
    """The port to listen on; a free one for 0.

    Raises:
        UserError: the port is taken or not permitted. Serve itself would silently share a port with
            another Serve.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Closed connections in TIME_WAIT do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise UserError(f"serving.host {host} is not an address of this machine: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"serving.port {port} is in use on {host}: take another, or 0 for a free one") from None
            raise UserError(f"serving.host {host}, serving.port {port}: {os.strerror(error.errno)}") from error
        return probe.getsockname()[1]


def _url(host: str, port: int) -> str:
    # The URL of a server on all addresses has one that works on this machine.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
