"""The function of a Ray Train worker: the loop with checkpoints, metrics and the export."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from limrank import models
from limrank.config import TrainJob
from limrank.dtypes import auto_dtype
from limrank.errors import LimrankError, StorageError
from limrank.storage import Storage
from limrank.training import checkpoints
from limrank.training.curves import Board
from limrank.training.metrics import MetricsWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from limrank.training.prepare import Prepared
    from limrank.training.state import Progress


def train_worker(task: dict[str, Any]) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one, and export. Every worker runs this.

    Args:
        task: ``config`` (a TrainJob), ``storage`` (which every worker can see), ``data`` (a Ray reference
            to a :class:`~limrank.training.prepare.Prepared`) and ``plan`` (which a checkpoint has to
            agree with).

    Returns:
        ``progress``, the fields of :class:`~limrank.training.state.Progress` at the end, and ``dtype``,
        that of the computation. Or ``error``, an error that all workers have at the same time and that a
        retry would not fix: an exception would be a crash for Ray Train, which restarts all workers.
    """
    try:
        progress, dtype = _train(task)
        return {"progress": progress, "dtype": dtype}
    except StorageError:
        raise  # only the first worker has it, and the others wait for that one
    except LimrankError as error:
        return {"error": error}


def _train(task: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
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
    from limrank.training.processes import gathered, in_turn
    from limrank.training.sharding import mesh_of, shard
    from limrank.training.state import TrainState

    transformers.utils.logging.disable_progress_bar()
    config: TrainJob = task["config"]
    storage: Storage = task["storage"]
    total_steps = task["plan"]["steps"]
    context = ray.train.get_context()
    first = context.get_world_rank() == 0
    here = context.get_local_world_size()
    device = get_device()
    if device.type == "cpu":
        # Ray sets as many threads as a worker has logical CPUs, mostly one; a node's cores
        # are there for its workers.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))
    saved = checkpoints.load(storage, task["plan"])
    if saved and saved["over"] and gathered(first and storage.exists(f"model/{models.MODEL_CONFIG}"))[0]:
        return saved["progress"], saved.get("dtype")

    # A resumed run keeps its dtype, whatever machine it continues on.
    dtype_name = saved["dtype"] if saved and "dtype" in saved else _agreed_dtype(config.model.dtype, device.type)
    dtype = getattr(torch, dtype_name)
    mixed_precision = dtype != torch.float32
    sharded = config.training.sharding == "full" and context.get_world_size() > 1
    mesh = mesh_of(device) if sharded else None
    prepared: Prepared = ray.get(task["data"])

    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        # Every worker draws the same adapter.
        torch.manual_seed(config.seed)
        model, tokenizer = load_for_training(model_dir, config.training, dtype)
        check_packing(model)
        if mesh:
            shard(model, mesh, mixed_precision)
        else:
            model.to(device)
        return model, tokenizer

    # All download at once: waiting for turns might exceed the group's timeout.
    model_dir = in_turn(lambda: models.resolve(config.model.id), 0, 1)
    # A model is unsharded while it loads, so a node loads one at a time.
    model, tokenizer = in_turn(load, *(context.get_local_rank(), here) if sharded else (0, 1))
    state = TrainState(model, config.training, total_steps)
    if saved:
        state.load_state_dict(saved)
    lines = MetricsWriter(storage, state.progress.step) if first else None
    board = None
    if first and config.training.tensorboard:
        board = Board(storage.local("tensorboard"), state.progress.step)

    def on_step(metrics: dict[str, Any], over: bool) -> None:
        progress = state.progress
        saves = over or progress.step % config.training.save_steps == 0 or progress.step == progress.best_step
        if lines:
            lines.add(metrics, now=saves)
        if board:
            board.add(metrics)
        if saves:
            found = (
                state.state_dict(first) | {"plan": task["plan"], "over": over, "dtype": dtype_name}
                if first or sharded
                else None
            )
            checkpoints.save(found if first else None, progress)

    writes, grades = config.training.task == "writer", config.training.labels is not None
    progress: Progress = train(
        state,
        prepared.training,
        config.training,
        seed=config.seed,
        labels=None if writes or grades else tuple(label_token_ids(tokenizer, LABELS)),
        validation=prepared.validation,
        dev=prepared.dev,
        device=device,
        mixed_precision=mixed_precision,
        on_step=on_step,
    )
    values = state.gathered_parameters(first) if sharded else None
    if first:
        if config.training.export == "best" and progress.best_step not in (None, progress.step):
            values = checkpoints.of_step(storage, progress.best_step)["parameters"]
        if sharded:
            model, _ = load_for_training(model_dir, config.training, dtype)
            state = TrainState(model, config.training, total_steps)
        if values:
            state.load_parameters(values)
        cards = card.render(config, task["plan"], asdict(progress))
        made_for = card.task_of(config.training)
        merge_and_save(model, tokenizer, storage, dtype, base=config.model.id, cards=cards, task=made_for)
    return asdict(progress), dtype_name


def _agreed_dtype(name: str, device: str) -> str:
    """The dtype of all workers, by name: ``model.dtype``, or if that is ``auto`` the best one for all of
    them, which is float32 if they differ."""
    from limrank.training.processes import gathered

    if name != "auto":
        return name
    found = set(gathered(auto_dtype(device, training=True)))
    return found.pop() if len(found) == 1 else "float32"
