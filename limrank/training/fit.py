"""Fine-tuning on Ray Train: what it takes, the workers, and what they leave in a directory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limrank.config import TrainJob
from limrank.engines import EngineSpec
from limrank.errors import EngineError, LimrankError
from limrank.resources import claim
from limrank.training.curves import draw_curves, read_metrics
from limrank.training.prepare import RESUMED_BY, Prepared, describe, prepare
from limrank.training.worker import SCORE, train_worker

CHECKPOINTS = "checkpoints"

DEATHS_BORNE = 3
"""A worker that dies is replaced, and all go on from the last checkpoint; so often in one call."""

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to; resumed parts included.

    ``examples`` and ``cut`` count lines of the training file (validation included),
    ``tokens`` all that was trained on over the epochs, ``seconds`` time in training
    steps. Losses are the mean over completion tokens (or queries): of the last step, and of the
    validation split at the last look (None where there is no split). ``best_step`` is the step whose
    weights were exported (None: the last), ``best_ndcg`` the dev set's nDCG@10 of these.
    """

    examples: int
    steps: int
    epochs: int
    tokens: int
    seconds: float
    final_loss: float
    validation_loss: float | None
    best_ndcg: float | None
    best_step: int | None
    cut: int
    model_dir: Path


def fit(
    config: TrainJob, directory: Path, on_progress: OnProgress | None = None, prepared: Prepared | None = None
) -> TrainResult:
    """Train on the Ray cluster that this process is connected to.

    Started again with the same directory it goes on from the last checkpoint.

    Args:
        directory: where ``checkpoints/ adapter/ model/ metrics.jsonl curves.png`` go;
            every worker must see it under the same path.
        on_progress: called, in a thread of its own, with the line of ``metrics.jsonl`` of
            each step that is new to it (see :func:`limrank.training.loop.train`).
        prepared: what :func:`~limrank.training.prepare.prepare` makes of the recipe, where
            it was made already.

    Raises:
        UserError: the file, the model, the dtype or the number of workers does not do.
        EngineError: a worker died, or the loss diverged.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("limrank.training.fit.fit needs a Ray that its caller has connected to")
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    prepared = prepared or prepare(config)
    planned = describe(config, prepared)
    metrics_file = directory / "metrics.jsonl"
    task = {
        "config": config,
        "directory": str(directory),
        # By reference: each node fetches the examples once, and each worker maps them.
        "data": ray.put(prepared),
        "plan": {key: planned[key] for key in (*RESUMED_BY, "cut")},
    }
    with _following(metrics_file, on_progress), _interrupt_handler_kept():
        progress = _fit(config, directory, task)
    draw_curves(read_metrics(metrics_file), directory / "curves.png")
    return TrainResult(
        examples=len(prepared.training) + len(prepared.validation),
        steps=progress["step"],
        epochs=config.training.epochs,
        tokens=progress["tokens"],
        seconds=progress["seconds"],
        final_loss=progress["loss"],
        validation_loss=progress["validation_loss"],
        best_ndcg=progress["best_score"] if config.dev else None,
        best_step=progress["best_step"],
        cut=planned["cut"],
        model_dir=directory / "model",
    )


def _fit(config: TrainJob, directory: Path, task: dict[str, Any]) -> dict[str, Any]:
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        LoggingConfig,
        RunConfig,
        TrainingFailedError,
        WorkerGroupError,
    )
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        train_worker,
        train_loop_config=task,
        scaling_config=_scaling(config),
        # The same name and path are what Ray Train resumes by. Its log repeats, at length,
        # the error that is raised below; its files below the Ray session keep everything.
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=str(directory),
            # The last one is kept whatever its score: the best and the last, or the last two.
            checkpoint_config=CheckpointConfig(
                num_to_keep=1 if config.dev or config.training.validation_share else 2, checkpoint_score_attribute=SCORE
            ),
            failure_config=FailureConfig(max_failures=DEATHS_BORNE),
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    try:
        ended = trainer.fit().return_value
    except WorkerGroupError as error:
        raise _cause(error.worker_failures) from error
    except TrainingFailedError as error:
        raise EngineError(f"training failed: {_last_line(error)}") from error
    if error := ended.get("error"):
        raise error
    return ended["progress"]


def _scaling(config: TrainJob):
    from ray.train import ScalingConfig

    wanted = claim([EngineSpec(config.model)], config.workers, config.workers.min_replicas, spare_cpus=0)
    return ScalingConfig(
        num_workers=config.workers.min_replicas,
        accelerator_type=config.workers.accelerator,
        use_gpu=wanted["num_gpus"] > 0,
        resources_per_worker={"CPU": wanted["num_cpus"]} | ({"GPU": wanted["num_gpus"]} if wanted["num_gpus"] else {}),
    )


def _cause(failures: dict[int, Exception]) -> LimrankError:
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
    return EngineError(f"training worker {rank} failed: {type(error).__name__}: {_last_line(error)}")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def _following(path: Path, on_progress: OnProgress | None, seconds: float = 0.5) -> Iterator[None]:
    """Hand on the line of each step that a metrics file gains while the block runs.

    A file is the one channel that does not slow the workers down (Ray Train takes in one
    report a poll, every two seconds) and that outlives a driver.
    """
    if on_progress is None:
        yield
        return
    ended = threading.Event()
    reported = max((line["step"] for line in read_metrics(path)), default=0)

    def follow() -> None:
        nonlocal reported
        last_look = False
        while not last_look:
            last_look = ended.wait(seconds)
            for line in read_metrics(path):
                if line["step"] > reported:
                    reported = line["step"]
                    on_progress(line)

    with ThreadPoolExecutor(1, thread_name_prefix="train-progress") as pool:
        following = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
        following.result()


@contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Undo what Ray Train does to SIGINT: its handler outlives the training."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
