"""Several raylets on this machine, one lost and one more, a command that is interrupted, and nothing left behind."""

import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil

from limrank.cluster.local import local_cluster

ATTACH = """
import ray

ray.init(address="auto", log_to_driver=False, logging_level="warning")
print(sorted(node["Resources"].get("CPU") for node in ray.nodes() if node["Alive"]))
"""


ENDS_ITSELF = """
import os, sys, time

print("on", os.environ["RAY_AUTH_TOKEN_PATH"], flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)  # an interrupted job takes time to end
    print("ended by itself", flush=True)
    sys.exit(5)
"""


def with_folder(folder):
    """The processes that have the cluster's directory on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in part for part in process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"]))
    return found


def listening(folder):
    """Addresses on which the cluster's processes accept connections."""
    found = set()
    for process in psutil.process_iter():
        try:
            if any(folder in part for part in process.cmdline()):
                connections = process.net_connections("inet")
                found |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    assert found
    return found


def test_three_raylets_join_and_one_may_be_lost(monkeypatch):
    # As a local job of this process leaves it.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with local_cluster(num_cpus=2, nodes=3) as cluster:
        # By number of its try: on a busy machine a node may need a second one.
        head, *others = sorted(cluster.alive())
        assert (head, len(others)) == ("head", 2)
        attached = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
        seen = subprocess.run(
            [sys.executable, "-c", ATTACH], env=attached, capture_output=True, text=True, timeout=120, check=False
        )
        assert seen.stdout.splitlines()[-1:] == ["[2.0, 2.0, 2.0]"], seen.stderr
        raylets = {node.name: node.raylet for node in cluster.nodes if node.name in (head, *others)}
        assert len(set(raylets.values())) == 3
        os.kill(raylets[others[0]], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while cluster.alive() != {"head", others[1]}:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        cluster.add_nodes(1, num_cpus=1)
        assert cluster.alive() == {"head", others[1], cluster.nodes[-1].name}
        folder = str(cluster.folder)
        assert with_folder(folder)
    assert with_folder(folder) == []


def test_a_node_by_itself_listens_on_loopback_and_keeps_its_token():
    with local_cluster(num_cpus=2) as cluster:
        outside = [
            each for each in listening(str(cluster.folder)) if not each.startswith(("127.", "::1", "::ffff:127."))
        ]
        assert outside == []
        assert stat.S_IMODE((cluster.folder / "auth_token").stat().st_mode) == 0o600


def test_ctrl_c_is_the_commands_and_the_cluster_ends_after_it():
    child, terminal = pty.fork()
    if child == 0:
        os.execv(
            sys.executable, [sys.executable, "-m", "limrank", "cluster", "run", "--", sys.executable, "-c", ENDS_ITSELF]
        )
    printed = b""

    def until(text):
        nonlocal printed
        while text not in printed:
            printed += os.read(terminal, 4096)

    until(b"auth_token\r\n")
    folder = Path(printed.split(b"on ")[1].split()[0].decode()).parent
    assert with_folder(str(folder))
    os.write(terminal, b"\x03")
    until(b"ended by itself")
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 5
    assert with_folder(str(folder)) == [] and not folder.exists()
