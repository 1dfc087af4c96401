"""``lock.json``: one driver at a time works in a run directory.

The holder renews its lock. A lock that is not renewed, or whose process on this host is gone, is taken over, and its
holder notices and stops. Ages are by the clock of what stores the file, so that clocks of machines may differ.

A local lock is read and written under ``flock``. In an object store every write has a condition: that there is no lock
(``If-None-Match``), or still the one that was read (``If-Match``, a generation on GCS). A store without conditional
writes gets the lock of :class:`_Unconditional`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from limrank.errors import LockLostError, UserError, first_line
from limrank.parsing import parse_json
from limrank.storage import Storage
from limrank.stores import patience

LOCK_HEARTBEAT_S = 5.0
LOCK_STALE_S = 20.0
"""A lock that was not renewed for so long is taken over. The contract allows 30 s."""

_FILE = "lock.json"
_AT_THE_END_S = 5.0
"""How long a driver that ends waits for a store that throttles."""

_RACE_S = 1.0
"""How long a driver waits for a racing one in a store without conditional writes."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(storage: Storage) -> Iterator[Lock]:
    """Hold the lock of a run directory while the ``with`` block runs.

    Where the block runs in the main thread, a lost lock interrupts it.

    Raises:
        UserError: another driver holds it.
        LockLostError: another driver has taken it over.
    """
    lock = _kind(storage)(storage)
    lock.take()
    renewal = threading.Thread(target=lock.keep, daemon=True, name="run-lock")
    renewal.start()
    try:
        try:
            yield lock
        finally:
            lock.stop.set()
            renewal.join()
    except KeyboardInterrupt:
        lock.check()
        raise
    finally:
        # A lost store raises its own error on the way out, and its lock grows stale.
        with contextlib.suppress(OSError), patience(_AT_THE_END_S):
            lock.release()
    lock.check()


def read_lock(storage: Storage) -> dict[str, Any] | None:
    """The holder (token, host, pid, time of renewal); None where there is no lock, or ``lock.json`` is not limrank's.

    Raises:
        StorageError: it cannot be read, and may be anybody's.
    """
    try:
        held = parse_json(storage.read_bytes(_FILE), _FILE)
    except (FileNotFoundError, UserError):
        return None
    kinds = {"token": str, "host": str, "pid": int, "renewed": (int, float)}
    is_ours = isinstance(held, dict) and all(isinstance(held.get(key), kind) for key, kind in kinds.items())
    return held if is_ours else None


class Lock:
    """A local directory's lock."""

    def __init__(self, storage: Storage) -> None:
        self.stop = threading.Event()
        self._storage = storage
        self._token = uuid.uuid4().hex
        self._interrupts = threading.current_thread() is threading.main_thread()
        self._lost: LockLostError | None = None

    def check(self) -> None:
        """Raises LockLostError: another driver has taken the lock over."""
        if self._lost:
            raise self._lost from None

    def take(self) -> None:
        """Raises UserError: another driver holds the lock."""
        with _exclusive(self._storage):
            self._check_free()
            self._write()

    def renew(self) -> None:
        """Write the lock anew. Raises LockLostError."""
        with _exclusive(self._storage):
            # A driver that was suspended (a laptop asleep) may have lost its lock to another.
            self._check_held()
            self._write()

    def release(self) -> None:
        """Remove the lock, unless it is another driver's."""
        if (read_lock(self._storage) or {}).get("token") == self._token:
            self._storage.remove(_FILE)

    def keep(self) -> None:
        """Renew the lock until it is released or lost."""
        renewed, is_said = time.monotonic(), False
        while not self.stop.wait(LOCK_HEARTBEAT_S):
            try:
                with patience(LOCK_HEARTBEAT_S):
                    self.renew()
                renewed, is_said = time.monotonic(), False
            except LockLostError as error:
                self._lost = error
                if self._interrupts:
                    # A signal, as Ctrl-C sends it: it wakes Ray's waits too.
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
                return
            except Exception as error:
                # A full disk or a lost network must not end the driver here. Its own writes raise the error.
                unheard_s = time.monotonic() - renewed
                if unheard_s > LOCK_STALE_S and not is_said:
                    is_said = True
                    _log.warning(
                        "run_dir %s: its lock was not renewed for %.0f s, and another driver may take it over: %s",
                        *(self._storage.root, unheard_s, first_line(error)),
                    )

    def _check_free(self) -> None:
        held = read_lock(self._storage)
        if held and held["token"] != self._token and not self._is_abandoned(held):
            raise UserError(
                f"run_dir {self._storage.root}: process {held['pid']} on {held['host']} is working in it; "
                "wait for it, or take another run_dir"
            )

    def _check_held(self) -> None:
        held = read_lock(self._storage)
        if held and held["token"] != self._token:
            raise LockLostError(
                f"run_dir {self._storage.root}: process {held['pid']} on {held['host']} has taken it over; "
                "this driver was not heard of for too long, and stops"
            )

    def _is_abandoned(self, held: dict[str, Any]) -> bool:
        if held["host"] == socket.gethostname() and not _is_running(held["pid"]):
            return True
        try:
            return self._storage.age(_FILE) > LOCK_STALE_S
        except FileNotFoundError:  # released meanwhile
            return True

    def _write(self) -> None:
        self._storage.write_bytes(_FILE, self._contents())

    def _contents(self) -> bytes:
        holder = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()}
        return json.dumps(holder).encode()


class _Conditional(Lock):
    """The lock of a store with conditional writes: of two drivers, one succeeds."""

    def take(self) -> None:
        version = self._storage.create(_FILE, self._contents())
        if version is None:
            version = self._taken_over()
        if version is None:
            raise UserError(f"run_dir {self._storage.root}: another driver took it at the same moment")
        self._version = version

    def renew(self) -> None:
        version = self._storage.replace(_FILE, self._contents(), self._version)
        if version is None:
            # Another's, or ours: a request that was sent again meets what it has written itself. Or a person deleted it.
            self._check_held()
            version = self._own_version() or self._storage.create(_FILE, self._contents())
        if version is None:
            self._check_held()
            return
        self._version = version

    def _taken_over(self) -> dict[str, str] | None:
        """The version of a lock that is ours now; None where another driver was faster."""
        try:
            found = self._storage.stat(_FILE)
        except FileNotFoundError:
            return self._storage.create(_FILE, self._contents())
        if own := self._own_version():
            return own
        self._check_free()
        return self._storage.replace(_FILE, self._contents(), found.version) or self._own_version()

    def _own_version(self) -> dict[str, str] | None:
        """The version of the lock in the store, if it is ours."""
        with contextlib.suppress(FileNotFoundError):
            found = self._storage.stat(_FILE)
            if (read_lock(self._storage) or {}).get("token") == self._token:
                return found.version
        return None


class _Unconditional(Lock):
    """The lock of a store without conditional writes: a driver writes it, waits for a racing one, and reads who won."""

    def take(self) -> None:
        self._check_free()
        self._write()
        time.sleep(_RACE_S)
        if (read_lock(self._storage) or {}).get("token") != self._token:
            raise UserError(f"run_dir {self._storage.root}: another driver took it at the same moment")


def _kind(storage: Storage) -> type[Lock]:
    if not storage.is_remote:
        return Lock
    return _Conditional if storage.has_conditional_writes() else _Unconditional


@contextlib.contextmanager
def _exclusive(storage: Storage) -> Iterator[None]:
    """One driver on this file system reads and writes the lock at a time. Two that start together, or that both
    find an abandoned lock, must not both take it. The system releases it when the process ends."""
    if storage.is_remote:
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


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
