"""Receipts: what each committed chunk cost.

A receipt lies in the metadata of its chunk's Parquet file. A chunk and its receipt are therefore committed in one
rename, and sums over the committed chunks are right however often the job was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from limrank.batch.plan import chunk_name
from limrank.batch.rows import READERS, chunk_files
from limrank.engines.base import Usage
from limrank.errors import StorageError
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_KEY, _COMMIT = b"limrank.receipt", b"limrank.commit"


@dataclass(frozen=True)
class Work:
    """One worker's attempt at a chunk. Times are Unix times.

    Args:
        ready: when the worker's engines were up, after ``startup_seconds``.
        engines: how many engines the worker has.
        busy_seconds: how long, from ``ready`` to ``ended``, the engines had at least one request; summed over them.
        dtypes: role → the dtype that its model computed with, where that is known.
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
    """What a committed chunk cost, earlier attempts at its failures included.

    Args:
        work: one entry for the chunk, and one more for each retry of its failures.
        commit: the id that the files of rows and of failures of one commit share.
        steps: the task's named step → prompt, cached and generated tokens.
        kept: rows whose column ``kept`` is true; None where the rows have no such column.
    """

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
        """Raises ValueError: the text is no receipt."""
        receipt = _adapter().validate_json(text)
        if not receipt.work:
            raise ValueError("a receipt without work")
        return receipt

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with this receipt in its metadata."""
        return _with_metadata(table, _KEY, self.to_json())


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Receipt)


def with_commit(failures: pa.Table, commit: str) -> pa.Table:
    """A table of failures with the id of its commit."""
    return _with_metadata(failures, _COMMIT, commit)


def commit_of(failures: pa.Table) -> str:
    """The id of a table's commit; "" where it has none."""
    return (failures.schema.metadata or {}).get(_COMMIT, b"").decode()


def _with_metadata(table: pa.Table, key: bytes, value: str) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), key: value.encode()})


def read_receipt(storage: Storage, name: str) -> Receipt | None:
    """The receipt in a file of ``rows/``. None where the file is damaged or another chunk's: a disk that lost
    power may keep half of a file. Such a chunk is not committed.

    Raises:
        StorageError: the storage cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(f"rows/{name}") as stream:
            schema = pq.read_schema(stream)
            receipt = Receipt.from_json(schema.metadata[_KEY])
            if name != f"{chunk_name(receipt.chunk)}.parquet":
                return None
            if receipt.kept is None and "kept" in schema.names:  # an older receipt
                stream.seek(0)
                receipt = replace(receipt, kept=count_kept(pq.ParquetFile(stream).read(columns=["kept"])))
            return receipt
    except StorageError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        storage.read_bytes(f"rows/{name}")  # raises StorageError where the bytes cannot be read at all
        return None


def count_kept(table: pa.Table) -> int | None:
    """How many rows are kept; None where the table has no such column."""
    import pyarrow.compute as pc

    return (pc.sum(table["kept"]).as_py() or 0) if "kept" in table.column_names else None


def read_receipts(storage: Storage) -> list[Receipt]:
    """The receipts of all committed chunks, in the chunks' order."""
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda name: read_receipt(storage, name), chunk_files(storage, "rows"))
        return [receipt for receipt in found if receipt is not None]
