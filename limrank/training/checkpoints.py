"""A run's checkpoints, which Ray Train keeps in ``checkpoints/`` of the run directory."""

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
"""The run's name for Ray Train: by it, and by the run directory, Ray Train finds it again."""

STATE_FILE = "state.pt"

SCORE = "score"
"""By what Ray Train tells the best checkpoint: a look's score, or where nobody looked
:data:`NO_SCORE`."""

NO_SCORE = -1e9
"""Below all; an infinity does not outlive the JSON that Ray Train keeps its checkpoints in."""

_PARTS = {"plan", "parameters", "optimizer", "schedule", "progress", "over"}

_INDEX = f"{FOLDER}/checkpoint_manager_snapshot.json"
_CHECKPOINT = "checkpoint_"


def save(state: dict[str, Any] | None, progress: Progress) -> None:
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


def load(storage: Storage, plan: dict[str, Any]) -> dict[str, Any] | None:
    """The last state that was saved; None where there is none.

    Raises:
        UserError: it is one of another plan.
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
    """The state that was saved after so many steps.

    Raises:
        EngineError: it is not there.
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
    """Ray Train writes the list of a run's checkpoints in place: a driver that is killed
    meanwhile leaves half of it, and Ray Train then refuses the whole run. Without the list
    it begins a new one, and :func:`load` finds the checkpoints themselves."""
    try:
        index = parse_json(storage.read_bytes(_INDEX), _INDEX, finite=False)
    except FileNotFoundError:
        return
    except UserError:
        index = None
    listed = index.get("checkpoint_results") if isinstance(index, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        _log.warning("%s was half written when its driver died: made anew", storage.display_path(_INDEX))
        storage.remove(_INDEX)


def _found(storage: Storage) -> Iterator[dict[str, Any]]:
    """The states in the folder, last one first (a checkpoint is named by its time); one that was
    not copied to its end is passed over."""
    from ray.train import Checkpoint

    files, path = filesystem(storage.root)
    names = [name for name in storage.others(FOLDER) if name.startswith(_CHECKPOINT)]
    for name in sorted(names, reverse=True):
        if saved := _whole(Checkpoint(f"{path}/{FOLDER}/{name}", filesystem=files), storage):
            yield saved


def _whole(checkpoint: Checkpoint, storage: Storage) -> dict[str, Any] | None:
    """What a checkpoint holds; None, and a warning, where it is damaged or none of ours."""
    import torch

    try:
        with checkpoint.as_directory() as directory:
            saved = torch.load(Path(directory) / STATE_FILE, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or not saved.keys() >= _PARTS:
            raise ValueError("it holds no state of a training")
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, TypeError) as error:
        name = f"{FOLDER}/{Path(checkpoint.path).name}"
        _log.warning("%s is passed over: %s", storage.display_path(name), first_line(error))
        return None
    return saved
