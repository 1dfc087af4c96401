"""The resources of a pool of engines, and whether a cluster can ever provide them: by the nodes that it can become,
where an autoscaler starts them. Ray itself would silently wait for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limrank.cluster import growth
from limrank.config import WorkersConfig
from limrank.engines.base import ResourceRequest
from limrank.errors import UserError

_ANY_NUMBER = 1_000_000
_KINDS = (("CPU", "num_cpus"), ("GPU", "num_gpus"))
_OF_ENGINES = "model.id, engine.kv_cache_gib: one replica's weights and key-value cache"


def reserve(
    requests: Iterable[ResourceRequest],
    workers: WorkersConfig,
    replicas: int,
    *,
    spare_cpus: int = 1,
    memory_of: str = _OF_ENGINES,
    nodes: Sequence[Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The resources of one replica on the cluster that this process is connected to, as Ray's
    ``num_cpus``, ``num_gpus`` and ``accelerator_type``. ``spare_cpus`` remain for Ray's own tasks.

    Args:
        memory_of: what the memory is needed for, with its recipe keys, for the message.
        nodes: the resources that other pools leave on the nodes; None: there are no other pools.

    Raises:
        UserError: the cluster can never hold the replicas.
    """
    requests, cluster = list(requests), growth.look()
    wanted = resources(requests, workers, cluster.gpus)
    if not cluster.is_known:
        return wanted  # whoever starts the replicas waits for them, and not for ever
    left = cluster.nodes(lambda node: _on_one(wanted, node)) if nodes is None else nodes
    check_resources(wanted, replicas, left, spare_cpus, cluster.describe())
    if not wanted["num_gpus"]:
        check_memory(sum(request.memory_bytes for request in set(requests)), left, memory_of)
    return wanted


def possible_nodes() -> list[Mapping[str, float]]:
    """The resources of each node that the cluster has or can have, as Ray names them, for pools of several kinds."""
    return growth.look().all_nodes()


def can_have_gpus() -> bool:
    """Whether the cluster has GPUs or, as far as that is known, can have some."""
    return growth.look().gpus > 0


def resources(requests: Iterable[ResourceRequest], workers: WorkersConfig, cluster_gpus: float) -> dict[str, Any]:
    """The resources of one replica. A client of remote engines takes a tenth of a CPU."""
    if not any(request.holds_model for request in requests):
        return {"num_cpus": 0.1, "num_gpus": 0.0}
    gpus = workers.gpus
    if gpus is None:
        gpus = float(workers.tensor_parallel) if cluster_gpus else 0.0
    wanted = {"num_cpus": workers.cpus, "num_gpus": gpus}
    return wanted | {"accelerator_type": workers.accelerator} if workers.accelerator else wanted


def check_resources(
    wanted: Mapping[str, Any],
    replicas: int,
    nodes: Sequence[Mapping[str, float]],
    spare_cpus: int = 1,
    becomes: str = "",
) -> None:
    """Raises UserError where the nodes cannot hold the replicas, each on one node, and
    ``spare_cpus`` in addition.

    Args:
        becomes: what the autoscaler may start, in words, for the message; empty without one.
    """
    needed = " and ".join(f"{wanted[key]:g} {kind}s" for kind, key in _KINDS if wanted[key])
    accelerator = wanted.get("accelerator_type")
    if accelerator:
        has = {name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")}
        if accelerator not in has:
            raise UserError(
                f"workers.accelerator {accelerator}: no node has one; the cluster's are {sorted(has)}{_may_become(becomes)}"
            )
    if fitting(wanted, nodes, spare_cpus) < replicas:
        counts = Counter(f"{node.get('CPU', 0):g} CPUs {node.get('GPU', 0):g} GPUs" for node in nodes)
        have = ", ".join(f"{count} × {node}" if count > 1 else node for node, count in counts.items())
        spare = f", and {spare_cpus} CPU in addition," if spare_cpus else ""
        raise UserError(
            f"workers: {replicas} replicas of {needed} each{spare} do not fit into the cluster's nodes (not yet "
            f"taken by this job: {have}){_may_become(becomes)}: lower workers.replicas, workers.cpus or workers.gpus"
        )


def _may_become(becomes: str) -> str:
    return f", and the autoscaler may start: {becomes}" if becomes else ""


def check_memory(needed: int, nodes: Sequence[Mapping[str, float]], what: str = _OF_ENGINES) -> None:
    """Raises UserError where no node has the ``needed`` main memory (bytes) of one replica. A node that is not there
    yet may not say how much it has: it may be enough."""
    if any("memory" not in node for node in nodes):
        return
    most = max((node.get("memory", 0.0) for node in nodes), default=0.0)
    if needed > most:
        raise UserError(
            f"{what} take about {needed / 2**30:.1f} GiB, and no node of the cluster has more than "
            f"{most / 2**30:.1f} GiB for it"
        )


def fitting(wanted: Mapping[str, Any], nodes: Sequence[Mapping[str, float]], spare_cpus: int = 1) -> int:
    """How many replicas the nodes hold, each on one node, with ``spare_cpus`` in addition."""
    whole = sum(node.get("CPU", 0.0) for node in nodes) - spare_cpus
    by_cpu = _times(wanted["num_cpus"], whole) if wanted["num_cpus"] else _ANY_NUMBER
    return max(0, min(by_cpu, sum(_on_one(wanted, node) for node in nodes)))


def remaining(wanted: Mapping[str, Any], replicas: int, nodes: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The resources that remain on the nodes when each replica is on the node that fits the most of
    them."""
    left = [dict(node) for node in nodes]
    for _ in range(replicas):
        freest = max(left, key=lambda node: fitting(wanted, [node], 0))
        for kind, key in _KINDS:
            freest[kind] = max(0.0, freest.get(kind, 0.0) - wanted[key])
    return left


def _on_one(wanted: Mapping[str, Any], node: Mapping[str, float]) -> int:
    """How many replicas one node holds."""
    accelerator = wanted.get("accelerator_type")
    if accelerator and f"accelerator_type:{accelerator}" not in node:
        return 0
    shares = [_times(wanted[key], node.get(kind, 0.0)) for kind, key in _KINDS if wanted[key]]
    return min(shares, default=_ANY_NUMBER)


def _times(wanted: float, given: float) -> int:
    """How many times ``wanted`` fits into ``given``, in the ten-thousandths that Ray counts in."""
    return round(given * 10_000) // max(1, round(wanted * 10_000))
