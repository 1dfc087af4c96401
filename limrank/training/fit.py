"""Fine-tuning on Ray Train: resources, workers, retries after crashes, and the files of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank.cluster.resources import reserve
from limrank.cluster.waiting import wait_for_nodes
from limrank.config import TrainJob, is_uri
from limrank.errors import EngineError, LimrankError
from limrank.progress import Progress
from limrank.storage import Storage, filesystem
from limrank.training import checkpoints
from limrank.training.curves import draw_curves
from limrank.training.metrics import OnProgress, following, read_metrics, steps_made
from limrank.training.prepare import RESUMED_BY, Prepared, prepare
from limrank.training.worker import train_worker

if TYPE_CHECKING:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

_log = logging.getLogger(__name__)

CRASHES_TOLERATED = 3
"""A run survives this many consecutive crashes without new progress, and fails at the next one. After a
crash all workers start from the last checkpoint."""

MINUTES_WAITED = 10
"""A run fails if the cluster has no resources for its workers for this long."""


@dataclass(frozen=True)
class TrainResult:
    """The result of a run, over all its resumed sessions.

    =======================================  ============================================================
    ``examples, truncated``                  lines of the training file, validation included
    ``tokens``                               tokens that were trained on, over all epochs
    ``seconds``                              time in training steps
    ``final_loss``                           of the last step: the mean over completion tokens (or units,
                                             see ``objectives``)
    ``validation_loss``                      of the last evaluation; None without a validation split
    ``best_step, best_ndcg``                 step of the best evaluation, and the dev set's nDCG@10 there;
                                             None if nothing was evaluated
    ``exported_step``                        the step of the exported weights (``training.export``)
    ``model_dir``                            path of the exported model
    ``dtype``                                dtype of the computation (``bfloat16``: by autocast, over
                                             float32 weights)
    =======================================  ============================================================
    """

    examples: int
    steps: int
    tokens: int
    seconds: float
    final_loss: float
    validation_loss: float | None
    best_ndcg: float | None
    best_step: int | None
    exported_step: int
    truncated: int
    model_dir: str
    dtype: str | None


def fit(
    config: TrainJob,
    storage: Storage,
    on_progress: OnProgress | None = None,
    prepared: Prepared | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train on the Ray cluster that this process is connected to.

    A call with the same storage continues from the last checkpoint.

    Args:
        storage: for ``checkpoints/ adapter/ model/ metrics.jsonl curves.png``; every worker must see it
            under the same absolute path, or URI.
        on_progress: called, in a thread of its own, with the line of ``metrics.jsonl`` of every new step
            (see :func:`limrank.training.loop.train`).
        prepared: the result of :func:`~limrank.training.prepare.prepare` for this recipe, if it exists.
        progress: says which nodes are waited for, where an autoscaler starts them.

    Raises:
        UserError: the file, the model, the dtype or the number of workers is unsuitable.
        EngineError: workers crashed repeatedly, the cluster had no resources for them, or the loss diverged.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("limrank.training.fit.fit needs a caller that is connected to Ray")
    if not is_uri(storage.root):
        storage = Storage(os.path.abspath(storage.root))  # workers have another working directory
    checkpoints.drop_broken_index(storage)
    prepared = prepared or prepare(config)
    planned = prepared.plan
    wanted = _reserve(config, planned["bytes_a_worker"])
    limit = f"{MINUTES_WAITED} minutes"
    wait_for_nodes(wanted, 60 * MINUTES_WAITED, config.workers.min_replicas, progress=progress, limit=limit)
    scaling = _scaling(config, wanted)
    task = {
        "config": config,
        "storage": storage,
        # A reference: each node fetches the examples once, and each worker maps them into memory.
        "data": ray.put(prepared),
        # A resumed run compares these with its checkpoint's: their names stay as they are.
        "plan": {key: planned[key] for key in (*RESUMED_BY, "cut", "teacher_temperature", "label_ends")},
    }
    with following(storage, on_progress):
        made, dtype = _fit(lambda: _trainer(task, scaling), storage)
    storage.write_bytes("curves.png", draw_curves(read_metrics(storage)))
    return TrainResult(
        examples=len(prepared.training) + len(prepared.validation),
        steps=made["step"],
        tokens=made["tokens"],
        seconds=made["seconds"],
        final_loss=made["loss"],
        validation_loss=made["validation_loss"],
        best_ndcg=made["best_score"] if config.dev else None,
        best_step=made["best_step"],
        exported_step=(made["best_step"] if config.training.export == "best" else None) or made["step"],
        truncated=planned["cut"],
        model_dir=storage.display_path("model"),
        dtype=dtype,
    )


def _fit(trainer: Callable[[], TorchTrainer], storage: Storage) -> tuple[dict[str, Any], str | None]:
    """The progress and the dtype that the workers return. After a crash a new trainer continues from the
    last checkpoint.

    A crash is that of a worker, of its node (announced preemptions, too), or of Ray Train's controller.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    furthest, crashes = _steps(storage), 0
    while True:
        try:
            ended = trainer().fit().return_value
        except (TrainingFailedError, RayActorError) as error:
            if _lacked_resources(error):
                raise EngineError(
                    f"the cluster had no resources for the workers within {MINUTES_WAITED} minutes: it lost a node, or other "
                    "work holds them; the same command continues from the last checkpoint"
                ) from error
            cause, reached = _cause(error), _steps(storage)
            furthest, crashes = max(furthest, reached), 1 if reached > furthest else crashes + 1
            if crashes > CRASHES_TOLERATED:
                raise cause from error
            _log.warning("training crashed after step %d, and continues from its last checkpoint: %s", reached, cause)
        else:
            if error := ended.get("error"):
                raise error
            return ended["progress"], ended["dtype"]


