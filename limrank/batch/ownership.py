"""Whose a directory is: a run's that limrank knows, or a person's, which stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limrank.batch.locations import INSTEAD, check_location
from limrank.batch.manifest import EMPTIED, Manifest, read_manifest
from limrank.batch.plan import read_plan
from limrank.config import JOBS, EvaluateJob, Job, is_uri
from limrank.config.recipe import input_paths
from limrank.errors import StorageError, UserError
from limrank.outputs import EVALUATION, is_folder, is_litter, is_written, stages
from limrank.parsing import clipped, parse_json
from limrank.storage import Storage

_NAMED = 3
"""How many files a message names."""


def existing_manifest(storage: Storage, *, evaluation: bool = False) -> Manifest | None:
    """The manifest of the run that a directory holds; None where it is new or empty. Nothing is touched.

    Args:
        evaluation: whether it may also be one that ``limrank evaluate`` has made for itself.

    Raises:
        UserError: it holds anything else, or a folder of the run is a link to another place.
    """
    names = [name for name in storage.entries() if not is_litter(name)]
    if "manifest.json" in names:
        manifest = _read_manifest(storage)
        _, folders, links = ([], [], []) if is_uri(storage.root) else storage.walk()
        if elsewhere := [each for each in links if each in folders and is_folder(each, manifest.job)]:
            raise UserError(
                f"run_dir {storage.root}: {listed(elsewhere)}: a link to another place, where limrank writes nothing"
            )
        return manifest
    # A driver that was killed at once has left its lock and nothing else, or half of it.
    if "lock.json" in names and (read_lock(storage) or not storage.read_bytes("lock.json").strip()):
        names.remove("lock.json")
    # A plan that was laid down ahead of its run.
    if (
        set(names) <= {"plan.json", "units", "rows", "failures", "attempts"}
        and "plan.json" in names
        and read_plan(storage)
    ):
        return None
    if evaluation and set(names) <= set(EVALUATION) and _is_evaluation(storage):
        return None
    if names:
        raise UserError(
            f"run_dir {storage.root}: holds what is not limrank's ({listed(names)}), and stays as it is; {INSTEAD}"
        )
    return None


def _read_manifest(storage: Storage, name: str = "manifest.json") -> Manifest:
    """The manifest of a run that limrank wrote. What anything else wrote stays, with --overwrite too."""
    try:
        manifest = read_manifest(storage, name)
    except UserError as error:
        raise UserError(f"{error}; {INSTEAD}") from None
    if manifest is None or not _is_of_limrank(manifest):
        raise UserError(f"run_dir {storage.root}: its {name} is not one of limrank's; {INSTEAD}")
    return manifest


def _is_of_limrank(manifest: Manifest) -> bool:
    return bool(
        manifest.schema_version and manifest.job in JOBS and manifest.config_hash and "limrank" in manifest.versions
    )


def _is_evaluation(storage: Storage) -> bool:
    """Whether ``metrics.json`` is one of limrank's, or nothing is there yet."""
    if not storage.exists("metrics.json"):
        return not any(map(storage.exists, EVALUATION))
    try:
        metrics = parse_json(storage.read_bytes("metrics.json"), "metrics.json")
    except (UserError, OSError):
        return False
    return isinstance(metrics, dict) and isinstance(metrics.get("bootstrap"), dict)


def check_run_dir(config: Job) -> None:
    """Look whether a job may have its ``run_dir``, for a dry run; nothing is touched.

    Raises:
        UserError: as :func:`open_run` and :func:`open_outputs` do.
    """
    storage = Storage(config.run_dir)
    if not isinstance(config, EvaluateJob):
        check_location(config.run_dir, input_paths(config))
        with usable(config.run_dir):
            existing_manifest(storage)
        return
    check_location(config.run_dir)
    if not config.evaluation.run and not config.evaluation.compare:
        return  # the rerank job's directory: whoever evaluates it reads its run, queries and judgements
    with usable(config.run_dir):
        manifest = existing_manifest(storage, evaluation=True)
    if manifest is None:
        check_location(config.run_dir, input_paths(config))
    elif manifest.job != "rerank":
        raise UserError(f"run_dir {storage.root}: holds a {manifest.job} run; {INSTEAD}")


def check_run_dir_first(config: Job) -> None:
    """Refuse what is a person's before anything is read or fetched.

    ``serve`` writes no directory, ``evaluate`` looks once it has read what it is to evaluate, and a store
    is asked once, when the run is opened.

    Raises:
        UserError: as :func:`check_run_dir`.
    """
    if config.job not in ("serve", "evaluate") and not is_uri(config.run_dir):
        check_run_dir(config)


def open_outputs(config: EvaluateJob) -> Storage:
    """The directory that ``limrank evaluate`` writes into: a rerank job's, or one of its own.

    Raises:
        UserError: it is neither, or cannot be written.
    """
    check_run_dir(config)
    with usable(config.run_dir):
        make(config.run_dir)
    return Storage(config.run_dir)


def clear(storage: Storage, manifest: Manifest) -> list[str]:
    """Delete what the directory's job has written, but for the lock, and give the names of what
    stays. A manifest stays too, as that of an emptied run: killed at any moment, the directory is
    still known to be limrank's, with a stranger's files in it as well. A link is deleted itself."""
    job = manifest.job
    names, folders, _ = storage.walk()
    for name in [each for each in names if each.rpartition("/")[2] == "manifest.json" and is_written(each, job)]:
        held = manifest if name == "manifest.json" else _read_manifest(storage, name)
        held.merged(status=EMPTIED).write(storage, name)
    kept = ("lock.json", "manifest.json")
    # Rows first: without the plan they mean nothing.
    for name in sorted(names, key=lambda name: not name.startswith("rows/")):
        if is_written(name, job) and name.rpartition("/")[2] not in kept:
            storage.remove(name)
    for name in sorted(folders, key=len, reverse=True):
        if is_folder(name, job) and name not in stages(job):
            storage.remove_folder(name)
    return [name for name in names if not is_written(name, job) and not is_litter(name.rpartition("/")[2])]


def read_lock(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock; None where there is none, or what is there is none of ours."""
    try:
        held = parse_json(storage.read_bytes("lock.json"), "lock.json")
    except (OSError, UserError):
        return None
    kinds = {"token": str, "host": str, "pid": int, "renewed": (int, float)}
    is_ours = isinstance(held, dict) and all(isinstance(held.get(key), kind) for key, kind in kinds.items())
    return held if is_ours else None


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(clipped, names[:_NAMED])) + more


@contextlib.contextmanager
def usable(path: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: pyarrow knows no such kind of URI
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"run_dir {path}: cannot be written: {reason}") from error


def make(path: str) -> None:
    if not is_uri(path):
        Path(path).mkdir(parents=True, exist_ok=True)
