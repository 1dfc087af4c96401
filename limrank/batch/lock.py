"""``lock.json``: one driver at a time works in a run directory.

The holder renews its lock. A lock that is not renewed, or whose process on this host is gone, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from limrank.errors import UserError
from limrank.parsing import parse_json
from limrank.storage import Storage
from limrank.uris import is_uri

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 20.0
"""A lock that was not renewed for so long is taken over. The contract allows 30 s."""


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[None]:
    """Hold the lock of a run directory while the ``with`` block runs.

    Raises:
        UserError: another driver holds it.
    """
    token = uuid.uuid4().hex
    with _exclusive(storage):
        held = read_lock(storage)
        if held and not _is_abandoned(held):
            raise UserError(
                f"run_dir {storage.root}: process {held.get('pid')} on {held.get('host')} is working in it; "
                "wait for it, or take another run_dir"
            )
        _write_lock(storage, token)
    if is_uri(storage.root):
        # An object store has no exclusive create: wait for a racing writer, then read who won.
        time.sleep(1.0)
        if not _is_held(storage, token):
            raise UserError(f"run_dir {storage.root}: another driver took it at the same moment")
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(storage, token, stop), daemon=True, name="run-lock")
    renewal.start()
    try:
        yield
    finally:
        stop.set()
        renewal.join()
        # A lost store raises its own error on the way out, and its lock grows stale.
        with contextlib.suppress(OSError):
            if _is_held(storage, token):
                storage.remove("lock.json")


def read_lock(storage: Storage) -> dict[str, Any] | None:
    """The holder (token, host, pid, time of renewal); None where there is no lock, or ``lock.json`` is not limrank's."""
    try:
        held = parse_json(storage.read_bytes("lock.json"), "lock.json")
    except (OSError, UserError):
        return None
    kinds = {"token": str, "host": str, "pid": int, "renewed": (int, float)}
    is_ours = isinstance(held, dict) and all(isinstance(held.get(key), kind) for key, kind in kinds.items())
    return held if is_ours else None


@contextlib.contextmanager
def _exclusive(storage: Storage) -> Iterator[None]:
    """One driver on this file system reads and writes the lock at a time. Two that start together, or that both
    find an abandoned lock, must not both take it. The system releases it when the process ends."""
    if is_uri(storage.root):
        yield
        return
    import fcntl

    folder = os.open(storage.root, os.O_RDONLY)
    try:
        # Some network file systems cannot lock a folder. lock.json still works there.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _is_held(storage: Storage, token: str) -> bool:
    return (read_lock(storage) or {}).get("token") == token


def _write_lock(storage: Storage, token: str) -> None:
    holder = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
    storage.write_text("lock.json", json.dumps(holder))


def _renew(storage: Storage, token: str, stop: threading.Event) -> None:
    while not stop.wait(LOCK_HEARTBEAT_S):
        # A full disk or a lost network must not end the driver here. Its own writes raise the error.
        with contextlib.suppress(OSError), _exclusive(storage):
            # A driver that was suspended (a laptop asleep) may have lost its lock to another.
            if _is_held(storage, token):
                _write_lock(storage, token)


def _is_abandoned(held: dict[str, Any]) -> bool:
    if time.time() - held.get("renewed", 0) > LOCK_STALE_S:
        return True
    return held.get("host") == socket.gethostname() and not _is_running(held.get("pid", -1))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