def _steps(storage: Storage) -> int:
    """The number of completed steps, with those since the last checkpoint, which are repeated. 0 if the
    store cannot be read now."""
    try:
        return steps_made(storage)
    except OSError as error:
        _log.warning("the number of completed steps cannot be read: %s", error)
        return 0


def _trainer(task: dict[str, Any], scaling: ScalingConfig) -> TorchTrainer:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from limrank.training.network import NodeAddresses

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray Train's handler would outlive the training, and end an interrupted job with exit code 0."""

    config: TrainJob = task["config"]
    storage: Storage = task["storage"]
    files, path = filesystem(storage.root)
    # Ray Train keeps the last checkpoint besides the best ones; if all scores are equal, it is one of the best.
    are_scored = config.dev or task["plan"]["validation_examples"]
    return Trainer(
        train_worker,
        train_loop_config=task,
        torch_config=NodeAddresses(),
        scaling_config=scaling,
        # Ray Train resumes a run by its name and path. Its log would repeat, at length, the error that is
        # raised below; its files in the Ray session keep everything.
        run_config=RunConfig(
            name=checkpoints.FOLDER,
            storage_path=path,
            storage_filesystem=files if is_uri(storage.root) else None,
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.training.keep_checkpoints + (0 if are_scored else 1),
                checkpoint_score_attribute=checkpoints.SCORE,
            ),
            # Ray Train retries no crash: _fit counts crashes by the progress between them. A start is
            # retried, and each time Ray Train waits one minute for resources.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=MINUTES_WAITED - 1
            ),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


@dataclass(frozen=True)
class _Worker:
    """The resources of one training worker."""

    memory_bytes: int
    holds_model = True


def _reserve(config: TrainJob, needed: int) -> dict[str, Any]:
    """The resources of one worker, of ``needed`` bytes."""
    return reserve(
        [_Worker(needed)],
        config.workers,
        config.workers.min_replicas,
        spare_cpus=0,
        memory_of="training.batch_size, training.method: one worker's weights, optimizer and activations",
    )


def _scaling(config: TrainJob, wanted: dict[str, Any]) -> ScalingConfig:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=config.workers.min_replicas,
        accelerator_type=config.workers.accelerator,
        use_gpu=wanted["num_gpus"] > 0,
        resources_per_worker={"CPU": wanted["num_cpus"]} | ({"GPU": wanted["num_gpus"]} if wanted["num_gpus"] else {}),
    )


def _cause(error: Exception) -> LimrankError:
    """The cause of a crash as an error of one line."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        return _of_workers(error.worker_failures)
    inner = error.controller_failure if isinstance(error, ControllerError) else error
    return EngineError(f"training failed: {type(inner).__name__}: {_last_line(inner)}")


def _lacked_resources(error: Exception) -> bool:
    from ray.train import ControllerError

    # The class is in a private module of Ray Train.
    return (
        isinstance(error, ControllerError)
        and type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError"
    )


def _of_workers(failures: dict[int, Exception]) -> LimrankError:
    """The most informative of the workers' errors.

    When one worker fails, the others fail because they lose it. An error that limrank raised itself is
    the first cause, whatever its rank.
    """
    # Ray Train keeps the original exception in a private field; without it the text remains.
    originals = {rank: getattr(error, "_base_exc", error) for rank, error in sorted(failures.items())}
    for error in originals.values():
        if isinstance(error, LimrankError):
            return error
    rank, error = next(iter(originals.items()))
    advice = ""
    if "OutOfMemory" in type(error).__name__:
        advice = ": lower training.batch_size or training.cutoff_tokens, or set training.gradient_checkpointing"
    return EngineError(f"training worker {rank} failed: {type(error).__name__}: {_last_line(error)}{advice}")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
