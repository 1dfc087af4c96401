"""What each Ray Train worker runs: the loop, with checkpoints, metrics and the export."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limrank.config import TrainJob
from limrank.errors import UserError
from limrank.training.curves import keep_steps

STATE_FILE = "state.pt"


def train_worker(task: dict[str, Any]) -> dict[str, Any]:
    """Train, or go on from the last checkpoint, and export; the same in every worker.

    Args:
        task: ``config`` (a TrainJob), ``model_dir``, ``directory`` (which every worker
            can see), ``examples`` (a Ray reference to the encoded training and
            validation examples) and ``plan`` (what a checkpoint must agree with).

    Returns:
        The fields of :class:`~limrank.training.loop.Progress` at the end.
    """
    import ray
    import torch
    import transformers
    from ray.train.torch import get_device

    from limrank.training.loop import Progress, TrainState, train
    from limrank.training.model import load_for_training, merge_and_save

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
    if saved and saved["progress"]["step"] == total_steps and (directory / "model").is_dir():
        return saved["progress"]

    dtype = training_dtype(config.model.dtype, device.type)
    # Every worker draws the same adapter.
    torch.manual_seed(config.seed)
    model, tokenizer = load_for_training(task["model_dir"], config.training, dtype)
    state = TrainState(model.to(device), config.training, total_steps)
    if saved:
        state.load_state_dict(saved)
    metrics_file = directory / "metrics.jsonl"
    if first:
        keep_steps(metrics_file, up_to=state.progress.step)

    def on_step(metrics: dict[str, Any]) -> None:
        if first:
            with metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        if metrics["step"] % config.training.save_steps == 0 or metrics["step"] == total_steps:
            _save_checkpoint(state.state_dict() | {"plan": task["plan"]} if first else None, metrics)

    training, validation = ray.get(task["examples"])
    progress: Progress = train(
        state,
        training,
        config.training,
        seed=config.seed,
        pad_id=tokenizer.eos_token_id,
        validation=validation,
        device=device,
        mixed_precision=dtype != torch.float32,
        on_step=on_step,
    )
    if first:
        merge_and_save(model, tokenizer, directory, dtype)
    return asdict(progress)


def training_dtype(name: str, device: str):
    """``model.dtype`` as a torch dtype; ``auto`` is float32 on a CPU and bfloat16 on a GPU."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device == "cuda" else torch.float32
    return getattr(torch, name)


def _save_checkpoint(state: dict[str, Any] | None, metrics: dict[str, Any]) -> None:
    """Report to Ray Train, which every worker must do equally often; the first hands in the state."""
    import torch
    from ray.train import Checkpoint, report

    if state is None:
        report(metrics)
        return
    with tempfile.TemporaryDirectory() as work:
        torch.save(state, Path(work) / STATE_FILE)
        # Ray Train copies it to the run's storage before this returns.
        report(metrics, checkpoint=Checkpoint.from_directory(work))


def _load_checkpoint(plan: dict[str, Any]) -> dict[str, Any] | None:
    import torch
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as directory:
        saved = torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
    differing = [f"{key} {saved['plan'][key]} → {plan[key]}" for key in plan if saved["plan"].get(key) != plan[key]]
    if differing:
        raise UserError(
            f"the checkpoints in this run directory belong to another plan ({', '.join(differing)}): "
            "restore what was changed (workers.replicas, the training file), or start over with --overwrite"
        )
    return saved
