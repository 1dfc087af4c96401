"""A Ray cluster on this machine: real raylets, with ports, a directory and a token of their own.

:func:`local_cluster` has one for a ``with`` block, :mod:`limrank.cluster.standing` one that stays. Other Ray clusters
on this machine are not touched (``ray stop`` would end them all).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limrank.cluster.connection import LOOPBACK_SWITCH, MIN_LOGICAL_CPUS
from limrank.cluster.devices import visible_devices
from limrank.cluster.processes import MARK, Identity, end
from limrank.cluster.state import TOKEN
from limrank.errors import EngineError

START_TIMEOUT_S = 180.0

FOLDER_PREFIX = "lr-"
"""The path is short: Ray's sockets lie below it, and a socket's path has about 100 characters."""

_ANSWER_S = 10.0
_ENDS_S = 10.0


def default_cpus() -> int:
    """Logical CPUs of a node."""
    return max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)


@dataclass(frozen=True)
class Node:
    """One raylet. ``process`` is the ``ray start`` that runs it."""

    name: str
    process: subprocess.Popen
    log: Path
    devices: str | None = None
    """Its CUDA_VISIBLE_DEVICES; None: this process's."""

    @property
    def raylet(self) -> int:
        """The raylet's process id."""
        import psutil

        return next(child.pid for child in psutil.Process(self.process.pid).children() if child.name() == "raylet")


@dataclass
class LocalCluster:
    """A cluster.

    Attributes:
        folder: Ray's files, logs and the token.
        address: the dashboard's.
        gcs: what RAY_ADDRESS takes.
        environment: the environment of the cluster's clients.
        gpus: GPUs of each node; None: what Ray finds is the first node's.
        nodes: the head and the other nodes, in the order of their start. A node that was
            killed stays in the list.
    """

    folder: Path
    address: str
    gcs: str
    environment: dict[str, str]
    gpus: int | None = None
    nodes: list[Node] = field(default_factory=list)
    _devices: list[str] | None = None

    @classmethod
    def create(cls, nodes: int, gpus: int | None = None) -> LocalCluster:
        """A cluster that has a directory, a token and ports, and no process yet. One of one node listens on loopback
        only, and takes no second one.

        Raises:
            UserError: the machine has fewer GPUs than the nodes take.
        """
        devices = visible_devices(nodes, gpus)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        gcs, dashboard = free_ports(2)
        environment = client_environment(token_file(folder), nodes == 1)
        with open(os.open(token_file(folder), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(os.urandom(32).hex())
        address = f"http://127.0.0.1:{dashboard}"
        return cls(folder, address, f"127.0.0.1:{gcs}", environment, gpus, _devices=devices)

    def start(self, nodes: int, num_cpus: int) -> None:
        """Start the head and the other nodes, and wait until each is up.

        Raises:
            EngineError: a node did not come up. The message ends with its log.
        """
        gcs_port, dashboard_port = (address.rpartition(":")[2] for address in (self.gcs, self.address))
        arguments = [
            "--head", f"--port={gcs_port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            f"--temp-dir={self.folder}/ray",
        ]  # fmt: skip
        self._start_node(num_cpus, arguments, tries=1)
        self.add_nodes(nodes - 1, num_cpus)

    def add_nodes(self, count: int, num_cpus: int) -> None:
        """Start more raylets, and wait until each is up.

        They start one after the other: a raylet has 30 s to report itself, and several that
        start together keep a small machine busy for longer.

        Raises:
            EngineError: a node did not come up.
        """
        for _ in range(count):
            self._start_node(num_cpus, [f"--address={self.gcs}"])

    def alive(self) -> set[str]:
        """The names of the nodes that the cluster lists as alive."""
        listed = ask(self.address, "/api/v0/nodes", token_file(self.folder))["data"]["result"]["result"]
        return {node["node_name"] for node in listed if node["state"] == "ALIVE"}

    def end(self) -> None:
        """End every process of the cluster, and remove its directory. Signals wait for nothing: they are ignored."""
        with _undisturbed():
            end(self.folder, [each for each in (Identity.of(node.process.pid) for node in self.nodes) if each])
            for node in self.nodes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(_ENDS_S)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start_node(self, num_cpus: int, arguments: list[str], tries: int = 3) -> None:
        for left in reversed(range(tries)):
            node = self._start(f"node-{len(self.nodes)}" if self.nodes else "head", num_cpus, arguments)
            if self._comes_up(node):
                return
            if not left:
                log = node.log.read_text(errors="replace")[-2000:]
                raise EngineError(f"the Ray node {node.name} did not come up:\n{log}")

    def _start(self, name: str, num_cpus: int, arguments: list[str]) -> Node:
        own = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
               "metrics-export-port")  # fmt: skip
        ports = free_ports(len(own))
        log = self.folder / f"{name}.log"
        environment = self.environment | {MARK: str(self.folder)}
        gpus, devices = self.gpus, self._devices_left()
        if gpus is None and self.nodes:
            gpus, devices = 0, ""  # all are the head's
        if devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = devices
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
                    f"--node-name={name}", f"--num-cpus={num_cpus}", *arguments,
                    *([] if gpus is None else [f"--num-gpus={gpus}"]),
                    # By default all raylets of a machine take the same range of ports.
                    "--min-worker-port=0", "--max-worker-port=0",
                    *(f"--{option}={port}" for option, port in zip(own, ports, strict=True)),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                # Neither Ctrl-C at the terminal nor the terminal's end is for it.
                start_new_session=True,
            )  # fmt: skip
        node = Node(name, process, log, devices)
        self.nodes.append(node)
        return node

    def _devices_left(self) -> str | None:
        """The GPUs of the next node."""
        if self._devices is None:
            return None
        taken = {node.devices for node in self.nodes if node.process.poll() is None}
        return next((each for each in self._devices if each not in taken), "")

    def _comes_up(self, node: Node) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and node.process.poll() is None:
            with contextlib.suppress(OSError):  # nothing answers yet
                if node.name in self.alive():
                    return True
            time.sleep(0.3)
        return False


