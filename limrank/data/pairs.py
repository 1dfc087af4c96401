"""Pairs to score, given as they are: one row a (query, document), no first stage.

Columns: ``query_id``, ``query``, ``doc_id``, ``text``, and where there are any
``instruction`` and ``score``. Ids may be strings or whole numbers, which become strings.
A query's rows lie together; their order is the first stage's rank, or, where there is a
``score``, the score is (highest first, ties in the order of the rows).

The files are a Parquet file, a folder of ``*.parquet`` (in the order of their names), each
local or in an object store, or a folder that ``datasets`` saved (``save_to_disk``). They are
read as a stream: what is in memory at a time is a batch of rows and one query's candidates,
and eight bytes for each query.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limrank.config import is_uri
from limrank.data.benchmarks import file_fingerprint
from limrank.errors import UserError, first_line
from limrank.records import Candidate, Query
from limrank.storage import filesystem

if TYPE_CHECKING:
    import pyarrow as pa

NEEDED = ("query_id", "query", "doc_id", "text")
OPTIONAL = ("instruction", "score")

_BATCH_ROWS = 1024
_READ_BUFFER = 1 << 20
_MAX_SUSPECTS = 1000


@dataclass(frozen=True)
class Pairs:
    """Files of pairs whose columns are checked and whose rows are not read yet.

    ``fingerprints`` stand for the contents: of a local file its SHA-256, of an object its
    path, size and time of change. ``warnings`` are sentences for a person.
    """

    path: str
    parts: list[_Part]
    fingerprints: list[Any]
    warnings: list[str] = field(default_factory=list)

    def queries(self, max_queries: int | None = None) -> Iterator[tuple[Query, list[Candidate]]]:
        """Each query with its candidates, best first; the first ``max_queries`` of them,
        behind which nothing is read.

        Raises:
            UserError: naming the file and the row, or the column: an id or a text is
                missing, a document is there twice for a query, or a query's rows do not
                lie together. The last is known only at the end.
        """
        hashes = array("Q")
        group: _Group | None = None
        for row, where in self._rows(NEEDED + OPTIONAL):
            if group is None or group.query.query_id != row["query_id"]:
                if group is not None:
                    yield group.query, group.candidates()
                if len(hashes) == max_queries:
                    group = None
                    break
                group = _Group(row, where)
                hashes.append(_hash(row["query_id"]))
            group.add(row, where)
        if group is not None:
            yield group.query, group.candidates()
        if not hashes:
            raise UserError(f"{self.path}: there are no pairs in it")
        self._check_together(hashes)

    def _check_together(self, hashes: array) -> None:
        import numpy as np

        ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(twice):
            return
        # Two ids may share a hash: the ids themselves tell.
        suspects = set(twice[:_MAX_SUSPECTS].tolist())
        first: dict[str, str] = {}
        for query_id, where in islice(self._starts(), len(hashes)):
            if _hash(query_id) not in suspects:
                continue
            if query_id in first:
                raise UserError(
                    f"{where}: query_id {query_id!r} again, after other queries; it began in {first[query_id]}: "
                    "a query's rows have to lie together, so sort the pairs by query_id"
                )
            first[query_id] = where

    def _starts(self) -> Iterator[tuple[str, str]]:
        """Where each run of rows of one query begins."""
        current = None
        for row, where in self._rows(("query_id",)):
            if row["query_id"] != current:
                current = row["query_id"]
                yield current, str(where)

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], _Where]]:
        for part in self.parts:
            wanted = [name for name in columns if name in part.schema.names]
            start = 1
            for batch in part.batches(wanted):
                values = [_values(batch[name], name, _Where(part.name, start)) for name in wanted]
                for offset, cells in enumerate(zip(*values, strict=True)):
                    yield dict(zip(wanted, cells, strict=True)), _Where(part.name, start + offset)
                start += len(batch)


def open_pairs(path: str, split: str = "test") -> Pairs:
    """Find the files and check their columns; no row is read.

    Args:
        path: see the module.
        split: which one of a saved dataset that has several.

    Raises:
        UserError: there are no such files, they cannot be read, or a column is missing or of
            the wrong type.
    """
    saved = None if is_uri(path) else _saved_dataset(Path(path), split)
    parts, fingerprints = saved or _parquet_parts(path)
    warnings = dict.fromkeys(warning for part in parts for warning in _check_columns(part))
    scored = [part for part in parts if "score" in part.schema.names]
    if 0 < len(scored) < len(parts):
        bare = next(part for part in parts if part not in scored)
        raise UserError(f"{bare.name}: has no column score, and {scored[0].name} has one: all files or none")
    return Pairs(path, parts, fingerprints, list(warnings))


# ---- where the rows come from --------------------------------------------------------


class _Part(NamedTuple):
    """One stream of rows: ``batches`` of given columns, in order, about a thousand rows each."""

    name: str
    schema: pa.Schema
    batches: Callable[[list[str]], Iterator[Any]]


class _Where(NamedTuple):
    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}"


def _parquet_parts(path: str) -> tuple[list[_Part], list[Any]]:
    from pyarrow.fs import FileSelector, FileType

    try:
        files, root = filesystem(path)
        found = [files.get_file_info(root)]
        if found[0].type == FileType.Directory:
            listed = [each for each in files.get_file_info(FileSelector(root)) if each.is_file]
            found = sorted((each for each in listed if _is_parquet(each.base_name)), key=lambda each: each.base_name)
    except (OSError, ValueError) as error:  # ValueError: pyarrow knows no such kind of URI
        raise _unreadable(path, error) from None
    if not found:
        raise UserError(f"{path}: no *.parquet in this folder, nor is it a dataset that save_to_disk wrote")
    if found[0].type == FileType.NotFound:
        raise UserError(
            f"{path}: no such file or folder; data.path is Parquet, a folder of *.parquet, or a saved dataset"
        )
    scheme = f"{path.partition('://')[0]}://" if is_uri(path) else ""
    parts = []
    for each in found:
        name = f"{scheme}{each.path}"
        parts.append(_Part(name, _parquet_schema(files, each.path, name), partial(_batches, files, each.path, name)))
    if scheme:
        return parts, [[each.path, each.size, each.mtime_ns] for each in found]
    return parts, [file_fingerprint(each.path) for each in found]


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith((".", "_"))


def _parquet_schema(files: Any, path: str, name: str) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path, filesystem=files)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from None


def _batches(files: Any, path: str, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a column is read page by page: a row group may be the whole file.
        with pq.ParquetFile(path, filesystem=files, buffer_size=_READ_BUFFER, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(name, error) from None


def _saved_dataset(folder: Path, split: str) -> tuple[list[_Part], list[Any]] | None:
    """The rows of a folder that ``datasets`` saved; None where it is none."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    import datasets
    import pyarrow as pa

    try:
        loaded = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{folder}: not a dataset that can be loaded: {first_line(error)}") from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{folder}: data.split: it has no split {split!r}; there are: {', '.join(sorted(loaded))}")
        folder, loaded = folder / split, loaded[split]

    def batches(columns: list[str]) -> Iterator[pa.Table]:
        yield from loaded.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_ROWS)

    contents = [file_fingerprint(file) for file in sorted(folder.glob("*.arrow"))]
    return [_Part(str(folder), loaded.features.arrow_schema, batches)], contents


