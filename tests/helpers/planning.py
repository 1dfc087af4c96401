"""Whether a recipe's engines fit into the nodes that a cluster can become, by the code that reserves them in a job."""

from dataclasses import dataclass

from limrank.cluster.node_types import from_cluster_file, max_workers_of, most_nodes
from limrank.cluster.resources import check_resources, remaining, resources
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


def pools(config):
    """What a job reserves, in its order."""

    def engine(model, engine, workers):
        return EngineSpec(model, engine, workers.tensor_parallel)

    match config.job:
        case "rerank" if config.scoring.mode == "none":
            return []
        case "rerank" | "serve":
            source = engine(config.model, config.engine, config.workers)
            return [Pool(source, config.workers, config.workers.min_replicas)]
        case "train":
            return [Pool(TrainingWorker(), config.workers, config.workers.min_replicas, spare_cpus=0)]
        case "pipeline":
            return [Pool(engine(config.model, config.engine, config.workers), config.workers, 1)]
        case "synthesize":
            roles = [(engine(role.model, role.engine, role.workers), role.workers) for role in config.roles().values()]
            # The writer's pool is the last one, and a model with two roles has one pool.
            found = dict(reversed([(source, workers) for source, workers in roles]))
            return [
                Pool(source, workers, workers.min_replicas if source.holds_model else 1)
                for source, workers in found.items()
            ]
        case "evaluate":
            return []


def why_not(config, cluster):
    """Why a job's recipe does not fit into a cluster's most nodes; None if it does.

    Args:
        cluster: Ray's cluster file, or its values.
    """
    nodes = most_nodes(from_cluster_file(cluster), max_workers_of(cluster))
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    try:
        for pool in pools(config):
            wanted = resources([pool.source], pool.workers, gpus)
            check_resources(wanted, pool.replicas, nodes, pool.spare_cpus)
            nodes = remaining(wanted, pool.replicas, nodes)
    except UserError as error:
        return str(error)
    return None
