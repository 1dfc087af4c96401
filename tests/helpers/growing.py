"""A Ray cluster on this machine whose autoscaler starts and ends nodes: more raylets, by Ray's provider for trying that."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from helpers.processes import alive, below, command_line
from limrank.cluster.local import free_ports

HEAD_CPUS = 3
HEAD_TYPE = "ray.head.default"
"""The provider's own name for the head's type."""
UP_S = 120
_MAPPINGS = ("auth", "docker", "file_mounts")
_LISTS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)


@dataclass(frozen=True)
class GrowingCluster:
    """``environment`` is that of the cluster's clients, which find it with ``--address auto``."""

    folder: Path
    environment: dict
    head: subprocess.Popen

    def raylets(self):
        """Those of the nodes that the autoscaler started."""
        own = {each.pid for each in psutil.Process(self.head.pid).children()}
        found = [each for each in psutil.process_iter() if "raylet/raylet" in command_line(each)]
        return [each for each in found if str(self.folder) in command_line(each) and each.pid not in own]

    def wait_for(self, raylets, patience_s):
        deadline = time.monotonic() + patience_s
        while len(self.raylets()) != raylets:
            assert time.monotonic() < deadline, f"{len(self.raylets())} raylets, not {raylets}"
            time.sleep(0.5)


@contextlib.contextmanager
def growing_cluster(types, max_workers, idle_s=10):
    """A head of three logical CPUs, and the node types that the autoscaler may start: name → its entry in
    ``available_node_types``. An idle node ends after ``idle_s``."""
    folder = Path(tempfile.mkdtemp(prefix="lr-"))  # short: Ray's sockets lie below it
    port, dashboard = free_ports(2)
    head = {"resources": {"CPU": HEAD_CPUS}, "node_config": {}, "max_workers": 0}
    config = {
        **{name: {} for name in _MAPPINGS},
        **{name: [] for name in _LISTS},
        "cluster_name": "growing",
        "file_mounts_sync_continuously": False,
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {HEAD_TYPE: head, **types},
    }
    (folder / "autoscaling.yaml").write_text(yaml.safe_dump(config))
    (folder / "auth_token").write_text(os.urandom(32).hex())
    own = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": os.pathsep.join([own, os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # The provider knows the head by this id.
    of_nodes = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"} | {
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": f"{'f' * 51}00000"
    }
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    command += [f"--num-cpus={HEAD_CPUS}", "--num-gpus=0", f"--autoscaling-config={folder}/autoscaling.yaml"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}/ray"]
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        started = subprocess.Popen(
            command,
            env=environment | of_nodes,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        _wait_until_up(started, folder)
        yield GrowingCluster(folder, environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, started)
    finally:
        _end(started, str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(started, folder):
    deadline = time.monotonic() + UP_S
    log = folder / "head.log"
    while "Ray runtime started" not in log.read_text():
        assert started.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)


def _end(started, folder):
    """End every process of the cluster: the monitor first, which would start nodes again."""
    ours = [each for each in psutil.process_iter() if folder in command_line(each)]
    ours.sort(key=lambda each: "monitor.py" not in command_line(each))
    ours += [child for each in ours for child in below(each.pid)]
    for each in ours:
        with contextlib.suppress(psutil.Error):
            each.send_signal(signal.SIGKILL)
    started.kill()
    started.wait()
    psutil.wait_procs([each for each in ours if alive(each)], timeout=10)