def _unreadable(name: str, error: Exception) -> UserError:
    return UserError(f"{name}: cannot be read as Parquet: {first_line(error)}")


# ---- columns, rows, queries ----------------------------------------------------------


def _check_columns(part: _Part) -> Iterator[str]:
    """Yields warnings; raises UserError where a column is missing or of the wrong type."""
    import pyarrow.types as types

    for name in NEEDED + OPTIONAL:
        if name not in part.schema.names:
            if name in NEEDED:
                raise UserError(
                    f"{part.name}: the column {name} is missing; pairs have {', '.join(NEEDED)} "
                    f"(it has {', '.join(part.schema.names) or 'none'})"
                )
            continue
        if part.schema.names.count(name) > 1:
            raise UserError(f"{part.name}: there are two columns {name}")
        kind = part.schema.field(name).type
        values = kind.value_type if types.is_dictionary(kind) else kind
        if name == "score":
            fits, wanted = types.is_integer(values) or types.is_floating(values), "numbers"
        else:
            is_text = types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)
            is_id = name.endswith("_id") and types.is_integer(values)
            fits, wanted = is_text or is_id, "strings or whole numbers" if name.endswith("_id") else "strings"
            if is_id:
                yield f"{part.name}: {name} holds whole numbers ({values}); they are taken as strings"
        if not fits:
            raise UserError(f"{part.name}: the column {name} is of type {kind}; it should hold {wanted}")


def _values(column: Any, name: str, start: _Where) -> list[Any]:
    """A batch's column as Python values, checked; ``start`` is its first row's place."""
    import pyarrow as pa

    if column.null_count and name != "instruction":
        row = column.is_null().to_pylist().index(True)
        raise UserError(f"{_Where(start.file, start.row + row)}: {name} is null")
    if name == "score":
        scores = column.cast(pa.float64()).to_pylist()
        for row, score in enumerate(scores, start=start.row):
            if not math.isfinite(score):
                raise UserError(f"{_Where(start.file, row)}: the score {score} is not a finite number")
        return scores
    try:
        texts = column.cast(pa.string()).to_pylist()
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        last = start.row + len(column) - 1
        raise UserError(
            f"{start.file}: rows {start.row} to {last}: {name} is not UTF-8 text: {first_line(error)}"
        ) from None
    if name.endswith("_id"):
        for row, an_id in enumerate(texts, start=start.row):
            if not an_id or an_id.isspace() or "\t" in an_id or "\n" in an_id or "\r" in an_id:
                raise UserError(
                    f"{_Where(start.file, row)}: {name} {an_id!r} is empty or holds a tab or a line end, "
                    "and could not stand in a run file"
                )
    return texts


class _Group:
    """The rows of one query, as they come."""

    def __init__(self, row: dict[str, Any], where: _Where) -> None:
        self.query = Query(row["query_id"], row["query"], row.get("instruction") or "")
        self._began = where
        self._passages: dict[str, tuple[str, float | None]] = {}

    def add(self, row: dict[str, Any], where: _Where) -> None:
        for name, known in (("query", self.query.text), ("instruction", self.query.instruction)):
            if (row.get(name) or "") != known:
                raise UserError(f"{where}: query_id {self.query.query_id!r} has another {name} than in {self._began}")
        if row["doc_id"] in self._passages:
            raise UserError(
                f"{where}: doc_id {row['doc_id']!r} is there twice for query_id {self.query.query_id!r}, "
                f"which begins in {self._began}"
            )
        self._passages[row["doc_id"]] = (row["text"], row.get("score"))

    def candidates(self) -> list[Candidate]:
        # sorted() is stable: rows of one score, or of none, stay in their order.
        ranked = sorted(self._passages.items(), key=lambda item: -(item[1][1] or 0.0))
        return [Candidate(doc_id, text, rank, score) for rank, (doc_id, (text, score)) in enumerate(ranked, start=1)]


def _hash(query_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(query_id.encode(), digest_size=8).digest(), "big")
