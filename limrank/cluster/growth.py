"""What the connected cluster can become: its nodes, and those that an autoscaler may start.

Ray keeps what the autoscaler may start in the cluster's configuration only where a platform reports it there. Its own
autoscaler, a process of the head, has it in the file that it was started with. KubeRay's runs in a container of its
own, and has it from the RayCluster resource, which the head may read, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limrank.cluster.node_types import (
    MOST_NODES,
    NodeType,
    describe,
    from_cluster_file,
    max_workers_of,
    most_nodes,
    unknown,
)
from limrank.errors import UserError
from limrank.parsing import parse_yaml

_HEAD = "node:__internal_head__"
"""The resource that marks the head."""

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_STATUS_TIMEOUT_S = 10
_HEAD_ANSWERS_S = 60.0

Node = Mapping[str, float]


@dataclass(frozen=True)
class Growth:
    """What a cluster is, and can become.

    Attributes:
        alive: the resources of each node that is there.
        autoscaler: whether an autoscaler starts nodes.
        types: what it may start; None where that is not known.
        max_workers: the most workers of all types together.
    """

    alive: Sequence[Node]
    autoscaler: bool = False
    types: Sequence[NodeType] | None = None
    max_workers: int = 0

    @property
    def is_known(self) -> bool:
        """Whether it is known what the cluster can become."""
        return not self.autoscaler or (self.types is not None and not unknown(self.types))

    @property
    def gpus(self) -> float:
        """The GPUs that the cluster has or, as far as that is known, can have."""
        return sum(node.get("GPU", 0.0) for node in (self.alive if not self.is_known else self.all_nodes()))

    def nodes(self, fits: Callable[[Node], float] | None = None) -> list[Node]:
        """The nodes that the cluster can become, at most :data:`MOST_NODES`: those that are there, and others.

        Args:
            fits: the types that it gives the most are started first.
        """
        return self._with_alive(self.max_workers, fits)

    def all_nodes(self) -> list[Node]:
        """The same with the most nodes of each type, which the cluster may not have all at the same time: for work
        of several kinds, where no one type is started first."""
        return self._with_alive(sum(each.max_workers for each in self.types or ()))

    def describe(self) -> str:
        """What the autoscaler may start, in words; nothing where there is none."""
        return describe(self.types, self.max_workers) if self.autoscaler and self.types is not None else ""

    def _with_alive(self, max_workers: int, fits: Callable[[Node], float] | None = None) -> list[Node]:
        workers = [each for each in self.types or () if not each.head or each.max_workers]
        coming = most_nodes([_worker(each) for each in workers], max_workers, fits)
        for node in self.alive:
            # A node that is there is one of those that may be there.
            if _HEAD not in node:
                with suppress(StopIteration):
                    coming.remove(next(each for each in coming if _is_of(each, node)))
        return [*self.alive, *coming][:MOST_NODES]


def look() -> Growth:
    """What the cluster that this process is connected to can become."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    alive = [node["Resources"] for node in nodes]
    if (reported := _reported()) is not None:
        return Growth(alive, True, reported, sum(each.max_workers for each in reported))
    head = next((node["NodeID"] for node in nodes if _HEAD in node["Resources"]), None)
    started, config = _ask_head(head) if head else (False, None)
    if started and config is None:
        return Growth(alive)
    if config is not None:
        with suppress(UserError):
            values = parse_yaml(config, "the autoscaling config", expect=dict)
            return Growth(alive, True, from_cluster_file(values), max_workers_of(values))
        return Growth(alive, True)
    return Growth(alive, _reports_status())


def _worker(each: NodeType) -> NodeType:
    return NodeType(each.name, each.resources, each.min_workers, each.max_workers)


def _is_of(kind: Node, node: Node) -> bool:
    return all(kind.get(name, 0.0) == node.get(name, 0.0) for name in ("CPU", "GPU"))


def _reported() -> list[NodeType] | None:
    """The node types in Ray's cluster configuration; None where no platform reports them."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    return [
        NodeType(
            group.name,
            {name: float(amount) for name, amount in group.resources.items()} or None,
            group.min_count,
            group.max_count if group.max_count >= 0 else MOST_NODES,
        )
        for group in config.node_group_configs
    ]


def _ask_head(head: str) -> tuple[bool, str | None]:
    """:func:`monitor_config` of the head."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.get_runtime_context()
    port = context.gcs_address.rpartition(":")[2]
    if context.get_node_id() == head:
        return monitor_config(port)
    there = NodeAffinitySchedulingStrategy(head, soft=False)
    asked = ray.remote(monitor_config).options(num_cpus=0, scheduling_strategy=there).remote(port)
    try:
        return ray.get(asked, timeout=_HEAD_ANSWERS_S)
    except GetTimeoutError:
        ray.cancel(asked, force=True)
        return False, None


def monitor_config(port: str) -> tuple[bool, str | None]:
    """Whether Ray's monitor runs on this machine for the cluster of this port, and the autoscaling config of the
    cluster: that of the monitor, or else of KubeRay. A monitor without one starts no nodes."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if not any(Path(word).name == "monitor.py" for word in words):  # log_monitor.py is on every node
                continue
            options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
            if options.get("--gcs-address", "").rpartition(":")[2] == port:
                return True, _read(options.get("--autoscaling-config"), process)
    return False, _of_kuberay()


def _read(config: str | None, process: Any) -> str | None:
    """The text of the monitor's file; empty where it cannot be read."""
    if config is None:
        return None
    try:
        return (Path(process.cwd()) / Path(config).expanduser()).read_text("utf-8")
    except OSError:
        return ""


def _of_kuberay() -> str | None:
    """The autoscaling config that KubeRay's autoscaler derives from the RayCluster resource; None where this is no
    pod of one, or the pod may not read it."""
    cluster, namespace = os.environ.get("RAY_CLUSTER_NAME"), _SERVICE_ACCOUNT / "namespace"
    if not cluster or not namespace.is_file():
        return None
    import json

    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    # requests' errors are OSErrors. Without an answer, the nodes are not known.
    with suppress(OSError, ValueError, KeyError):
        client = node_provider.KubernetesHttpApiClient(namespace=namespace.read_text().strip())
        resource = client.get(f"rayclusters/{cluster}")
        if resource["spec"].get("enableInTreeAutoscaling"):
            return json.dumps(autoscaling_config._derive_autoscaling_config_from_ray_cr(resource))
    return None


def _reports_status() -> bool:
    """Whether an autoscaler reports to the cluster, from wherever it runs."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = global_worker.gcs_client
    if client.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), timeout=_STATUS_TIMEOUT_S):
        return True
    reply = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=_STATUS_TIMEOUT_S))
    return reply.autoscaling_state.autoscaler_state_version > 0
