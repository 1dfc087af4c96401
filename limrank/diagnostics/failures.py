"""``limrank failures``: what failed in a run, on one screen: groups of one kind, how often, an example of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limrank.batch.manifest import Manifest, read_manifest
from limrank.batch.rows import read_rows
from limrank.errors import StorageError, UserError
from limrank.files import path_of
from limrank.parsing import brief
from limrank.printable import printable
from limrank.records import Failure, failure_schema
from limrank.storage import Storage

MAX_DISPLAYED_GROUPS = 12
MAX_GROUPS = 1000
"""Kinds of message with a group of their own. Later kinds are grouped by step and error type only."""

_ADVICE = "The same command retries these once; `allow_failures: true` accepts them."

# An apostrophe inside a word opens no quotation.
_QUOTED = re.compile(r"""(?<!\w)(?:'[^']*'|"[^"]*"|`[^`]*`)(?!\w)""")
_NUMBERED = re.compile(r"[+-]?\b(?:[\w.-]*\d[\w.-]*|nan|inf)\b")
_READ_CHARACTERS = 4000
_KEPT_CHARACTERS = 300


@dataclass
class Group:
    """Failures that differ only in ids, numbers and quoted words.

    ``counted_in`` is the manifest's count of which they are a share: ``rows`` for pairs and examples, ``units`` for
    whole units; None where there is no such count.
    """

    step: str
    error_type: str
    counted_in: str | None
    example: Failure
    count: int = 0
    attempts_low: int = 0
    attempts_high: int = 0

    def add(self, failure: Failure) -> None:
        self.attempts_low = min(self.attempts_low or failure.attempts, failure.attempts)
        self.attempts_high = max(self.attempts_high, failure.attempts)
        self.count += 1


@dataclass
class RunFailures:
    """One run directory's manifest and its failures in groups, most frequent first."""

    root: str
    manifest: Manifest
    groups: list[Group] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)


def examine(run_dir: str) -> list[RunFailures]:
    """The failures of a run directory, or of each stage of a pipeline's.

    One file is in memory at a time, and little more than ``MAX_GROUPS`` groups.

    Raises:
        UserError: this is no run directory.
    """
    manifest = _manifest(Storage(run_dir))
    if manifest.job != "pipeline":
        return [_read(run_dir, manifest)]
    storage = Storage(run_dir)
    stages = [each for each in storage.others("") if storage.exists(f"{each}/manifest.json")]
    roots = [str(path_of(run_dir) / each) for each in stages]
    return [_read(root, _manifest(Storage(root))) for root in roots] or [RunFailures(run_dir, manifest)]


def explain(runs: list[RunFailures], width: int = 120) -> Iterator[str]:
    """The findings of :func:`examine` as lines of at most about ``width`` characters."""
    failing = [run for run in runs if run.groups]
    for run in failing:
        yield from _explain_run(run, width)
    if failing:
        yield _ADVICE
        return
    for run in runs:
        yield f"{_headline(run)}: nothing failed"


def normalise(message: str, unit_id: str = "") -> str:
    """A message without what differs between two failures of one kind: the unit's ids, quoted words, and every
    word with a digit."""
    message = message[:_READ_CHARACTERS]
    for name in filter(None, (unit_id, *unit_id.split("\t"))):
        if name in message:
            message = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "ID", message)
    return _NUMBERED.sub("N", _QUOTED.sub("…", message))[:_KEPT_CHARACTERS]


def group(failures: Iterator[Failure]) -> list[Group]:
    """Group failures of one kind, most frequent first."""
    groups: dict[tuple[str | None, ...], Group] = {}
    for failure in failures:
        kind = (failure.step, failure.error_type, _counted_in(failure))
        key = (*kind, normalise(failure.error, failure.unit_id))
        if key not in groups and len(groups) >= MAX_GROUPS:
            key = (*kind, None)
        groups.setdefault(key, Group(*kind, example=failure)).add(failure)
    return sorted(groups.values(), key=lambda each: -each.count)


def _read(root: str, manifest: Manifest) -> RunFailures:
    storage = Storage(root)
    columns = failure_schema().names
    rows = (row for table in read_rows(storage, "failures", columns) for row in table.to_pylist())
    try:
        return RunFailures(root, manifest, group(_failure(row, root) for row in rows))
    except StorageError as error:
        raise UserError(str(error)) from None


def _failure(row: dict[str, Any], root: str) -> Failure:
    failure = Failure(**row)
    texts = (failure.unit_id, failure.step, failure.error_type, failure.error)
    if not all(isinstance(text, str) for text in texts) or not isinstance(failure.attempts, int):
        raise UserError(f"{root}: failures/ holds rows that are not limrank's: {brief(row)}")
    return failure


def _manifest(storage: Storage) -> Manifest:
    manifest = read_manifest(storage)
    if manifest is None:
        raise UserError(f"{storage.root}: not a run directory: there is no manifest.json in it")
    if not manifest.job or not manifest.status:
        raise UserError(
            f"run_dir {storage.root}: its manifest.json is not one of limrank's (it names no job and status)"
        )
    return manifest


def _counted_in(failure: Failure) -> str | None:
    """The manifest's count that a failure belongs to."""
    if failure.step in ("write", "mine"):  # a query of a seed: neither a seed nor an example
        return None
    is_part = "\t" in failure.unit_id or failure.step in ("judge", "base")
    return "rows" if is_part else "units"


def _explain_run(run: RunFailures, width: int) -> Iterator[str]:
    counts = run.manifest.counts
    of = " and ".join(f"{counts[name]} {name}" for name in ("units", "rows") if counts.get(name))
    yield f"{_headline(run)}: {run.count} failures" + (f" among {of}" if of else "")
    for found in run.groups[:MAX_DISPLAYED_GROUPS]:
        whole = counts.get(found.counted_in or "")
        share = f" ({_percent(found.count / whole)} of {found.counted_in})" if whole else ""
        attempts = (
            f"{found.attempts_low}–{found.attempts_high} attempts"
            if found.attempts_low < found.attempts_high
            else f"{found.attempts_low} {'attempt' if found.attempts_low == 1 else 'attempts'}"
        )
        yield printable(f"{found.count:>7}{share}  {found.step}: {found.error_type}, {attempts}")
        example = " · ".join(found.example.unit_id.split("\t"))
        yield _truncated(printable(f"        e.g. {example}: {' '.join(found.example.error.split())}", None), width)
    if (more := len(run.groups) - MAX_DISPLAYED_GROUPS) > 0:
        rest = sum(found.count for found in run.groups[MAX_DISPLAYED_GROUPS:])
        yield f"        … and {more} more {'group' if more == 1 else 'groups'} with {rest} failures"


def _headline(run: RunFailures) -> str:
    return printable(f"{run.root} ({run.manifest.job}, {run.manifest.status})")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def _truncated(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"
