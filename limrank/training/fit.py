"""Fine-tuning on Ray Train: what it takes, the workers, and what they leave in a directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank.cluster.resources import reserve
from limrank.config import TrainJob, is_uri
from limrank.errors import EngineError, LimrankError
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
"""A worker that dies is replaced, and all go on from the last checkpoint; so often without coming further."""

MINUTES_WAITED = 10
"""So long a cluster may have no room for the workers: it has lost a node, or other work holds it."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; resumed parts included.

    ``examples`` and ``cut`` count lines of the training file (validation included),
    ``tokens`` all that was trained on over the epochs, ``seconds`` time in training
    steps. Losses are the mean over completion tokens (or units, see ``objectives``): of the last
    step, and of the validation split at the last look (None where there is no split). ``best_step``
    is that of the best look (None: nobody looked), ``best_ndcg`` the dev set's nDCG@10 there. Exported are
    the weights of ``exported_step``: the same, or the last, as ``training.export`` says.
    ``dtype`` is what the model computed with (``bfloat16``: by autocast, over float32 weights).
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
    cut: int
    model_dir: str
    dtype: str | None


def fit(
    config: TrainJob, storage: Storage, on_progress: OnProgress | None = None, prepared: Prepared | None = None
) -> TrainResult:
    """Train on the Ray cluster that this process is connected to.

    Started again with the same storage it goes on from the last checkpoint.

    Args:
        storage: where ``checkpoints/ adapter/ model/ metrics.jsonl curves.png`` go;
            every worker must see it under the same absolute path, or URI.
        on_progress: called, in a thread of its own, with the line of ``metrics.jsonl`` of
            each step that is new to it (see :func:`limrank.training.loop.train`).
        prepared: what :func:`~limrank.training.prepare.prepare` makes of the recipe, where
            it was made already.

    Raises:
        UserError: the file, the model, the dtype or the number of workers does not do.
        EngineError: workers died again and again, the cluster had no room for them any more, or the loss diverged.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("limrank.training.fit.fit needs a Ray that its caller has connected to")
    if not is_uri(storage.root):
        storage = Storage(os.path.abspath(storage.root))  # workers have another working directory
    checkpoints.drop_broken_index(storage)
    prepared = prepared or prepare(config)
    planned = prepared.plan
    scaling = _scaling(config, planned["bytes_a_worker"])
    task = {
        "config": config,
        "storage": storage,
        # By reference: each node fetches the examples once, and each worker maps them.
        "data": ray.put(prepared),
        "plan": {key: planned[key] for key in (*RESUMED_BY, "cut")},
    }
    with following(storage, on_progress):
        progress, dtype = _fit(lambda: _trainer(task, scaling), storage)
    storage.write_bytes("curves.png", draw_curves(read_metrics(storage)))
    return TrainResult(
        examples=len(prepared.training) + len(prepared.validation),
        steps=progress["step"],
        tokens=progress["tokens"],
        seconds=progress["seconds"],
        final_loss=progress["loss"],
        validation_loss=progress["validation_loss"],
        best_ndcg=progress["best_score"] if config.dev else None,
        best_step=progress["best_step"],
        exported_step=(progress["best_step"] if config.training.export == "best" else None) or progress["step"],
        cut=planned["cut"],
        model_dir=storage.display_path("model"),
        dtype=dtype,
    )


def _fit(trainer: Callable[[], TorchTrainer], storage: Storage) -> tuple[dict[str, Any], str | None]:
    """The progress and the dtype that the workers return, of trainers that each go on from the last checkpoint.

    A death is a worker's, its node's (one that is told before, too), or that of Ray Train's controller.
    """
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    furthest, crashes = _steps(storage), 0
    while True:
        try:
            ended = trainer().fit().return_value
        except (TrainingFailedError, RayActorError) as error:
            if _had_no_room(error):
                raise EngineError(
                    f"the cluster had no room for the workers within {MINUTES_WAITED} minutes: it lost a node, or other "
                    "work holds it; the same command goes on from the last checkpoint"
                ) from error
            cause, reached = _cause(error), _steps(storage)
            furthest, crashes = max(furthest, reached), 1 if reached > furthest else crashes + 1
            if crashes > CRASHES_TOLERATED:
                raise cause from error
            _log.warning("training died after step %d, and goes on from its last checkpoint: %s", reached, cause)
        else:
            if error := ended.get("error"):
                raise error
            return ended["progress"], ended["dtype"]


def _steps(storage: Storage) -> int:
    """How many were made, of which those since the last checkpoint are made again; of a store that
    does not say now, none."""
    try:
        return steps_made(storage)
    except OSError as error:
        _log.warning("the steps that were made cannot be read: %s", error)
        return 0


def _trainer(task: dict[str, Any], scaling: ScalingConfig) -> TorchTrainer:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Ray Train's own handler would outlive the training, and end an interrupted job with 0."""

    config: TrainJob = task["config"]
    storage: Storage = task["storage"]
    files, path = filesystem(storage.root)
    # The last one is kept whatever its score; but where all scores are equal, it is the highest itself.
    are_scored = config.dev or task["plan"]["validation_examples"]
    return Trainer(
        train_worker,
        train_loop_config=task,
        scaling_config=scaling,
        # The same name and path are what Ray Train resumes by. Its log repeats, at length,
        # the error that is raised below; its files below the Ray session keep everything.
        run_config=RunConfig(
            name=checkpoints.FOLDER,
            storage_path=path,
            storage_filesystem=files if is_uri(storage.root) else None,
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.training.keep_checkpoints + (0 if are_scored else 1),
                checkpoint_score_attribute=checkpoints.SCORE,
            ),
            # No death is borne here: they are counted by what was reached between them. To start is tried
            # again, and each time Ray Train waits a minute for room.
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=MINUTES_WAITED - 1
            ),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


@dataclass(frozen=True)
class _Worker:
    """What a worker of training takes of a cluster."""

    memory_bytes: int
    holds_model = True


def _scaling(config: TrainJob, needed: int) -> ScalingConfig:
    from ray.train import ScalingConfig

    wanted = reserve(
        [_Worker(needed)],
        config.workers,
        config.workers.min_replicas,
        spare_cpus=0,
        memory_of="training.batch_size, training.method: one worker's weights, optimizer and activations",
    )
    return ScalingConfig(
        num_workers=config.workers.min_replicas,
        accelerator_type=config.workers.accelerator,
        use_gpu=wanted["num_gpus"] > 0,
        resources_per_worker={"CPU": wanted["num_cpus"]} | ({"GPU": wanted["num_gpus"]} if wanted["num_gpus"] else {}),
    )


def _cause(error: Exception) -> LimrankError:
    """What a death comes to, in one line."""
    from ray.train import ControllerError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        return _of_workers(error.worker_failures)
    inner = error.controller_failure if isinstance(error, ControllerError) else error
    return EngineError(f"training failed: {type(inner).__name__}: {_last_line(inner)}")


def _had_no_room(error: Exception) -> bool:
    from ray.train import ControllerError

    # The class is in a private module of Ray Train's.
    return (
        isinstance(error, ControllerError)
        and type(error.controller_failure).__name__ == "WorkerGroupStartupTimeoutError"
    )


def _of_workers(failures: dict[int, Exception]) -> LimrankError:
    """The one error that says most, of those that the workers ended with.

    When one worker fails, the others fail too, by losing it; an error that limrank
    raised on purpose is the first cause, whichever rank it came from.
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
