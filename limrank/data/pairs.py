"""Pairs to score: a row is a query and a candidate document, and there is no first stage.

Columns: ``query_id``, ``query``, ``doc_id``, ``text``, and optionally ``instruction`` and ``score``. Ids may be
strings or whole numbers, which become strings. The rows of a query are contiguous. Candidates are ranked by
``score`` (highest first, ties in the order of the rows), or by the order of the rows if there is no such column.

The rows are in a Parquet file or a folder of ``*.parquet`` (in the order of their names), local or in an object
store, or in a folder that ``datasets`` saved (``save_to_disk``). They are read as a stream: memory holds a batch
of rows, one query's candidates, and eight bytes per query.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from limrank.data.tables import Table, open_tables
from limrank.data.trec import check_length, id_fault
from limrank.errors import UserError, first_line
from limrank.parsing import brief
from limrank.records import Candidate, Query

NEEDED = ("query_id", "query", "doc_id", "text")
OPTIONAL = ("instruction", "score")

_MAX_SUSPECTS = 1000


class _Where(NamedTuple):
    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row {self.row}"


@dataclass(frozen=True)
class Pairs:
    """Tables of pairs whose columns are checked and whose rows are not read yet.

    Attributes:
        fingerprints: of the contents: SHA-256 of a local file; path, size and time of change of an object.
        warnings: sentences for the user.
    """

    path: str
    tables: list[Table]
    fingerprints: list[Any]
    warnings: list[str] = field(default_factory=list)

    def queries(self, max_queries: int | None = None) -> Iterator[tuple[Query, list[Candidate]]]:
        """Yield the first ``max_queries`` queries, each with its candidates, best first. Later rows are not read.

        Raises:
            UserError: an id or a text is missing, a document occurs twice for a query, or a query's rows
                are not contiguous; the message names the file and the row, or the column. The last fault
                is found only at the end.
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
        # Two ids may share a hash, so the ids themselves are compared.
        suspects = set(twice[:_MAX_SUSPECTS].tolist())
        first: dict[str, str] = {}
        for query_id, where in islice(self._starts(), len(hashes)):
            if _hash(query_id) not in suspects:
                continue
            if query_id in first:
                raise UserError(
                    f"{where}: query_id {brief(query_id)} has rows after other queries; they begin in {first[query_id]} "
                    "and must be contiguous: sort the pairs by query_id"
                )
            first[query_id] = where

    def _starts(self) -> Iterator[tuple[str, str]]:
        """The query id and location of the first row of each run of rows of one query."""
        current = None
        for row, where in self._rows(("query_id",)):
            if row["query_id"] != current:
                current = row["query_id"]
                yield current, str(where)

    def _rows(self, columns: tuple[str, ...]) -> Iterator[tuple[dict[str, Any], _Where]]:
        for table in self.tables:
            wanted = [name for name in columns if name in table.schema.names]
            start = 1
            for batch in table.batches(wanted):
                values = [_values(batch[name], name, _Where(table.name, start)) for name in wanted]
                for offset, cells in enumerate(zip(*values, strict=True)):
                    yield dict(zip(wanted, cells, strict=True)), _Where(table.name, start + offset)
                start += len(batch)


def open_pairs(path: str, split: str = "test") -> Pairs:
    """Find the files and check their columns; no row is read.

    Args:
        path: see the module.
        split: of a saved dataset that has several.

    Raises:
        UserError: there are no such files, they cannot be read, or a column is missing or of
            the wrong type.
    """
    tables, fingerprints = open_tables(path, split)
    warnings = dict.fromkeys(warning for table in tables for warning in _check_columns(table))
    scored = [table for table in tables if "score" in table.schema.names]
    if 0 < len(scored) < len(tables):
        bare = next(table for table in tables if table not in scored)
        raise UserError(f"{bare.name}: has no column score, and {scored[0].name} has one: all files or none")
    return Pairs(path, tables, fingerprints, list(warnings))


def _check_columns(table: Table) -> Iterator[str]:
    """Yield warnings. Raises UserError: a column is missing or has the wrong type."""
    import pyarrow.types as types

    for name in NEEDED + OPTIONAL:
        if name not in table.schema.names:
            if name in NEEDED:
                raise UserError(
                    f"{table.name}: the column {name} is missing; pairs have {', '.join(NEEDED)} "
                    f"(it has {', '.join(table.schema.names) or 'none'})"
                )
            continue
        if table.schema.names.count(name) > 1:
            raise UserError(f"{table.name}: there are two columns {name}")
        kind = table.schema.field(name).type
        values = kind.value_type if types.is_dictionary(kind) else kind
        if name == "score":
            fits, wanted = types.is_integer(values) or types.is_floating(values), "numbers"
        else:
            is_text = types.is_string(values) or types.is_large_string(values) or types.is_string_view(values)
            is_id = name.endswith("_id") and types.is_integer(values)
            fits, wanted = is_text or is_id, "strings or whole numbers" if name.endswith("_id") else "strings"
            if is_id:
                yield f"{table.name}: {name} holds whole numbers ({values}); they are taken as strings"
        if not fits:
            raise UserError(f"{table.name}: the column {name} is of type {kind}; it should hold {wanted}")


def _values(column: Any, name: str, start: _Where) -> list[Any]:
    """A batch's column as checked Python values; ``start`` is the location of its first row."""
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
            if fault := id_fault(an_id):
                raise UserError(
                    f"{_Where(start.file, row)}: {name} {brief(an_id)} {fault}, and could not stand in a run file"
                )
    return texts


class _Group:
    """The rows of one query, collected as they are read."""

    def __init__(self, row: dict[str, Any], where: _Where) -> None:
        for name in ("query", "instruction"):
            check_length(name, row.get(name) or "", str(where))
        self.query = Query(row["query_id"], row["query"], row.get("instruction") or "")
        self._began = where
        self._passages: dict[str, tuple[str, float | None]] = {}

    def add(self, row: dict[str, Any], where: _Where) -> None:
        for name, known in (("query", self.query.text), ("instruction", self.query.instruction)):
            if (row.get(name) or "") != known:
                raise UserError(
                    f"{where}: query_id {brief(self.query.query_id)} has another {name} than in {self._began}"
                )
        if row["doc_id"] in self._passages:
            raise UserError(
                f"{where}: doc_id {brief(row['doc_id'])} is there twice for query_id {brief(self.query.query_id)}, "
                f"which begins in {self._began}"
            )
        self._passages[row["doc_id"]] = (row["text"], row.get("score"))

    def candidates(self) -> list[Candidate]:
        # sorted() is stable: rows with the same score, or without one, keep their order.
        ranked = sorted(self._passages.items(), key=lambda item: -(item[1][1] or 0.0))
        return [Candidate(doc_id, text, rank, score) for rank, (doc_id, (text, score)) in enumerate(ranked, start=1)]


def _hash(query_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(query_id.encode(), digest_size=8).digest(), "big")
