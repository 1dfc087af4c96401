"""Whether a recipe's engines fit into the nodes that a cluster can become, by the code that reserves them in a job."""

from dataclasses import dataclass
from unittest import mock

from limrank.cluster import growth
from limrank.cluster.node_types import from_cluster_file, max_workers_of
from limrank.cluster.resources import possible_nodes, remaining, reserve
from limrank.config import WorkersConfig
from limrank.engines import EngineSpec
from limrank.errors import UserError


@dataclass(frozen=True)
class Pool:
    """Replicas that a job reserves together."""

    source: object
    workers: WorkersConfig
    replicas: int
    spare_cpus: int = 1


@dataclass(frozen=True)
class TrainingWorker:
    holds_model = True
    memory_bytes = 0


def pools(config):
    """What a job reserves, in its order."""

    def engine(role):
        return EngineSpec(role.model, role.engine, role.workers.tensor_parallel)

    match config.job:
        case "evaluate":
            return []
        case "train":
            return [Pool(TrainingWorker(), config.workers, config.workers.min_replicas, spare_cpus=0)]
        case "pipeline":
            return [Pool(engine(config), config.workers, 1)]
        case "rerank" | "serve":
            return [Pool(engine(config), config.workers, config.workers.min_replicas)]
    # The writer's pool is the last one, and a model with two roles has one pool.
    roles = dict(reversed([(engine(role), role.workers) for role in config.roles().values()]))
    return [
        Pool(source, workers, workers.min_replicas if source.holds_model else 1) for source, workers in roles.items()
    ]


def started(cluster):
    """A cluster of Ray's cluster file, or of its values, as it is when its head is up."""
    types = from_cluster_file(cluster)
    (head,) = [each.resources for each in types if each.head]
    return growth.Growth([head | {"node:__internal_head__": 1.0}], True, types, max_workers_of(cluster))


def why_not(config, cluster):
    """Why a job's recipe does not fit into a cluster; None if it does.

    Args:
        cluster: Ray's cluster file, or its values.
    """
    with mock.patch.object(growth, "look", lambda: started(cluster)):
        wanted = pools(config)
        left = possible_nodes() if len(wanted) > 1 else None
        try:
            for pool in wanted:
                replica = reserve([pool.source], pool.workers, pool.replicas, spare_cpus=pool.spare_cpus, nodes=left)
                left = left and remaining(replica, pool.replicas, left)
        except UserError as error:
            return str(error)
    return None
