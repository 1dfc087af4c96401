"""Whether a directory may be a run's. limrank writes into a new directory, an empty one, or one that holds a run
of its own, and into nothing else. Two questions: where the directory lies, and what it holds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from limrank.batch.lock import read_lock
from limrank.batch.manifest import Manifest, read_manifest
from limrank.batch.plan import read_plan
from limrank.config import JOBS, EvaluateJob, Job, is_uri
from limrank.config.recipe import input_paths
from limrank.errors import StorageError, UserError
from limrank.outputs import EVALUATION, is_folder, is_litter
from limrank.parsing import clipped, parse_json
from limrank.storage import Storage

INSTEAD = "take a directory of its own, such as -s run_dir=runs/mine"

_NAMED = 3
"""How many files a message names."""


# ---- a job's directory ---------------------------------------------------------------


def check_run_dir(config: Job) -> None:
    """Check whether a job may have its ``run_dir``. Nothing is written.

    Raises:
        UserError: as :func:`~limrank.batch.rundir.open_run` and :func:`open_outputs`.
    """
    storage = Storage(config.run_dir)
    if not isinstance(config, EvaluateJob):
        check_location(config.run_dir, input_paths(config))
        with usable(config.run_dir):
            existing_manifest(storage)
        return
    check_location(config.run_dir)
    if not config.evaluation.run and not config.evaluation.compare:
        return  # a rerank job's directory, which `inputs.py` checks when it reads the run
    with usable(config.run_dir):
        manifest = existing_manifest(storage, evaluation=True)
    if manifest is None:
        check_location(config.run_dir, input_paths(config))
    elif manifest.job != "rerank":
        raise UserError(f"run_dir {storage.root}: holds a {manifest.job} run; {INSTEAD}")


def check_run_dir_first(config: Job) -> None:
    """Refuse a directory of the user's before anything is read or fetched.

    ``serve`` writes no directory. ``evaluate`` checks after it has read what it evaluates. A directory in an
    object store is checked once, when the run is opened.

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


# ---- where it lies -------------------------------------------------------------------


def check_location(run_dir: str, inputs: Iterable[tuple[str, str]] = ()) -> None:
    """Check where a run directory lies. Nothing is read or written.

    Args:
        inputs: (recipe key, path or URI) of everything that the job reads.

    Raises:
        UserError: it is no path; the root, a home or the working directory, or a directory around one of
            these; an input, or a directory around an input.
    """
    if not run_dir.strip() or "\0" in run_dir:
        raise UserError(f"run_dir: {run_dir!r} is no directory; {INSTEAD}")
    if not is_uri(run_dir):
        _check_not_home(run_dir)
    for key, path in inputs:
        if contains(run_dir, path):
            raise UserError(f"run_dir {run_dir}: holds {key} ({path}), which a run must not touch; {INSTEAD}")


def _check_not_home(run_dir: str) -> None:
    homes = [("the home directory", home) for home in (os.path.expanduser("~"), *_home_of_account())]
    for what, path in (*homes, ("the working directory", os.path.abspath("."))):
        # "~" stays "~" where no home is known.
        if Path(path).is_absolute() and contains(run_dir, path):
            raise UserError(f"run_dir {run_dir}: is {what}, or a directory around it; {INSTEAD}")


def _home_of_account() -> list[str]:
    """The home of this process's user, whatever $HOME says; [] for an account that the system does not know."""
    import pwd

    try:
        return [pwd.getpwuid(os.getuid()).pw_dir]
    except KeyError:
        return []


def contains(directory: str, path: str) -> bool:
    """Whether a path or URI is a directory, or lies below it. The file system decides for local paths, with
    links and letter case; the names decide in an object store."""
    if is_uri(directory) or is_uri(path):
        if not (is_uri(directory) and is_uri(path)):
            return False
        outer, inner = _uri_components(directory), _uri_components(path)
        return inner[: len(outer)] == outer
    outer_path = os.path.realpath(os.path.expanduser(directory))
    inner_path = Path(os.path.realpath(os.path.expanduser(path)))
    return any(_is_same(outer_path, each) for each in (inner_path, *inner_path.parents))


def _is_same(one: str, other: Path) -> bool:
    try:
        return other.samefile(one)
    except (OSError, ValueError):
        return one == str(other)


def _uri_components(uri: str) -> tuple[str, ...]:
    """Scheme, bucket and path components."""
    split = urlsplit(uri)
    scheme = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}.get(split.scheme.lower(), split.scheme.lower())
    names = [each for each in split.path.split("/") if each not in ("", ".")]
    return (scheme, split.netloc.rpartition("@")[2].lower(), *names)


# ---- what it holds -------------------------------------------------------------------


def existing_manifest(storage: Storage, *, evaluation: bool = False) -> Manifest | None:
    """The manifest of the run that a directory holds; None where the directory is new or empty. Nothing is written.

    Args:
        evaluation: also accept a directory that ``limrank evaluate`` made for itself.

    Raises:
        UserError: it holds anything else, or one of the run's folders is a link.
    """
    names = [name for name in storage.entries() if not is_litter(name)]
    if "manifest.json" in names:
        manifest = run_manifest(storage)
        _, folders, links = ([], [], []) if is_uri(storage.root) else storage.walk()
        if linked := [each for each in links if each in folders and is_folder(each, manifest.job)]:
            raise UserError(
                f"run_dir {storage.root}: {listed(linked)}: a link to another directory, where limrank writes nothing"
            )
        return manifest
    # A driver killed at once leaves nothing but its lock, whole or empty.
    if "lock.json" in names and (read_lock(storage) or not storage.read_bytes("lock.json").strip()):
        names.remove("lock.json")
    # A plan that was written ahead of its run.
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


def run_manifest(storage: Storage, name: str = "manifest.json") -> Manifest:
    """The manifest of a run that limrank wrote.

    Raises:
        UserError: anything else wrote it. It stays as it is, with ``--overwrite`` too.
    """
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
    """Whether ``metrics.json`` is one of limrank's, or there are no outputs of an evaluation yet."""
    if not storage.exists("metrics.json"):
        return not any(map(storage.exists, EVALUATION))
    try:
        metrics = parse_json(storage.read_bytes("metrics.json"), "metrics.json")
    except (UserError, OSError):
        return False
    return isinstance(metrics, dict) and isinstance(metrics.get("bootstrap"), dict)


# ---- shared --------------------------------------------------------------------------


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(clipped, names[:_NAMED])) + more


@contextlib.contextmanager
def usable(path: str) -> Iterator[None]:
    """Turn every error of a directory that cannot be used into a UserError that names it."""
    try:
        yield
    except StorageError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: no store has such a URI
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"run_dir {path}: cannot be written: {reason}") from error


def make(path: str) -> None:
    """Make a local directory; an object store has none."""
    if not is_uri(path):
        Path(path).mkdir(parents=True, exist_ok=True)
