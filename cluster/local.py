"""A Ray cluster on this machine for as long as one command runs.

    python cluster/local.py -- limrank rerank jobs/recipes/rerank.yaml --address {address}

Starts a head node with ports and a directory of its own, runs the command with
``{address}`` replaced by the dashboard's address, and ends every process that it
started, however the command ends: on Ctrl-C and on failure too. Other Ray clusters on
this machine are left alone (``ray stop`` would end them all).
"""

from __future__ import annotations

import argparse
import contextlib
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
from pathlib import Path

MIN_LOGICAL_CPUS = 4
START_TIMEOUT_S = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-cpus", type=int, default=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1))
    parser.add_argument("command", nargs="+", help="what to run; {address} becomes http://127.0.0.1:PORT")
    arguments = parser.parse_args()
    # A termination is handled as Ctrl-C is: the cluster is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        with local_cluster(arguments.num_cpus) as (address, environment):
            command = [part.replace("{address}", address) for part in arguments.command]
            return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        print(f"cluster/local.py: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def local_cluster(num_cpus: int) -> Iterator[tuple[str, dict[str, str]]]:
    """A running head node: its dashboard's address, and the environment for its clients.

    Raises:
        RuntimeError: it did not come up; the message ends with its log.
    """
    # A short path: Ray's sockets lie below it, and a socket's path has about 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="lr-"))
    environment = _environment(folder)
    ports = _free_ports(6)
    head = None
    try:
        head = _start_head(folder, ports, num_cpus, environment)
        address = f"http://127.0.0.1:{ports[1]}"
        _wait_until_up(address, head, folder / "head.log")
        yield address, environment
    finally:
        # A second Ctrl-C must not leave half of it running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if head is not None:
            _end(head, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    own = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    token = folder / "auth_token"
    token.write_text(os.urandom(32).hex())
    token.chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return environment | {
        "PATH": own,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }


def _start_head(folder: Path, ports: list[int], num_cpus: int, environment: dict[str, str]) -> subprocess.Popen:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
             "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        return subprocess.Popen(
            [
                "ray", "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1",
                "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray", f"--num-cpus={num_cpus}",
                *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C at the terminal is for the command; the cluster ends after it.
            start_new_session=True,
        )  # fmt: skip


def _wait_until_up(address: str, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # it answers, and asks for a token
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the Ray head node did not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _end(head: subprocess.Popen, folder: Path) -> None:
    """End the head and all that it started: its descendants, and what has its directory
    on the command line (Ray's own processes are re-parented when one of them dies)."""
    import psutil

    ours: dict[int, psutil.Process] = {}
    for _ in range(3):  # ending one process can make another start a last one
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(head.pid).children(recursive=True):
                ours[process.pid] = process
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(folder) in part for part in process.cmdline()) and process.pid != os.getpid():
                    ours[process.pid] = process
                    for child in process.children(recursive=True):
                        ours[child.pid] = child
        for process in ours.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        with contextlib.suppress(ProcessLookupError):
            head.terminate()
        _, alive = psutil.wait_procs(list(ours.values()), timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        head.wait(timeout=5)
    if head.poll() is None:
        head.kill()
        head.wait()


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
