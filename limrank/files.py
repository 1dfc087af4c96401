"""The user's files and folders: opened, or refused with one line that says which and why.

Only regular files are read: a pipe without a writer would block a job forever, and a device has no end.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from limrank.errors import LimrankError, UserError, first_line
from limrank.uris import redacted

_LONGEST_PATH = 200
_OTHER_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)

Kind = Literal["file", "folder", "missing"]


def kind_of(path: str | Path) -> Kind:
    """The kind of a path; links are followed.

    Raises:
        UserError: the path cannot be read (no permission for a folder, a loop of links, an invalid path), or it
            is neither a file nor a folder.
    """
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise UserError(f"{printable_path(path)}: cannot be read: {_other_kind(mode)}, not a file or a folder")


def is_file(path: str | Path) -> bool:
    """Whether :func:`kind_of` is a file; False if the path cannot be read."""
    return _kind_or_none(path) == "file"


def is_folder(path: str | Path) -> bool:
    """Whether :func:`kind_of` is a folder; False if the path cannot be read."""
    return _kind_or_none(path) == "folder"


def listed(folder: str | Path) -> list[Path]:
    """The paths in a folder, sorted; [] if there is no such folder.

    Raises:
        UserError: it is not a folder, or may not be read.
    """
    try:
        return sorted(Path(folder).iterdir())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise unreadable(folder, error) from None


def _kind_or_none(path: str | Path) -> Kind | None:
    try:
        return kind_of(path)
    except UserError:
        return None


@contextmanager
def opened(path: str | Path, *, pipe: bool = False, unpack: bool = True, what: str = "file") -> Iterator[BinaryIO]:
    """The bytes of a file. A read that fails within the block raises a UserError, too.

    Args:
        pipe: whether a pipe is accepted (``<(…)`` of a shell), for files that are read once.
        unpack: whether to decompress a file whose name ends in ``.gz``.
        what: the word for the file in messages.

    Raises:
        UserError: the file is missing, is not a file, or cannot be read; the message names it.
    """
    try:
        # Does not wait for a pipe's writer: a pipe without one reads as empty.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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


def unreadable(path: str | Path, error: Exception) -> UserError:
    """The UserError for an OSError of a path, or for the ValueError of an invalid path."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"{printable_path(path)}: cannot be read: {reason}")


def printable_path(path: str | Path) -> str:
    """A path for a message, on one line; the middle of a long path is left out."""
    text = redacted(str(path))
    text = text if text.isprintable() else repr(text)[1:-1]
    half = _LONGEST_PATH // 2
    return text if len(text) <= _LONGEST_PATH else f"{text[:half]}…{text[-half:]}"


def _other_kind(mode: int) -> str:
    return next((name for test, name in _OTHER_KINDS if test(mode)), "something else")
