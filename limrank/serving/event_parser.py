"""Reads server-sent events, as section 9.2.6 of the HTML standard parses them, from bytes that may split anywhere."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

LONGEST = 256 * 1024 * 1024
"""Characters of an event. An answer with 1000 whole documents has less."""


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: str


class EventParser:
    """Gives the events of a stream as their bytes come in. Comments, ``id`` and ``retry`` have no effect, and an event
    without data is none.

    Args:
        longest: the most characters of an event.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._longest = longest
        self._begun = False
        self._after_return = False
        self._line: list[str] = []
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that a chunk completes.

        Raises:
            ValueError: an event is too long.
        """
        text = self._decoder.decode(chunk)
        if text and not self._begun:
            self._begun, text = True, text.removeprefix("\ufeff")
        if text and self._after_return:  # a line end may be split
            self._after_return, text = False, text.removeprefix("\n")
        self._after_return = self._after_return or text.endswith("\r")
        *ended, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for part in ended:
            self._count(part)
            line = "".join([*self._line, part])
            self._line.clear()
            event = self._take(line)
            if event is not None:
                yield event
        self._count(rest)
        if rest:
            self._line.append(rest)

    def _count(self, part: str) -> None:
        self._size += len(part)
        if self._size > self._longest:
            raise ValueError(f"an event of more than {self._longest} characters")

    def _take(self, line: str) -> Event | None:
        """The event that a line ends."""
        if not line:
            event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._size = "", 0
            self._data.clear()
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        else:
            self._size -= len(line)
        return None
