"""What each Ray Train worker runs: the loop, with checkpoints, metrics and the export."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank import models
from limrank.config import TrainJob
from limrank.errors import LimrankError, UserError
from limrank.training.curves import Board, keep_steps

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from limrank.training.prepare import Prepared
    from limrank.training.state import Progress

STATE_FILE = "state.pt"

SCORE = "score"
"""By what Ray Train tells the best checkpoint: a look's score, or where nobody looked
:data:`NO_SCORE`."""

NO_SCORE = -1e9
"""Below all; an infinity does not outlive the JSON that Ray Train keeps its checkpoints in."""


def train_worker(task: dict[str, Any]) -> dict[str, Any]:
    """Train, or go on from the last checkpoint, and export; the same in every worker.

    Args:
        task: ``config`` (a TrainJob), ``directory`` (which every worker can see), ``data`` (a
            Ray reference to what was prepared) and ``plan`` (what a checkpoint must agree with).

    Returns:
        ``progress``, the fields of :class:`~limrank.training.state.Progress` at the end; or
        ``error``, which all workers come to at once and which another try would not mend
        (what is raised, Ray Train takes for a death, and starts all of them again).
    """
    try:
        return {"progress": _train(task)}
    except LimrankError as error:
        return {"error": error}


def _train(task: dict[str, Any]) -> dict[str, Any]:
    import ray
    import torch
    import transformers
    from ray.train.torch import get_device

    from limrank.engines.base import label_token_ids
    from limrank.scoring import LABELS
    from limrank.training import card
    from limrank.training.attention import check_packing
    from limrank.training.loop import train
    from limrank.training.model import load_for_training, merge_and_save
    from limrank.training.processes import agree
    from limrank.training.sharding import shard
    from limrank.training.state import TrainState

    transformers.utils.logging.disable_progress_bar()
    config: TrainJob = task["config"]
    directory, total_steps = Path(task["directory"]), task["plan"]["steps"]
    first = ray.train.get_context().get_world_rank() == 0
    device = get_device()
    if device.type == "cpu":
        # Ray sets as many threads as a worker has logical CPUs, mostly one; a node's cores
        # are there for its workers.
        here = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    saved = _load_checkpoint(task["plan"])
    if saved and saved["over"] and (directory / "model").is_dir():
        return saved["progress"]

    dtype = training_dtype(config.model.dtype, device.type)
    # Every worker draws the same adapter.
    torch.manual_seed(config.seed)
    sharded = config.training.sharding == "full" and ray.train.get_context().get_world_size() > 1
    prepared: Prepared = ray.get(task["data"])
    error = None
    try:
        model_dir = models.resolve(config.model.id)
        model, tokenizer = load_for_training(model_dir, config.training, dtype)
        check_packing(model, prepared.longest)
    except LimrankError as found:  # a node may lack what another has
        error = found
    agree(error)
    if sharded:
        shard(model, mixed_precision=dtype != torch.float32)
    else:
        model.to(device)
    state = TrainState(model, config.training, total_steps)
    if saved:
        state.load_state_dict(saved)
    metrics_file = directory / "metrics.jsonl"
    if first:
        keep_steps(metrics_file, up_to=state.progress.step)
    board = Board(directory / "tensorboard", state.progress.step) if first and config.training.tensorboard else None

    def on_step(metrics: dict[str, Any], over: bool) -> None:
        if first:
            with metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        if board:
            board.add(metrics)
        progress = state.progress
        if over or progress.step % config.training.save_steps == 0 or progress.step == progress.best_step:
            found = state.state_dict(first) | {"plan": task["plan"], "over": over} if first or sharded else None
            _save_checkpoint(found if first else None, progress)

    progress: Progress = train(
        state,
        prepared.training,
        config.training,
        seed=config.seed,
        labels=tuple(label_token_ids(tokenizer, LABELS)),
        validation=prepared.validation,
        dev=prepared.dev,
        device=device,
        mixed_precision=dtype != torch.float32,
        on_step=on_step,
    )
    values = state.whole_parameters(first) if sharded else None
    if first:
        if progress.best_step not in (None, progress.step):
            values = _checkpoint_of(progress.best_step)["parameters"]
        if sharded:
            model, _ = load_for_training(model_dir, config.training, dtype)
            state = TrainState(model, config.training, total_steps)
        if values:
            state.load_parameters(values)
        cards = card.render(config, task["plan"], asdict(progress))
        merge_and_save(model, tokenizer, directory, dtype, base=config.model.id, cards=cards)
    return asdict(progress)


def training_dtype(name: str, device: str):
    """``model.dtype`` as a torch dtype; ``auto`` is float32 on a CPU and bfloat16 on a GPU."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    return getattr(torch, name)


def _save_checkpoint(state: dict[str, Any] | None, progress: Progress) -> None:
    """Report to Ray Train, which every worker must do equally often; the first hands in the state."""
    import torch
    from ray.train import Checkpoint, report

    is_best = progress.step == progress.best_step
    # Ray Train keeps the last ones, and those with the highest score.
    metrics = {"step": progress.step, SCORE: progress.best_score if is_best else NO_SCORE}
    if state is None:
        report(metrics)
        return
    with tempfile.TemporaryDirectory() as work:
        torch.save(state, Path(work) / STATE_FILE)
        # Ray Train copies it to the run's storage before this returns.
        report(metrics, checkpoint=Checkpoint.from_directory(work))


def _load_checkpoint(plan: dict[str, Any]) -> dict[str, Any] | None:
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return None
    saved = _read(checkpoint)
    was = saved["plan"]
    differing = [f"{key} {was.get(key)} → {plan[key]}" for key in plan if was.get(key) != plan[key]]
    if differing:
        raise UserError(
            f"the checkpoints in this run directory belong to another plan ({', '.join(differing)}): "
            "restore what was changed (workers.replicas, the training file), or start over with --overwrite"
        )
    return saved


def _checkpoint_of(step: int) -> dict[str, Any]:
    from ray.train import get_all_reported_checkpoints

    (checkpoint,) = (each.checkpoint for each in get_all_reported_checkpoints() if each.metrics["step"] == step)
    return _read(checkpoint)


def _read(checkpoint: Checkpoint) -> dict[str, Any]:
    import torch

    with checkpoint.as_directory() as directory:
        return torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
