"""Progress of a job: events that are rendered for a terminal, for a log, or for another process.

A job only calls ``Progress.update``. A submitted job writes its events to its log as JSON lines, and the client
that follows the log renders them as if the job ran locally.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Protocol

from limrank.errors import UserError
from limrank.parsing import parse_json
from limrank.printable import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

JSON_PREFIX = "@limrank-progress "
_LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Event:
    """``done`` of ``total`` of a stage, counted in ``unit`` (``pairs``, ``seeds``, ``steps``).

    ``rate`` and ``tokens_per_second`` are of this session, without the engines' start-up. ``detail`` is a short
    addition, such as the loss.
    """

    stage: str
    done: int
    total: int
    unit: str
    failed: int = 0
    rate: float | None = None
    tokens_per_second: float | None = None
    detail: str = ""
    finished: bool = False

    @property
    def eta_s(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None


class Renderer(Protocol):
    def show(self, event: Event) -> None: ...

    def close(self) -> None: ...


class Progress:
    """The interface for a job's progress. It is throttled, so it may be called for every row."""

    def __init__(self, renderer: Renderer, every_s: float = 0.5) -> None:
        self._renderer = renderer
        self._every_s = every_s
        self._last = 0.0

    def update(self, event: Event) -> None:
        now = time.monotonic()
        if event.finished or event.done == 0 or now - self._last >= self._every_s:
            self._last = now
            self._renderer.show(event)

    def close(self) -> None:
        self._renderer.close()


def open_progress(stream: IO[str] | None = None) -> Progress:
    """Progress as JSON if LIMRANK_PROGRESS=json, as bars on a terminal, or else as a line every few seconds.

    Bars and lines go to stderr.
    """
    if os.environ.get("LIMRANK_PROGRESS") == "json":
        return Progress(JsonRenderer(stream or sys.stdout))
    stream = stream or sys.stderr
    return Progress(BarRenderer() if stream.isatty() else LineRenderer(stream))


class SilentRenderer:
    """No output: for a script that did not ask for progress."""

    def show(self, event: Event) -> None:
        return None

    def close(self) -> None:
        return None


class JsonRenderer:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def show(self, event: Event) -> None:
        print(JSON_PREFIX + json.dumps(asdict(event)), file=self._stream, flush=True)

    def close(self) -> None:
        return None


def parse_json_line(line: str) -> Event | None:
    """The event of a log line by JsonRenderer; None for any other line."""
    if not line.startswith(JSON_PREFIX):
        return None
    try:
        return Event(**parse_json(line[len(JSON_PREFIX) :], "log", expect=dict))
    except (UserError, TypeError):  # truncated, or another program's
        return None


class LineRenderer:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._last: dict[str, float] = {}

    def show(self, event: Event) -> None:
        now = time.monotonic()
        if event.finished or now - self._last.get(event.stage, -_LINE_EVERY_S) >= _LINE_EVERY_S:
            self._last[event.stage] = now
            print(describe(event), file=self._stream, flush=True)

    def close(self) -> None:
        return None


class BarRenderer:
    """A bar for each stage, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bars = Bars(*columns, console=Console(stderr=True))
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def show(self, event: Event) -> None:
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._bars.add_task(printable(event.stage), total=event.total, facts="")
        task = self._tasks[event.stage]
        self._bars.update(task, completed=event.done, total=event.total, facts=_facts(event))
        if event.finished:
            self._bars.stop_task(task)

    def close(self) -> None:
        self._bars.stop()


def describe(event: Event) -> str:
    """``rerank: 120/400 pairs, 14.2 pairs/s, 2100 tokens/s, ETA 20 s, 1 failed``"""
    return printable(f"{event.stage}: {event.done}/{event.total} {_facts(event)}".rstrip())


def _facts(event: Event) -> str:
    facts = [event.unit]
    if event.rate:
        facts.append(f"{event.rate:.1f} {event.unit}/s")
    if event.tokens_per_second:
        facts.append(f"{event.tokens_per_second:.0f} tokens/s")
    if event.eta_s is not None and not event.finished:
        facts.append(f"ETA {event.eta_s:.0f} s")
    if event.failed:
        facts.append(f"{event.failed} failed")
    if event.detail:
        facts.append(event.detail)
    return printable(", ".join(facts))
