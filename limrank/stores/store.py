"""One bucket of an object store: whole objects, conditional writes, and patience."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from limrank.stores.clients import client_of
from limrank.stores.errors import reason_of, status_of
from limrank.stores.location import Location

PATIENCE_S = 300.0
"""How long a store that throttles, or is out of reach for a while, is waited for."""

_limit = threading.local()

_LONGEST_WAIT_S = 15.0

_PART = 16 << 20
"""Bytes of a part of a large upload."""

_PARTS_AT_ONCE = 4
_BUFFER = 1 << 20

_log = logging.getLogger(__name__)

Version = dict[str, str]
"""What identifies one version of an object (``e_tag``, on GCS also ``version``)."""


class Stat(NamedTuple):
    """An object's version and the time of its last change, by the store's clock."""

    version: Version
    modified: datetime


class Listed(NamedTuple):
    """What lies in a folder: names of objects and of folders, without the folder's own path."""

    files: list[str]
    folders: list[str]


class Store:
    """One bucket. Paths are names in it, without a leading slash. Every method raises OSError."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._store = client_of(location)
        self._answered = False
        self._has_conditions: bool | None = None

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError: there is no such object."""
        import obstore

        return self._asked(lambda: bytes(obstore.get(self._store, path).bytes()))

    def open(self, path: str, part: int = 1 << 20, failure: Callable[[OSError], OSError] | None = None) -> BinaryIO:
        """A seekable stream, which asks for ``part`` bytes at a time. Raises FileNotFoundError.

        Args:
            failure: the error to raise where a read fails, so that it can be told from that of a damaged file.
        """
        import obstore

        file = self._asked(lambda: obstore.open_reader(self._store, path, buffer_size=part))
        return io.BufferedReader(_Reader(self, file, failure), min(part, _BUFFER))  # type: ignore[return-value]

    def write(self, path: str, data: bytes | Path) -> None:
        """Replace an object by these bytes, or by a file's, of any size."""
        self._put(path, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)

    def create(self, path: str, data: bytes) -> Version | None:
        """Write an object that is not there yet; None where it is. A request that is sent again may find what it has
        written itself: the caller compares the contents.

        Raises:
            NotImplementedError: the store has no conditional writes.
        """
        return self._conditional(path, data, "create")

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        """Write an object if it still has this version; None where it has not. See :meth:`create`."""
        return self._conditional(path, data, version)

    def has_conditions(self, path: str) -> bool:
        """Whether the store refuses to create an object twice, and to replace a version that is gone: some do only the
        first. It is asked once, with an object at ``path``, which is deleted again. A logged warning says so where it
        does not."""
        if self._has_conditions is None:
            try:
                self._has_conditions = self._keeps_conditions(path)
            except NotImplementedError:
                self._has_conditions = False
            finally:
                self.delete(path)
            if not self._has_conditions:
                where = f"{self._location.kind}://{self._location.bucket}"
                _log.warning(
                    "%s: the store has no conditional writes: two drivers are told apart by their times", where
                )
        return self._has_conditions

    def stat(self, path: str) -> Stat:
        """Raises FileNotFoundError."""
        import obstore

        found = self._asked(lambda: obstore.head(self._store, path))
        return Stat(_version(found), found["last_modified"])

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name, or a folder."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return any(self.folder(path))
        return True

    def folder(self, path: str) -> Listed:
        """What lies in a folder, each sorted; nothing where there is no such folder."""
        import obstore

        found = self._asked(lambda: obstore.list_with_delimiter(self._store, path or None))
        start = len(path) + 1 if path else 0
        folders = {each[start:] for each in found["common_prefixes"]}
        files = {each["path"][start:] for each in found["objects"]}
        return Listed(sorted(files - folders - {""}), sorted(folders))

    def walk(self, path: str) -> list[str]:
        """The names of all objects below a folder, relative to it, sorted, without the marks of its folders."""
        import obstore

        found = self._asked(lambda: obstore.list(self._store, path or None).collect())
        names = {each["path"][len(path) + 1 if path else 0 :] for each in found}
        folders = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
        return sorted(names - folders - {""})

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        import obstore

        try:
            self._asked(lambda: obstore.delete(self._store, path))
        except FileNotFoundError:
            return

    def _keeps_conditions(self, path: str) -> bool:
        self.create(path, b"")
        if self.create(path, b"") is not None:
            return False
        first = self.stat(path).version
        self.replace(path, b"second", first)
        return self.replace(path, b"third", first) is None

    def _put(self, path: str, data: Any, **options: Any) -> Version:
        import obstore

        try:
            return _version(self._asked(lambda: obstore.put(self._store, path, data, **options)))
        except FileNotFoundError as error:  # the answer where there is no bucket
            raise OSError(str(error)) from error

    def _conditional(self, path: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            return self._put(path, data, mode=mode)
        except OSError as error:
            if isinstance(error.__cause__, AlreadyExistsError | PreconditionError):
                return None
            if isinstance(error.__cause__, NotSupportedError) or status_of(error.__cause__) == 501:
                raise NotImplementedError(str(error)) from error
            # S3 answers so where the object of a version is gone.
            if mode != "create" and status_of(error.__cause__) in (404, 409):
                return None
            raise

    def _asked(self, request: Callable[[], Any]) -> Any:
        """A request's answer, waited for while the store throttles."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        patient = Retrying(
            retry=retry_if_exception(self._is_passing),
            wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT_S),
            stop=stop_after_delay(getattr(_limit, "seconds", None) or PATIENCE_S),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            answer = patient(request)
        except FileNotFoundError as error:
            self._answered = True
            raise FileNotFoundError(reason_of(error)) from error
        except Exception as error:  # obstore's, by no common base with OSError
            from obstore.exceptions import BaseError

            if not isinstance(error, BaseError | OSError):
                raise
            self._answered |= status_of(error) is not None
            raise OSError(reason_of(error)) from error
        self._answered = True
        return answer

    def _tell(self, state: Any) -> None:
        if state.attempt_number == 1:
            where = f"{self._location.kind}://{self._location.bucket}"
            _log.warning("%s: %s: waiting for it", where, reason_of(state.outcome.exception()))

    def _is_passing(self, error: BaseException) -> bool:
        """Whether a request may succeed later: the store is busy, or has answered before and does not now."""
        from obstore.exceptions import GenericError

        if not isinstance(error, GenericError):
            return False
        status = status_of(error)
        return status in (429, 500, 502, 503, 504) or (status is None and self._answered)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Wait no longer than this for a store, in this thread while the ``with`` block runs: for what has to end."""
    before = getattr(_limit, "seconds", None)
    _limit.seconds = seconds
    try:
        yield
    finally:
        _limit.seconds = before


class _Reader(io.RawIOBase):
    """A file of the store as pyarrow and ``io`` read it."""

    def __init__(self, store: Store, file: Any, failure: Callable[[OSError], OSError] | None) -> None:
        self._store = store
        self._file = file
        self._failure = failure

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._store._asked(lambda: self._file.read(len(buffer)))
        except OSError as error:
            if self._failure is None:
                raise
            raise self._failure(error) from error
        buffer[: len(data)] = data
        return len(data)


@lru_cache(maxsize=256)
def store_of(uri: str) -> tuple[Store, str]:
    """The bucket of a URI, and the path in it. A process has one client for each bucket.

    Raises:
        ValueError: see :meth:`Location.of`.
    """
    location = Location.of(uri)
    return _bucket(location.kind, location.bucket, tuple(sorted(location.settings.items()))), location.path


@lru_cache(maxsize=64)
def _bucket(kind: str, bucket: str, settings: tuple[tuple[str, str], ...]) -> Store:
    return Store(Location(kind, bucket, "", dict(settings)))


def _version(found: Any) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found.get(name)}
