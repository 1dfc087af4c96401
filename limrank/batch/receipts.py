"""What the committed chunks say of themselves: costs, time, and that no row is there twice.

A receipt is kept in its chunk's file, so that sums over the committed chunks are right
however often the job was killed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from limrank.batch.plan import chunk_name
from limrank.engines.base import Usage
from limrank.errors import StorageError, first_line
from limrank.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_KEY, _COMMIT = b"limrank.receipt", b"limrank.commit"
_CHUNK_FILE = re.compile(r"chunk-\d+\.parquet")
_READERS = 8
"""Files that are read at a time: an object store answers slowly, and many at once."""


@dataclass(frozen=True)
class Work:
    """One worker's turn at a chunk. Times are Unix times.

    ``ready`` is when the worker's engines were up, after ``startup_seconds``; ``busy_seconds``
    is how long, from then to ``ended``, they had at least one request, summed over ``engines``.
    ``dtypes`` is what the model of each role computed with, where that is known.
    """

    session: str
    worker: str
    began: float
    ended: float
    ready: float
    startup_seconds: float
    engines: int
    busy_seconds: float
    dtypes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What a finished chunk cost. ``work`` has an entry more for each time that its
    failures were tried again. ``commit`` names the writing of it, rows and failures together.
    ``steps`` has the tokens of the task's named steps: prompt, cached and generated. ``kept`` is
    how many rows the task keeps by their column ``kept``, None where they have none."""

    chunk: int
    units: int
    rows: int
    failed: int
    requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    work: tuple[Work, ...]
    commit: str = ""
    steps: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    kept: int | None = None

    @property
    def usage(self) -> Usage:
        """What the chunk cost so far."""
        steps = {name: Usage(0, *tokens) for name, tokens in self.steps.items()}
        return Usage(self.requests, self.prompt_tokens, self.cached_prompt_tokens, self.generated_tokens, steps)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Receipt:
        """Raises ValueError: it is none."""
        receipt = _receipts().validate_json(text)
        if not receipt.work:
            raise ValueError("a receipt without work")
        return receipt

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with this receipt in its metadata."""
        return _noted(table, _KEY, self.to_json())


@cache
def _receipts() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Receipt)


def with_commit(failures: pa.Table, commit: str) -> pa.Table:
    """A table of failures that says which commit it is of."""
    return _noted(failures, _COMMIT, commit)


def commit_of(failures: pa.Table) -> str:
    return (failures.schema.metadata or {}).get(_COMMIT, b"").decode()


def _noted(table: pa.Table, key: bytes, value: str) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), key: value.encode()})


def read_receipt(storage: Storage, name: str) -> Receipt | None:
    """The receipt in a file of ``rows/``; None where the file is damaged or another chunk's, and
    so is not committed: a disk that lost power may keep half of one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(f"rows/{name}") as stream:
            schema = pq.read_schema(stream)
            receipt = Receipt.from_json(schema.metadata[_KEY])
            if name != f"{chunk_name(receipt.chunk)}.parquet":
                return None
            if receipt.kept is None and "kept" in schema.names:  # as receipts were once written
                stream.seek(0)
                receipt = replace(receipt, kept=count_kept(pq.read_table(stream, columns=["kept"])))
            return receipt
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        storage.read_bytes(f"rows/{name}")  # where it cannot be read at all, that is the trouble
        return None


def count_kept(table: pa.Table) -> int | None:
    """How many rows are kept; None where they do not say."""
    import pyarrow.compute as pc

    return (pc.sum(table["kept"]).as_py() or 0) if "kept" in table.column_names else None


def read_whole(storage: Storage, name: str) -> pa.Table | None:
    """A Parquet file; None where it is damaged, or not there."""
    import pyarrow as pa

    try:
        return storage.read_table(name)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError):
        storage.read_bytes(name)  # where it cannot be read at all, that is the trouble
        return None


def is_chunk_file(name: str) -> bool:
    """Whether a chunk's rows or failures may have this name; what else lies beside them is a person's."""
    return _CHUNK_FILE.fullmatch(name) is not None


def chunk_files(storage: Storage, folder: str) -> list[str]:
    """The names of the chunks' files in ``rows`` or ``failures``, sorted.

    Raises:
        StorageError: the folder cannot be read, or something else has the name of a chunk's file.
    """
    if others := [name for name in storage.others(folder) if is_chunk_file(name)]:
        raise StorageError(
            f"run_dir {storage.root}: {folder}/{others[0]} is not a file: move it away, and the same command goes on"
        )
    return [name for name in storage.names(folder) if is_chunk_file(name)]