@contextlib.contextmanager
def local_cluster(num_cpus: int, *, nodes: int = 1, gpus: int | None = None) -> Iterator[LocalCluster]:
    """A running cluster of raylets with ``num_cpus`` logical CPUs each, which ends with the block.

    Raises:
        EngineError: a node did not come up. The message ends with its log.
        UserError: the machine has fewer GPUs than the nodes take.
    """
    cluster = LocalCluster.create(nodes, gpus)
    try:
        cluster.start(nodes, num_cpus)
        yield cluster
    finally:
        cluster.end()


def token_file(folder: Path) -> Path:
    """The file of the token that the cluster with this directory asks for."""
    return folder / TOKEN


def program_path() -> str:
    """The PATH of the cluster's clients: programs of this Python's environment come first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def client_environment(token: Path, loopback: bool) -> dict[str, str]:
    """This process's environment with what a client of the cluster needs.

    Args:
        token: the file of the cluster's token.
        loopback: whether the cluster's node listens on loopback only.
    """
    unset = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", LOOPBACK_SWITCH, MARK)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return environment | {
        "PATH": program_path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **({LOOPBACK_SWITCH: "0"} if loopback else {}),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }


def ask(address: str, path: str, token: Path) -> Any:
    """What a cluster's dashboard answers, as JSON.

    Raises:
        OSError: it does not answer, or refuses.
    """
    headers = {"Authorization": f"Bearer {token.read_text()}"}
    request = urllib.request.Request(f"{address}{path}", headers=headers)
    # A proxy of the user's environment is not for this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_ANSWER_S) as answer:
        return json.load(answer)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore the signals that would end this process, where it is their thread: half an end is none."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ours = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers if ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
