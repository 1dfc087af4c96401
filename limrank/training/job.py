"""The train job: a run directory around the fine-tuning of ``fit.py``."""

from __future__ import annotations

import logging
import time
from typing import Any

from limrank import cluster, models, prompts
from limrank.batch.rundir import open_run
from limrank.config import TrainJob, config_hash, dump_config
from limrank.config.recipe import input_paths
from limrank.data import benchmarks
from limrank.printable import printable
from limrank.progress import Event, Progress
from limrank.result import JobResult
from limrank.training import writer
from limrank.training.encoding import encode_on_cluster
from limrank.training.fit import TrainResult, fit
from limrank.training.prepare import choose, prepare
from limrank.training.shapes import pair_prompt
from limrank.training.sources import fingerprint

_log = logging.getLogger(__name__)


def run(config: TrainJob, *, address: str, progress: Progress, overwrite: bool = False) -> JobResult:
    """Train into ``config.run_dir``; the same call continues from the last checkpoint.

    Raises:
        UserError, EngineError: see :func:`train_job`.
    """
    result = train_job(config, address=address, progress=progress, overwrite=overwrite)
    return JobResult(0, [], _messages(config, result))


def train_job(config: TrainJob, *, address: str, progress: Progress, overwrite: bool = False) -> TrainResult:
    """Train as :func:`run` does, and return the details.

    Raises:
        UserError: the file, the model, the dtype or the number of workers is unsuitable.
        EngineError: see :func:`~limrank.training.fit.fit`.
    """
    chosen = choose(config)
    with (
        open_run(
            config.run_dir,
            job="train",
            config_yaml=dump_config(config),
            config_hash=training_hash(config),
            overwrite=overwrite,
            inputs=input_paths(config),
        ) as run_dir,
        cluster.connect(address, paths=[config.run_dir]),
    ):
        for warning in chosen.warnings:  # shown now: the end may be days away
            _log.warning("%s", printable(warning))
        prepared = prepare(config, chosen, encode_on_cluster)
        steps = prepared.plan["steps"]
        progress.update(Event("train", 0, steps, "steps"))
        pace = Pace()
        result = fit(
            config, run_dir.storage, lambda line: progress.update(_event(line, steps, pace)), prepared, progress
        )
        progress.update(Event("train", result.steps, steps, "steps", finished=True))
        run_dir.note(
            counts={"units": result.examples, "rows": result.examples, "failed": 0, "cut": result.truncated},
            seconds={"work": round(result.seconds, 3)},
            tokens={"trained": result.tokens},
            dtype={"model": result.dtype},
            **({"teacher_temperature": chosen.temperature} if chosen.temperature else {}),
            **({"label_ends": list(chosen.ends)} if chosen.ends else {}),
            rates={"tokens_per_second": round(result.tokens / result.seconds, 1)} if result.seconds else {},
        )
        run_dir.finish("done")
    return result


def plan(config: TrainJob) -> dict[str, Any]:
    """What a run would do, for ``--dry-run``. Starts and writes nothing.

    Raises:
        UserError: as :func:`run` does for file, model, dtype and number of workers.
    """
    return prepare(config).plan


def training_hash(config: TrainJob) -> str:
    """The hash of everything that the trained weights depend on."""
    writes = config.training.task == "writer"
    return config_hash(
        {
            "job": "train",
            "train_file": (writer.fingerprint if writes else fingerprint)(config.training.train_file),
            "prompt": prompts.load(writer.PROMPT) if writes else pair_prompt(config.training.labels),
            "model": [config.model.model_dump(), models.fingerprint(config.model.id)],
            "training": config.training.hashed(_NOT_OF_WEIGHTS),
            # The excluded keys name contents that are in the fingerprint, or are here as text.
            "dev": [
                config.dev.model_dump(exclude={"data": {"path", "revision", "first_stage_queries", "query_template"}}),
                benchmarks.fingerprint(config.dev.data),
                benchmarks.query_template(config.dev.data),
            ]
            if config.dev
            else None,
            "seed": config.seed,
        }
    )


_NOT_OF_WEIGHTS = {
    *("train_file", "save_steps", "keep_checkpoints", "tensorboard"),
    *("gradient_checkpointing", "sharding"),
}
"""Settings that may change while a run directory keeps its checkpoints. The contents of ``train_file``
count."""


class Pace:
    """Steps a second since the first step that this call saw; None at that step."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def at(self, step: int) -> float | None:
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done, since = step - self._first[0], now - self._first[1]
        return done / since if done and since else None


def _event(line: dict[str, Any], steps: int, pace: Pace) -> Event:
    measures = (("validation_loss", "held out"), ("ndcg", "nDCG@10"))
    held_out = "".join(f", {name} {line[key]:.4f}" for key, name in measures if key in line)
    return Event(
        "train",
        line["step"],
        steps,
        "steps",
        rate=pace.at(line["step"]),
        tokens_per_second=line["tokens_per_second"],
        detail=f"loss {line['loss']:.4f}, lr {line['learning_rate']:.2g}{held_out}",
    )


def _messages(config: TrainJob, result: TrainResult) -> list[str]:
    held_out = "" if result.validation_loss is None else f", held out {result.validation_loss:.4f}"
    if result.best_step is not None:
        ranked = "" if result.best_ndcg is None else f", nDCG@10 {result.best_ndcg:.4f}"
        held_out += f", best at step {result.best_step}{ranked}"
    if result.exported_step != (result.best_step or result.steps):
        held_out += f", weights of step {result.exported_step}"
    rate = f", {result.tokens / result.seconds:.0f} tokens/s" if result.seconds else ""
    return [
        f"{result.examples} examples, {result.steps} steps, loss {result.final_loss:.4f}{held_out}{rate}, {result.truncated} truncated",
        f"model: {result.model_dir}",
    ]
