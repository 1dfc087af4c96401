"""A Ray cluster on this machine for as long as one command runs.

    python -m limrank.cluster.local -- limrank rerank jobs/recipes/rerank.yaml --address {address}
    python -m limrank.cluster.local --nodes 3 -- env RAY_ADDRESS={gcs} limrank rerank jobs/recipes/rerank.yaml

The cluster has ports and a directory of its own. In the command, ``{address}`` is replaced by
the dashboard's address and ``{gcs}`` by the address that a driver attaches to. Every process
of the cluster ends with the command, on Ctrl-C and on failure too. Other Ray clusters on this
machine are not touched (``ray stop`` would end them all).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from limrank.cluster.connection import LOOPBACK_SWITCH, MIN_LOGICAL_CPUS

START_TIMEOUT_S = 180.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command of a command line on a cluster, and give its exit code; 130 when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--num-cpus", type=int, default=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1), help="logical CPUs of each node"
    )
    parser.add_argument("--nodes", type=int, default=1, help="raylets, the head's included")
    parser.add_argument(
        "command",
        nargs="+",
        help="what to run; {address} becomes http://127.0.0.1:PORT, {gcs} what RAY_ADDRESS takes",
    )
    given = parser.parse_args(arguments)
    if given.nodes < 1:
        parser.error("--nodes: at least 1, the head")
    # A termination is handled as Ctrl-C is, so that the cluster is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with local_cluster(given.num_cpus, nodes=given.nodes) as cluster:
            command = [
                word.replace("{address}", cluster.address).replace("{gcs}", cluster.gcs) for word in given.command
            ]
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"local cluster: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Node:
    """One raylet. ``process`` is the ``ray start`` that runs it."""

    name: str
    process: subprocess.Popen
    log: Path

    @property
    def raylet(self) -> int:
        """The raylet's process id."""
        import psutil

        return next(child.pid for child in psutil.Process(self.process.pid).children() if child.name() == "raylet")


@dataclass
class LocalCluster:
    """A running cluster.

    Attributes:
        folder: Ray's files, logs and the token.
        address: the dashboard's.
        gcs: what RAY_ADDRESS takes.
        environment: the environment of the cluster's clients.
        nodes: the head and the other nodes, in the order of their start. A node that was
            killed stays in the list.
    """

    folder: Path
    address: str
    gcs: str
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    def add_nodes(self, count: int, num_cpus: int) -> None:
        """Start more raylets, and wait until each is up.

        They start one after the other: a raylet has 30 s to report itself, and several that
        start together keep a small machine busy for longer.

        Raises:
            RuntimeError: a node did not come up.
        """
        for _ in range(count):
            self._start_node(num_cpus, [f"--address={self.gcs}"])

    def alive(self) -> set[str]:
        """The names of the nodes that the cluster lists as alive."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            listed = json.load(answer)["data"]["result"]["result"]
        return {node["node_name"] for node in listed if node["state"] == "ALIVE"}

    def start_head(self, num_cpus: int) -> None:
        gcs_port, dashboard_port = (address.rpartition(":")[2] for address in (self.gcs, self.address))
        arguments = [
            "--head", f"--port={gcs_port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            f"--temp-dir={self.folder}/ray",
        ]  # fmt: skip
        self._start_node(num_cpus, arguments, tries=1)

    def _start_node(self, num_cpus: int, arguments: list[str], tries: int = 3) -> None:
        for left in reversed(range(tries)):
            node = self._start(f"node-{len(self.nodes)}" if self.nodes else "head", num_cpus, arguments)
            if self._comes_up(node):
                return
            if not left:
                log = node.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the Ray node {node.name} did not come up:\n{log}")

    def _start(self, name: str, num_cpus: int, arguments: list[str]) -> Node:
        own = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
               "metrics-export-port")  # fmt: skip
        ports = _free_ports(len(own))
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    "ray", "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
                    f"--node-name={name}", f"--num-cpus={num_cpus}", *arguments,
                    # By default all raylets of a machine take the same range of ports.
                    "--min-worker-port=0", "--max-worker-port=0",
                    *(f"--{option}={port}" for option, port in zip(own, ports, strict=True)),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                # Ctrl-C at the terminal is for the command; the cluster ends after it.
                start_new_session=True,
            )  # fmt: skip
        node = Node(name, process, log)
        self.nodes.append(node)
        return node

    def _comes_up(self, node: Node) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and node.process.poll() is None:
            with contextlib.suppress(OSError):  # nothing answers yet
                if node.name in self.alive():
                    return True
            time.sleep(0.3)
        return False


@contextlib.contextmanager
def local_cluster(num_cpus: int, *, nodes: int = 1) -> Iterator[LocalCluster]:
    """A running cluster of raylets with ``num_cpus`` logical CPUs each. A cluster of one raylet
    listens on loopback only, and takes no second one.

    Raises:
        RuntimeError: a node did not come up. The message ends with its log.
    """
    # The path is short: Ray's sockets lie below it, and a socket's path has about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    gcs_port, dashboard_port = _free_ports(2)
    cluster = LocalCluster(
        folder, f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{gcs_port}", _environment(folder, nodes == 1)
    )
    try:
        cluster.start_head(num_cpus)
        cluster.add_nodes(nodes - 1, num_cpus)
        yield cluster
    finally:
        # A second Ctrl-C must not leave half of it running.
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end([node.process for node in cluster.nodes], folder)
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGINT, interrupted)


def _environment(folder: Path, loopback: bool) -> dict[str, str]:
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    token = folder / "auth_token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex())
    unset = ("RAY_ADDRESS", LOOPBACK_SWITCH)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return environment | {
        "PATH": own,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **({LOOPBACK_SWITCH: "0"} if loopback else {}),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }


def _end(starters: list[subprocess.Popen], folder: Path) -> None:
    """End the nodes and all processes that they started: their descendants, and those that have the
    cluster's directory on their command line (Ray's processes lose their parent when it ends)."""
    import psutil

    ours: dict[int, psutil.Process] = {}
    for _ in range(3):  # a process may start another one while it ends
        for starter in starters:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(starter.pid).children(recursive=True):
                    ours[process.pid] = process
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(folder) in word for word in process.cmdline()) and process.pid != os.getpid():
                    ours[process.pid] = process
                    for child in process.children(recursive=True):
                        ours[child.pid] = child
        for process in [*ours.values(), *starters]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.terminate()
        _, alive = psutil.wait_procs(list(ours.values()), timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    for starter in starters:
        with contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(timeout=5)
        if starter.poll() is None:
            starter.kill()
            starter.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    sys.exit(main())