def read_rows(storage: Storage, folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of all chunks' files in ``rows`` or ``failures``, or just some of their columns.

    Raises:
        StorageError: one cannot be read, or lacks a column.
    """
    import pyarrow as pa

    for name in chunk_files(storage, folder):
        try:
            table = storage.read_table(f"{folder}/{name}", columns=list(columns) if columns else None)
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise _damaged(storage, f"{folder}/{name}", first_line(error)) from error
        if lacking := [column for column in columns or () if column not in table.column_names]:
            raise _damaged(storage, f"{folder}/{name}", f"there is no {lacking[0]} in it")
        yield table


def _damaged(storage: Storage, name: str, reason: str) -> StorageError:
    return StorageError(
        f"run_dir {storage.root}: {name} is damaged ({reason}): delete it, and its job's command makes it again"
    )


def read_receipts(storage: Storage) -> list[Receipt]:
    """The receipts of all committed chunks, in their order."""
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda name: read_receipt(storage, name), chunk_files(storage, "rows"))
        return [receipt for receipt in found if receipt is not None]


def check_unique(storage: Storage, key: Sequence[str]) -> None:
    """See that no two committed rows have the same key. Takes eight bytes a row.

    Args:
        key: the columns that name a row.

    Raises:
        StorageError: two rows are the same one; with an example.
    """
    import numpy as np

    hashes = np.concatenate([np.empty(0, np.uint64), *(part for _, part in _hashed(storage, key))])
    hashes.sort()
    suspects = np.unique(hashes[:-1][hashes[:-1] == hashes[1:]])
    if not len(suspects):
        return
    # Different ids may share a hash.
    seen = Counter(name for ids, part in _hashed(storage, key) for name in ids[np.isin(part, suspects)])
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise StorageError(
            f"run_dir {storage.root}: {len(twice)} of {len(hashes)} rows are there twice, such as {'/'.join(key)} "
            f"{twice[0].replace(_SEPARATOR, '/')!r}: are two units of the input the same?"
        )


_SEPARATOR = "\x1f"


def _hashed(storage: Storage, key: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each file's keys, and a 64-bit hash of each."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pandas.util import hash_array

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            with storage.open_input(f"rows/{name}") as stream:
                table = pq.read_table(stream, columns=list(key))
            columns = [table[name].combine_chunks() for name in key]
            joined = pc.binary_join_element_wise(*columns, _SEPARATOR, null_handling="replace")
        except StorageError:
            raise
        except (pa.ArrowException, KeyError, OSError) as error:
            raise _damaged(storage, f"rows/{name}", first_line(error)) from error
        ids = joined.to_numpy(zero_copy_only=False)
        return ids, hash_array(ids, categorize=False)

    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read, chunk_files(storage, "rows"))


@dataclass(frozen=True)
class Summary:
    """Totals over all committed chunks, whichever session they come from.

    ``seconds`` is the time in which at least one chunk was being worked on, start-up left
    out; ``startup_seconds`` is the slowest engine's. ``busy_seconds`` and ``idle_seconds``
    are summed over engines, each from when it was up to its last chunk's end: idle is when
    it had nothing to do. ``rate`` is weight (pairs, seeds) a second. ``dtypes`` are all that the
    model of a role computed with: of ``auto`` on several kinds of machine more than one.
    ``kept`` is None where the task keeps all of its rows.
    """

    units: int
    rows: int
    failed: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    seconds: float
    startup_seconds: float
    busy_seconds: float
    idle_seconds: float
    rate: float | None
    steps: Mapping[str, Usage] = field(default_factory=dict)
    dtypes: Mapping[str, list[str]] = field(default_factory=dict)
    kept: int | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens


def summarize(receipts: Sequence[Receipt], size: int) -> Summary:
    """Sum receipts up; pure. ``size`` is the whole plan's."""
    work = [each for receipt in receipts for each in receipt.work]
    seconds = _covered([(each.began, each.ended) for each in work])
    last: dict[str, Work] = {}
    for each in work:
        if each.worker not in last or each.ended > last[each.worker].ended:
            last[each.worker] = each
    busy = sum(each.busy_seconds for each in last.values())
    up = sum((each.ended - each.ready) * each.engines for each in last.values())

    def total(name: str) -> int:
        return sum(getattr(receipt, name) for receipt in receipts)

    usage = Usage()
    for receipt in receipts:
        usage.add(receipt.usage)
    return Summary(
        units=total("units"),
        rows=total("rows"),
        failed=total("failed"),
        prompt_tokens=usage.prompt,
        cached_prompt_tokens=usage.cached_prompt,
        generated_tokens=usage.generated,
        seconds=seconds,
        startup_seconds=max((each.startup_seconds for each in work), default=0.0),
        busy_seconds=busy,
        idle_seconds=max(0.0, up - busy),
        rate=size / seconds if seconds else None,
        steps=usage.steps,
        dtypes={
            role: sorted({each.dtypes[role] for each in work if role in each.dtypes})
            for role in sorted({role for each in work for role in each.dtypes})
        },
        kept=sum(kept) if (kept := [each.kept for each in receipts if each.kept is not None]) else None,
    )


def manifest_parts(summary: Summary, progress_unit: str) -> dict[str, dict[str, Any]]:
    """The totals as a run's manifest has them."""
    return {
        "counts": {"units": summary.units, "rows": summary.rows, "failed": summary.failed}
        | ({} if summary.kept is None else {"kept": summary.kept}),
        "seconds": {
            "engine_startup": round(summary.startup_seconds, 3),
            "work": round(summary.seconds, 3),
            "engine_busy": round(summary.busy_seconds, 3),
            "engine_idle": round(summary.idle_seconds, 3),
        },
        "tokens": {
            "prompt": summary.prompt_tokens,
            "cached_prompt": summary.cached_prompt_tokens,
            "generated": summary.generated_tokens,
        }
        | ({"by_step": {name: step_tokens(usage) for name, usage in summary.steps.items()}} if summary.steps else {}),
        "rates": {
            f"{progress_unit}_per_second": round(summary.rate, 3),
            "tokens_per_second": round(summary.tokens / summary.seconds, 1),
        }
        if summary.rate
        else {},
        "dtype": {role: ", ".join(names) for role, names in summary.dtypes.items()},
    }


def step_tokens(usage: Usage) -> dict[str, int]:
    return {"prompt": usage.prompt, "cached_prompt": usage.cached_prompt, "generated": usage.generated}


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of time spans."""
    covered, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return covered
