"""A run's checkpoints, which Ray Train stores in ``checkpoints/`` of the run directory."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from limrank.errors import EngineError, UserError, first_line
from limrank.parsing import parse_json
from limrank.storage import Storage, filesystem

if TYPE_CHECKING:
    from ray.train import Checkpoint

    from limrank.training.state import Progress

_log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""The run's name for Ray Train, which finds a run by its name and directory."""

STATE_FILE = "state.pt"

SCORE = "score"
"""The metric by which Ray Train finds the best checkpoint: the score of an evaluation, or
:data:`NO_SCORE` without one."""

NO_SCORE = -1e9
"""Below all scores. Not an infinity, which the JSON of Ray Train's index cannot hold."""

_STATE_KEYS = {"plan", "parameters", "optimizer", "schedule", "progress", "over"}

_INDEX = f"{FOLDER}/checkpoint_manager_snapshot.json"
_CHECKPOINT = "checkpoint_"


def save(state: dict[str, Any] | None, progress: Progress) -> None:
    """Report to Ray Train, which every worker must do equally often; only the first passes a ``state``."""
    import torch
    from ray.train import Checkpoint, report

    is_best = progress.step == progress.best_step
    # Ray Train keeps the last checkpoint, and those with the highest scores.
    metrics = {"step": progress.step, SCORE: progress.best_score if is_best else NO_SCORE}
    if state is None:
        report(metrics)
        return
    with tempfile.TemporaryDirectory() as work:
        torch.save(state, Path(work) / STATE_FILE)
        # report() returns after the checkpoint was copied to the run's storage.
        report(metrics, checkpoint=Checkpoint.from_directory(work))


def load(storage: Storage, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The last saved state; None if there is none.

    Raises:
        UserError: it belongs to another plan.
    """
    from ray.train import get_checkpoint

    checkpoint = get_checkpoint()
    saved = _whole(checkpoint, storage) if checkpoint else None
    saved = saved or next(_found(storage), None)
    if saved is None:
        return None
    was = saved["plan"]
    differing = [f"{key} {was.get(key)} → {plan[key]}" for key in plan if was.get(key) != plan[key]]
    if differing:
        raise UserError(
            f"the checkpoints in this run directory belong to another plan ({', '.join(differing)}): "
            "restore what was changed (workers.replicas, the training file), or start over with --overwrite"
        )
    return saved


def of_step(storage: Storage, step: int) -> dict[str, Any]:
    """The state that was saved after ``step`` steps.

    Raises:
        EngineError: there is none.
    """
    from ray.train import get_all_reported_checkpoints

    for each in get_all_reported_checkpoints():
        if each.metrics["step"] == step and (saved := _whole(each.checkpoint, storage)):
            return saved
    for saved in _found(storage):
        if saved["progress"]["step"] == step:
            return saved
    raise EngineError(
        f"the checkpoint of step {step}, whose weights are the best, is not in {storage.display_path(FOLDER)}"
    )


def drop_broken_index(storage: Storage) -> None:
    """Remove Ray Train's index of checkpoints if it is incomplete.

    Ray Train writes the index in place: a driver that is killed meanwhile leaves half of it, and Ray
    Train then refuses the whole run. Without an index it starts a new one, and :func:`load` finds the
    checkpoints themselves.
    """
    try:
        index = parse_json(storage.read_bytes(_INDEX), _INDEX, finite=False)
    except FileNotFoundError:
        return
    except UserError:
        index = None
    listed = index.get("checkpoint_results") if isinstance(index, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        _log.warning("%s is incomplete because its driver crashed: it is rebuilt", storage.display_path(_INDEX))
        storage.remove(_INDEX)


def _found(storage: Storage) -> Iterator[dict[str, Any]]:
    """The states in the folder, last one first (checkpoints are named by their time). Incomplete
    checkpoints are skipped."""
    from ray.train import Checkpoint

    files, path = filesystem(storage.root)
    names = [name for name in storage.others(FOLDER) if name.startswith(_CHECKPOINT)]
    for name in sorted(names, reverse=True):
        if saved := _whole(Checkpoint(f"{path}/{FOLDER}/{name}", filesystem=files), storage):
            yield saved


def _whole(checkpoint: Checkpoint, storage: Storage) -> dict[str, Any] | None:
    """The state of a checkpoint; None, and a warning, if it is damaged or not ours."""
    import torch

    try:
        with checkpoint.as_directory() as directory:
            saved = torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not saved.keys() >= _STATE_KEYS:
            raise ValueError("it holds no training state")
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError) as error:
        name = f"{FOLDER}/{Path(checkpoint.path).name}"
        _log.warning("%s is skipped: %s", storage.display_path(name), first_line(error))
        return None
    return saved
