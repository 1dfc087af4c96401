"""``metrics.jsonl`` of a run directory: one JSON line for each optimizer step. Progress is read from it
during a run, and the curves are drawn from it at the end."""

from __future__ import annotations

import io
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
"""Seconds between uploads: an object store's file cannot be appended to, so it is uploaded whole."""

_KEYS = ("step", "loss", "learning_rate", "tokens_per_second")
"""Keys that every line has."""

OnProgress = Callable[[dict[str, Any]], None]


def read_metrics(storage: Storage) -> list[dict[str, Any]]:
    """Every complete line of a file that another process may be writing; none if there is no file."""
    return MetricsReader(storage).new()


def steps_made(storage: Storage) -> int:
    """The last step in the file; the other keys of its lines may be missing."""
    return max((line["step"] for line in MetricsReader(storage, ("step",)).new()), default=0)


class MetricsReader:
    """Reads the lines that were added since its last read. Lines without all ``keys`` are skipped."""

    def __init__(self, storage: Storage, keys: Sequence[str] = _KEYS) -> None:
        self._storage = storage
        self._keys = keys
        self._read = 0

    def new(self) -> list[dict[str, Any]]:
        """The complete lines that are new. All lines if the file has become shorter, which happens when
        a run returns to its last checkpoint."""
        try:
            with self._storage.open_input(FILE) as file:
                if file.seek(0, io.SEEK_END) < self._read:
                    self._read = 0
                file.seek(self._read)
                found = file.read()
        except FileNotFoundError:
            return []
        whole = found[: found.rfind(b"\n") + 1]
        self._read += len(whole)
        return [found for line in whole.splitlines() if (found := _parsed(line, self._keys))]


def _parsed(line: bytes, keys: Sequence[str]) -> dict[str, Any] | None:
    """The metrics of a line; None if :class:`MetricsWriter` did not write it. The rest of a line is read
    if the file became shorter and then longer between two reads."""
    try:
        metrics = parse_json(line, FILE, expect=dict, finite=False)
    except UserError:
        return None
    is_ours = all(_is_number(metrics.get(key)) for key in keys) and isinstance(metrics["step"], int)
    return metrics if is_ours and all(map(_is_number, metrics.values())) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class MetricsWriter:
    """Adds lines to a run's file, after removing those of steps after ``step``, which are repeated."""

    def __init__(self, storage: Storage, step: int) -> None:
        self._storage = storage
        self._lines = [json.dumps(line) + "\n" for line in read_metrics(storage) if line["step"] <= step]
        self._appends = not is_uri(storage.root)
        self._put()
        if self._appends:
            self._lines.clear()  # they are in the file now

    def add(self, metrics: dict[str, Any], *, now: bool) -> None:
        """Raises StorageError if the line cannot be written.

        Args:
            now: upload at once, because a checkpoint follows.
        """
        line = json.dumps(metrics) + "\n"
        if self._appends:
            path = self._storage.local(FILE)
            if path.is_symlink():  # its target is not ours
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
    """Call ``on_progress`` with the metrics of each new step while the block runs.

    A file is the only channel that outlives a driver and does not slow the workers down: Ray Train
    takes one report a poll, every two seconds.
    """
    if on_progress is None:
        yield
        return
    ended, metrics = threading.Event(), MetricsReader(storage)
    reported = max((line["step"] for line in metrics.new()), default=0)
    seconds = 2.0 if is_uri(storage.root) else 0.5

    def follow() -> None:
        nonlocal reported
        last_read = False
        while not last_read:
            last_read = ended.wait(seconds)
            lines = []
            with suppress(OSError):  # a store may fail for a moment; the next read finds what this one missed
                lines = metrics.new()
            for line in lines:
                if line["step"] > reported:
                    reported = line["step"]
                    on_progress(line)

    with ThreadPoolExecutor(1, thread_name_prefix="train-progress") as pool:
        follower = pool.submit(follow)
        try:
            yield
        finally:
            ended.set()
        follower.result()
