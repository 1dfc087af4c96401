"""Several raylets on this machine, one lost and one more, and nothing left behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LOCAL = Path(__file__).parents[2] / "cluster" / "local.py"

ATTACH = """
import ray

ray.init(address="auto", log_to_driver=False, logging_level="warning")
print(sorted(node["Resources"].get("CPU") for node in ray.nodes() if node["Alive"]))
"""


def load_local():
    spec = importlib.util.spec_from_file_location("cluster_local", LOCAL)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def with_folder(folder):
    """The processes that have the cluster's directory on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(folder in part for part in process.info["cmdline"] or []):
            found.append(" ".join(process.info["cmdline"]))
    return found


def test_three_raylets_join_and_one_may_be_lost():
    with load_local().local_cluster(num_cpus=2, nodes=3) as cluster:
        assert cluster.alive() == {"head", "node-1", "node-2"}
        attached = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
        seen = subprocess.run(
            [sys.executable, "-c", ATTACH], env=attached, capture_output=True, text=True, timeout=120, check=False
        )
        assert seen.stdout.splitlines()[-1:] == ["[2.0, 2.0, 2.0]"], seen.stderr
        raylets = [node.raylet for node in cluster.nodes]
        assert len(set(raylets)) == 3
        os.kill(raylets[1], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while cluster.alive() != {"head", "node-2"}:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        (added,) = cluster.add_nodes(1, num_cpus=1)
        assert cluster.alive() == {"head", "node-2", added.name}
        folder = str(cluster.folder)
        assert with_folder(folder)
    assert with_folder(folder) == []
