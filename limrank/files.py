"""The user's files and folders, local or in an object store: opened, or refused with one line that says which and why.

Only regular files are read: a pipe without a writer would block a job forever, and a device has no end.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from limrank.errors import LimrankError, UserError, first_line
from limrank.stores import is_store, store_of
from limrank.uris import is_uri, redacted

_LONGEST_PATH = 200
_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)

_PART = 16 << 20
"""Bytes of a store's file that are asked for at a time: most files are read from end to end."""


@dataclass(frozen=True, order=True)
class StorePath:
    """A URI in an object store, as ``pathlib`` has local paths. ``str`` of it is the URI with the store's settings."""

    uri: str

    def __truediv__(self, name: str) -> StorePath:
        base, mark, settings = self.uri.partition("?")
        return StorePath(f"{base.rstrip('/')}/{name}{mark}{settings}")

    @property
    def name(self) -> str:
        """The last component."""
        return self.uri.partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def __str__(self) -> str:
        return self.uri


AnyPath = Path | StorePath


def path_of(path: str | AnyPath) -> AnyPath:
    """A path whose ``/``, ``name`` and ``suffix`` are a local path's or a store's."""
    if isinstance(path, StorePath):
        return path
    return StorePath(path) if isinstance(path, str) and is_store(path) else Path(path)


def directory_of(path: str, key: str) -> AnyPath:
    """:func:`path_of` a directory that a recipe's ``key`` names. Raises UserError for a URI that is no store's."""
    if is_uri(path) and not is_store(path):
        raise UserError(f"{key}: {path}: no directory, and no store: s3://BUCKET/PATH and gs://BUCKET/PATH are")
    return path_of(path)


Kind = Literal["file", "folder", "missing"]


def kind_of(path: str | AnyPath) -> Kind:
    """The kind of a path; links are followed.

    Raises:
        UserError: the path cannot be read (no permission for a folder, a loop of links, an invalid path), or it
            is neither a file nor a folder.
    """
    if is_store(str(path)):
        return _kind_in_store(str(path))
    try:
        mode = Path(str(path)).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise UserError(f"{printable_path(path)}: cannot be read: {_other_kind(mode)}, not a file or a folder")


def _kind_in_store(uri: str) -> Kind:
    try:
        store, name = store_of(uri)
        if not name:
            return "folder"
        try:
            store.stat(name)
        except FileNotFoundError:
            return "folder" if any(store.folder(name)) else "missing"
    except (OSError, ValueError) as error:
        raise unreadable(uri, error) from None
    return "file"


def is_file(path: str | AnyPath) -> bool:
    """Whether :func:`kind_of` is a file; False if the path cannot be read."""
    return _kind_or_none(path) == "file"


def is_folder(path: str | AnyPath) -> bool:
    """Whether :func:`kind_of` is a folder; False if the path cannot be read."""
    return _kind_or_none(path) == "folder"


def listed(folder: str | AnyPath) -> list[AnyPath]:
    """The paths in a folder, sorted; [] if there is no such folder.

    Raises:
        UserError: it is not a folder, or may not be read.
    """
    try:
        if is_store(str(folder)):
            store, name = store_of(str(folder))
            found = store.folder(name)
            return [StorePath(str(folder)) / each for each in sorted([*found.files, *found.folders])]
        return sorted(Path(str(folder)).iterdir())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from None


def _kind_or_none(path: str | AnyPath) -> Kind | None:
    try:
        return kind_of(path)
    except UserError:
        return None


@contextmanager
def opened(path: str | AnyPath, *, pipe: bool = False, unpack: bool = True, what: str = "file") -> Iterator[BinaryIO]:
    """The bytes of a file. A read that fails within the block raises a UserError, too.

    Args:
        pipe: whether a pipe is accepted (``<(…)`` of a shell), for files that are read once.
        unpack: whether to decompress a file whose name ends in ``.gz``.
        what: the word for the file in messages.

    Raises:
        UserError: the file is missing, is not a file, or cannot be read; the message names it.
    """
    if is_store(str(path)):
        with _opened_in_store(str(path), unpack, what) as file:
            yield file
        return
    try:
        # Does not wait for a pipe's writer: a pipe without one reads as empty.
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UserError(f"{printable_path(path)}: no such {what}") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode))):
        os.close(descriptor)
        raise UserError(f"{printable_path(path)}: cannot be read: {_other_kind(mode)}, not a file")
    os.set_blocking(descriptor, True)
    try:
        with open(descriptor, "rb") as file:
            if unpack and str(path).endswith(".gz"):
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file
    except LimrankError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None


@contextmanager
def _opened_in_store(uri: str, unpack: bool, what: str) -> Iterator[BinaryIO]:
    try:
        store, name = store_of(uri)
        with store.open(name, _PART) as file:
            if unpack and uri.partition("?")[0].endswith(".gz"):
                with gzip.GzipFile(fileobj=file) as unpacked:
                    yield unpacked  # type: ignore[misc]
            else:
                yield file
    except FileNotFoundError:
        raise UserError(f"{printable_path(uri)}: no such {what}") from None
    except LimrankError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(uri, error) from None


def unreadable(path: str | AnyPath, error: Exception) -> UserError:
    """The UserError for an OSError of a path, or for the ValueError of an invalid path."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"{printable_path(path)}: cannot be read: {reason}")


def printable_path(path: str | AnyPath) -> str:
    """A path for a message, on one line; the middle of a long path is left out."""
    text = redacted(str(path))
    text = text if text.isprintable() else repr(text)[1:-1]
    half = _LONGEST_PATH // 2
    return text if len(text) <= _LONGEST_PATH else f"{text[:half]}…{text[-half:]}"


def _other_kind(mode: int) -> str:
    return next((name for test, name in _OTHER_KINDS if test(mode)), "something else")
