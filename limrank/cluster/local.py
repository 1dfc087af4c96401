"""A Ray cluster on this machine for as long as one command runs.

    python cluster/local.py -- limrank rerank jobs/recipes/rerank.yaml --address {address}
    python cluster/local.py --nodes 3 -- env RAY_ADDRESS={gcs} limrank rerank jobs/recipes/rerank.yaml

Starts a head node, and as many more beside it as are asked for, with ports and a
directory of their own; runs the command with ``{address}`` replaced by the dashboard's
address and ``{gcs}`` by the one that a driver attaches to; and ends every process that it
started, however the command ends: on Ctrl-C and on failure too. Other Ray clusters on
this machine are left alone (``ray stop`` would end them all).
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
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MIN_LOGICAL_CPUS = 4
START_TIMEOUT_S = 180.0
_LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Named for the systems that 0 is the default on: all of a node's servers listen on 127.0.0.1
then, instead of on every interface. Ray takes no second node."""


def main() -> int:
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
    arguments = parser.parse_args()
    if arguments.nodes < 1:
        parser.error("--nodes: at least 1, the head")
    # A termination is handled as Ctrl-C is: the cluster is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with local_cluster(arguments.num_cpus, nodes=arguments.nodes) as cluster:
            places = {"{address}": cluster.address, "{gcs}": cluster.gcs}
            command = arguments.command
            for place, value in places.items():
                command = [part.replace(place, value) for part in command]
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"cluster/local.py: {error}", file=sys.stderr)
        return 1


@dataclass(frozen=True)
class Node:
    """One raylet and what belongs to it; ``process`` is the ``ray start`` that keeps it."""

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
    """A running cluster: ``address`` is the dashboard's, ``gcs`` what RAY_ADDRESS takes,
    ``environment`` its clients'. ``nodes`` are the head and the nodes beside it, in order
    of their start; one that was killed stays in the list."""

    folder: Path
    address: str
    gcs: str
    environment: dict[str, str]
    nodes: list[Node] = field(default_factory=list)

    def add_nodes(self, count: int, num_cpus: int) -> None:
        """More raylets, up when this returns, one after the other: a raylet has 30 s to
        report itself, and several that start together keep a small machine busy for longer.

        Raises:
            RuntimeError: one did not come up.
        """
        for _ in range(count):
            self._start_node(num_cpus, [f"--address={self.gcs}"])

    def alive(self) -> set[str]:
        """The names of the nodes that the cluster takes for alive."""
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
                    # Any free ports: the raylets of one machine would all take the same range.
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
    """A running cluster of so many raylets, each with ``num_cpus`` logical CPUs. One of a single
    raylet stays that, and listens on loopback alone.

    Raises:
        RuntimeError: it did not come up; the message ends with its log.
    """
    # A short path: Ray's sockets lie below it, and a socket's path has about 100 characters.
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


def _environment(folder: Path, alone: bool) -> dict[str, str]:
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    token = folder / "auth_token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(os.urandom(32).hex())
    unset = ("RAY_ADDRESS", _LOOPBACK_SWITCH)
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    return environment | {
        "PATH": own,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **({_LOOPBACK_SWITCH: "0"} if alone else {}),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }


def _end(starters: list[subprocess.Popen], folder: Path) -> None:
    """End the nodes and all that they started: their descendants, and what has the cluster's
    directory on the command line (Ray's own processes are re-parented when one of them dies)."""
    import psutil

    ours: dict[int, psutil.Process] = {}
    for _ in range(3):  # ending one process can make another start a last one
        for starter in starters:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(starter.pid).children(recursive=True):
                    ours[process.pid] = process
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(folder) in part for part in process.cmdline()) and process.pid != os.getpid():
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
