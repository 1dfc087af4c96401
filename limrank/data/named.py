"""Datasets of the Hugging Face hub by name, as seeds and personas come from them: the name
``hub://OWNER/NAME`` or ``hub://OWNER/NAME/CONFIG``.

==============================  ========================================================
layout                          what is read
==============================  ========================================================
retrieval, as ``mteb/msmarco``  configs ``corpus`` (``_id, title, text``), ``queries``
                                (``_id, text``) and ``default`` or ``qrels`` (``query-id,
                                corpus-id, score``); as ``BeIR/msmarco`` the last of these in
                                a repository of its own, ``OWNER/NAME-qrels``
rows                            a config's rows; of several splits ``train``
==============================  ========================================================

Everything reads a local directory of that layout just as well: its ``README.md`` names the
files of each config.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank.data import hub
from limrank.errors import UserError, first_line
from limrank.files import is_file
from limrank.parsing import clipped
from limrank.records import Document, Qrels, Query

if TYPE_CHECKING:
    from datasets import Dataset

NAMED = "hub://"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?")
_BATCH = 10_000
_QRELS = ("default", "qrels")


@dataclass(frozen=True)
class Repository:
    """``source`` is ``OWNER/NAME`` or a directory; ``config`` None is its only one, or its default.
    ``key`` is the recipe's, for a person."""

    source: str
    config: str | None
    key: str

    def __str__(self) -> str:
        return f"{self.source}/{self.config}" if self.config else self.source

    @classmethod
    def of(cls, value: str, key: str) -> Repository | None:
        """The repository that a recipe's value names, or the directory of one that it is; None
        for another kind of value.

        Raises:
            UserError: it is no such name.
        """
        if value.startswith(NAMED):
            found = _NAME.fullmatch(value.removeprefix(NAMED))
            if not found:
                raise UserError(f"{key}: {value}: should be {NAMED}OWNER/NAME or {NAMED}OWNER/NAME/CONFIG")
            return cls(found[1], found[2], key)
        has = [is_file(f"{value}/{name}") for name in ("README.md", "queries.jsonl", "queries.jsonl.gz")]
        return cls(value, None, key) if has == [True, False, False] else None

    def configs(self) -> list[str]:
        """Raises UserError: the hub cannot be reached, or has no such repository."""
        import datasets

        with hub.one_line_errors(self.key, self.source):
            return datasets.get_dataset_config_names(self.source)

    def is_retrieval(self) -> bool:
        return self.config is None and {"corpus", "queries"} <= set(self.configs())

    def rows(self, columns: Collection[str], config: str | None = None) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """``(1-based number, where it is for a person, record)`` of a config's rows; of these
        ``columns`` those that there are."""
        dataset, number = self._split(config or self.config), 0
        there = [name for name in columns if name in dataset.column_names]
        if not there:
            has = clipped(", ".join(dataset.column_names))
            raise UserError(f"{self}: has none of the columns {', '.join(columns)}; it has {has}")
        try:
            for batch in dataset.select_columns(there).with_format("arrow").iter(_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, f"{self}: row {number}", record
        except Exception as error:  # what datasets raises depends on what is damaged
            raise UserError(f"{self}: row {number + 1} cannot be read: {clipped(first_line(error))}") from None

    def queries(self) -> list[Query]:
        return [
            Query(_id(record, where), _text(record, "text", where))
            for _, where, record in self.rows(("_id", "id", "text"), "queries")
        ]

    def qrels(self) -> Qrels:
        """The judgements of ``train``, where there is none of ``test``, else of the first split by name."""
        configs = self.configs()
        config = next((name for name in _QRELS if name in configs), None)
        judged = self if config else Repository(f"{self.source}-qrels", None, self.key)
        found: Qrels = {}
        for _, where, record in judged.rows(("query-id", "corpus-id", "score"), config):
            try:
                query_id, doc_id, grade = str(record["query-id"]), str(record["corpus-id"]), int(record["score"])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: judgements have query-id, corpus-id and a whole number as score") from None
            found.setdefault(query_id, {})[doc_id] = grade
        return found

    def documents(self, wanted: Collection[str] | None = None) -> Iterator[Document]:
        """The documents of ``corpus``, or those of these ids; a batch of them in memory at a time."""
        for _, where, record in self.rows(("_id", "id", "title", "text"), "corpus"):
            doc_id = _id(record, where)
            if wanted is None or doc_id in wanted:
                yield Document(doc_id, _text(record, "text", where), title=record.get("title") or "")

    def _split(self, config: str | None) -> Dataset:
        splits = hub.load_splits(self.source, config, key=self.key)
        return splits.get("train") or splits.get("test") or splits[min(splits)]


def _id(record: dict[str, Any], where: str) -> str:
    value = record.get("_id", record.get("id"))
    if value is None:
        raise UserError(f"{where}: _id is missing")
    return str(value)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(record.get(key), str):
        raise UserError(f"{where}: {key} is missing, or no text")
    return record[key]
