"""JSON files that are one array of objects, read as a stream: the text of a few objects is in
memory at a time, never the whole file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from limrank.errors import UserError
from limrank.files import opened
from limrank.parsing import is_unicode, parse_json_start

LONGEST = 1 << 26
"""Characters of one element at most: what is not JSON after so many will never be."""

_AT_ONCE = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")


def begins_array(path: str | Path) -> bool:
    """Whether the first character of a file, but for blanks, is ``[``.

    Raises:
        UserError: the file cannot be read.
    """
    with _opened(path) as text:
        return text.peek() == "["


def read_array(path: str | Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield ``(1-based number, "file: element number", object)`` of a file that is one array.

    A file whose name ends in ``.gz`` is read through gzip.

    Raises:
        UserError: naming the file, and the element where there is one: an element is not
            JSON, not an object or not UTF-8, the array does not end, something follows it,
            or the file cannot be read.
    """
    with _opened(path) as text:
        text.take()
        number = 0
        closed = text.peek() == "]" and text.take()
        while not closed:
            number += 1
            where = f"{path}: element {number}"
            record = text.element(where)
            yield number, where, record
            mark = text.take()
            if mark not in ("]", ","):
                found = repr(mark) if mark else "the end of the file"
                raise UserError(f"{where}: after it there should be , or the array's ], not {found}")
            closed = mark == "]"
        if mark := text.peek():
            raise UserError(f"{path}: {mark!r} after the end of the array: one array is the whole file")


class _Text:
    """A file's characters, read ahead as far as what is asked for needs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._ahead = ""
        self._at = 0

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            self._at = _BLANK.match(self._ahead, self._at).end()
            if self._at < len(self._ahead):
                return self._ahead[self._at]
            if not self._read():
                return ""

    def take(self) -> str:
        mark = self.peek()
        self._at += len(mark)
        return mark

    def element(self, where: str) -> dict[str, Any]:
        mark = self.peek()
        if mark != "{":
            raise UserError(f"{where}: not a JSON object, but {repr(mark) if mark else 'the end of the file'}")
        while True:
            try:
                record, end = parse_json_start(self._ahead, self._at, where)
                break
            except json.JSONDecodeError as error:
                if len(self._ahead) - self._at > LONGEST or not self._read():
                    raise UserError(f"{where}: not JSON: {error.msg}") from None
        # Bytes that are no UTF-8 were read as what cannot be written as UTF-8.
        if not is_unicode(self._ahead[self._at : end]):
            raise UserError(f"{where}: not UTF-8 text")
        self._at = end
        return record

    def _read(self) -> bool:
        # As much again as there is: however long an element is, few tries are made at it.
        rest = self._ahead[self._at :]
        more = self._file.read(max(_AT_ONCE, len(rest)))
        self._ahead, self._at = rest + more, 0
        return bool(more)


@contextmanager
def _opened(path: str | Path) -> Iterator[_Text]:
    with opened(path) as file:
        yield _Text(io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=""))
