"""``metrics.jsonl`` of a run directory: one JSON line an optimizer step, by which a run is
followed while it lasts, and drawn when it is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from limrank.config import is_uri
from limrank.errors import UserError
from limrank.parsing import parse_json
from limrank.storage import Storage

FILE = "metrics.jsonl"

PUT_EVERY_S = 5.0
"""An object store's file cannot be appended to: it is put there anew, no more often than this."""

_KEYS = ("step", "loss", "learning_rate", "tokens_per_second")
"""What every line has."""

OnProgress = Callable[[dict[str, Any]], None]


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """Every complete line, of a file that another process may be writing; none where there is
    no file."""
    return MetricsReader(storage).new()


def steps_made(storage: Storage) -> int:
    """The last step that a line tells of, whatever else it says."""
    return max((line["step"] for line in MetricsReader(storage, ("step",)).new()), default=0)


class MetricsReader:
    """Reads on from where it stopped the last time. ``keys`` are what a line has to have."""

    def __init__(self, storage: Storage, keys: Sequence[str] = _KEYS) -> None:
        self._storage = storage
        self._keys = keys
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The complete lines that were not there yet; of a file that has become shorter, since
        a run goes back to its last checkpoint, all of them."""
        try:
            with self._storage.open_input(FILE) as file:
                if file.size() < self._read:
                    self._read = 0
                file.seek(self._read)
                found = file.read()
        except FileNotFoundError:
            return []
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        return [found for line in whole.splitlines() if (found := _parsed(line, self._keys))]


def _parsed(line: bytes, keys: Sequence[str]) -> dict[str, Any] | None:
    """None for what is no line of :class:`MetricsWriter`, such as the rest of one: the file became
    shorter, and longer again, between two looks."""
    try:
        metrics = parse_json(line, FILE, expect=dict, finite=False)
    except UserError:
        return None
    is_ours = all(_is_number(metrics.get(key)) for key in keys) and isinstance(metrics["step"], int)
    return metrics if is_ours and all(map(_is_number, metrics.values())) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class MetricsWriter:
    """Adds lines to a run's file; the steps after ``step``, which are made again, go first."""

    def __init__(self, storage: Storage, step: int) -> None:
        self._storage = storage
        self._lines = [json.dumps(line) + "\n" for line in read_metrics(storage) if line["step"] <= step]
        self._appends = not is_uri(storage.root)
        self._put()
        if self._appends:
            self._lines.clear()  # they are in the file, and are not put there again

    def add(self, metrics: dict[str, Any], *, now: bool) -> None:
        """Raises StorageError where it cannot be written.

        Args:
            now: it must not wait, since a checkpoint follows.
        """
        line = json.dumps(metrics) + "\n"
        if self._appends:
            path = self._storage.local(FILE)
            if path.is_symlink():  # what it leads to is not ours
                path.unlink()
            with self._storage.writing(), path.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._lines.append(line)
        if now or time.monotonic() - self._put_at >= PUT_EVERY_S:
            self._put()

    def _put(self) -> None:
        self._storage.write_text(FILE, "".join(self._lines))
        self._put_at = time.monotonic()


@contextmanager
def following(storage: Storage, on_progress: OnProgress | None) -> Iterator[None]:
    """Hand on the line of each step that a run's metrics gain while the block runs.

    A file is the one channel that does not slow the workers down (Ray Train takes in one
    report a poll, every two seconds) and that outlives a driver.
    """
    if on_progress is None:
        yield
        return
    ended, metrics = threading.Event(), MetricsReader(storage)
    reported = max((line["step"] for line in metrics.new()), default=0)
    seconds = 2.0 if is_uri(storage.root) else 0.5

    def follow() -> None:
        nonlocal reported
        last_look = False
        while not last_look:
            last_look = ended.wait(seconds)
            lines = []
            with suppress(OSError):  # of a store that hiccups; the next look finds what this one missed
                lines = metrics.new()
            for line in lines:
                if line["step"] > reported:
                    reported = line["step"]
                    on_progress(line)

    with ThreadPoolExecutor(1, thread_name_prefix="train-progress") as pool:
        looking = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
        looking.result()
