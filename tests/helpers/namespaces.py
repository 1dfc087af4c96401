"""A Ray cluster of several hosts on this machine: each node is in a network namespace with an address of its own.

It needs root and iproute2. The hosts share the file system, as those of a cluster with a shared one do, and
nothing else: each has its loopback, its ports, and one link to a bridge, which can be cut.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from limrank.cluster.local import ask, client_environment

BRIDGE = "limrank-br"
NETWORK = "10.77.77"
GCS_PORT, DASHBOARD_PORT = 6379, 8265
STARTS_WITHIN_S = 180


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass
class Host:
    """A namespace, its address, and what runs in it."""

    number: int
    starters: list[subprocess.Popen] = field(default_factory=list)

    @property
    def name(self):
        return f"limrank-{self.number}"

    @property
    def address(self):
        return f"{NETWORK}.{10 + self.number}"

    @property
    def link(self):
        """The end of its link that is at the bridge."""
        return f"limrank-l{self.number}"

    def create(self):
        ip("netns", "add", self.name)
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.link, "master", BRIDGE, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "lo", "up")
        ip("-n", self.name, "link", "set", "eth0", "up")
        # Ray finds a machine's address by its way out.
        ip("-n", self.name, "route", "add", "default", "via", f"{NETWORK}.1")

    def popen(self, command, **options):
        """A command on this host."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)

    def cut(self):
        ip("link", "set", self.link, "down")

    def mend(self):
        ip("link", "set", self.link, "up")

    def kill(self):
        """SIGKILL for all that runs on this host, as if it had lost its power."""
        while pids := ip("netns", "pids", self.name).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            for starter in self.starters:
                starter.poll()
            time.sleep(0.1)

    def remove(self):
        self.kill()
        for starter in self.starters:
            starter.wait()
        # A namespace that is deleted lives on for a while, with its end of the link.
        ip("link", "delete", self.link)
        ip("netns", "delete", self.name)


def remove_all():
    """Remove the hosts and the bridge, also those of a test session that was killed."""
    for line in ip("netns", "list").splitlines():
        prefix, _, number = line.split()[0].rpartition("-")
        if prefix == "limrank":
            with contextlib.suppress(AssertionError):
                Host(int(number)).remove()
    with contextlib.suppress(AssertionError):
        ip("link", "delete", BRIDGE)


class Cluster:
    """Hosts with a Ray node each; the first is the head."""

    def __init__(self, folder, cpus):
        self.folder = folder
        self.cpus = cpus
        self.hosts = []
        self.heads = 0
        token = folder / "auth_token"
        with open(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        self.environment = client_environment(token, loopback=False)

    @property
    def head(self):
        return self.hosts[0]

    @property
    def gcs(self):
        return f"{self.head.address}:{GCS_PORT}"

    @property
    def dashboard(self):
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def add_host(self):
        host = Host(len(self.hosts))
        self.hosts.append(host)
        host.create()
        return host

    def start(self, host):
        """Start a host's Ray node and wait until the cluster lists it."""
        if host is self.head:
            self.heads += 1
            role = ["--head", f"--port={GCS_PORT}", f"--dashboard-host={host.address}", "--include-dashboard=true"]
            role += [f"--temp-dir={self.folder}/ray{self.heads}"]
        else:
            role = [f"--address={self.gcs}"]
        log = self.folder / f"{host.name}.log"
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={host.address}"]
        command += [f"--num-cpus={self.cpus}", f"--object-store-memory={200 * 2**20}", *role]
        with log.open("ab") as stream:
            options = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream, "start_new_session": True}
            starter = host.popen(command, env=self.environment, **options)
        host.starters.append(starter)
        deadline = time.monotonic() + STARTS_WITHIN_S
        while host.address not in self.alive():
            assert starter.poll() is None, f"{host.name} ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{host.name} did not come up:\n{log.read_text()[-3000:]}"
            time.sleep(0.3)

    def alive(self):
        """Addresses of the nodes that the head lists as alive; none where it does not answer."""
        try:
            answer = ask(self.dashboard, "/api/v0/nodes", self.folder / "auth_token")
            listed = answer["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError):
            return set()
        return {node["node_ip"] for node in listed if node["state"] == "ALIVE"}

    def popen(self, command, **options):
        """A command on the head's host, whose driver attaches to the cluster."""
        return self.head.popen(command, env=self.environment | {"RAY_ADDRESS": self.gcs}, **options)


@contextlib.contextmanager
def cluster(hosts, cpus=3):
    """A running cluster of so many hosts with ``cpus`` logical CPUs each."""
    # Ray's sockets lie below this folder, and the path of a socket has about 100 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="lrn-"))
    running = Cluster(folder, cpus)
    remove_all()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for _ in range(hosts):
            running.start(running.add_host())
        yield running
    finally:
        for host in running.hosts:
            host.kill()
        remove_all()
        shutil.rmtree(folder, ignore_errors=True)
