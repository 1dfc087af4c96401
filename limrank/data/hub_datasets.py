"""Datasets of the Hugging Face hub with seeds or personas, named ``hub://OWNER/NAME`` or ``hub://OWNER/NAME/CONFIG``.

==============================  ========================================================
layout                          what is read
==============================  ========================================================
retrieval, as ``mteb/msmarco``  configs ``corpus`` (``_id, title, text``), ``queries``
                                (``_id, text``) and ``default`` or ``qrels`` (``query-id,
                                corpus-id, score``); for a dataset like ``BeIR/msmarco``, the
                                judgements in a second repository, ``OWNER/NAME-qrels``
rows                            a config's rows; ``train`` if there are several splits
==============================  ========================================================

A local directory of that layout can be given instead; its ``README.md`` names the files of each config.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limrank.data.hub import HubRepository
from limrank.errors import UserError, first_line
from limrank.files import is_file
from limrank.parsing import clipped
from limrank.records import Document, Qrels, Query

if TYPE_CHECKING:
    from datasets import Dataset

SCHEME = "hub://"
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w.-]+))?")
_BATCH = 10_000
_QRELS = ("default", "qrels")


@dataclass(frozen=True)
class HubDataset:
    """A config of a repository; None is its only config, or its default."""

    repository: HubRepository
    config: str | None

    def __str__(self) -> str:
        return f"{self.repository}/{self.config}" if self.config else str(self.repository)

    @classmethod
    def of(cls, value: str, key: str) -> HubDataset | None:
        """The dataset that a recipe's value names, or the local directory of one; None for another kind of value.

        Args:
            key: the recipe's key, for messages.

        Raises:
            UserError: the value begins with ``hub://`` and is no such name.
        """
        if value.startswith(SCHEME):
            found = _NAME.fullmatch(value.removeprefix(SCHEME))
            if not found:
                raise UserError(f"{key}: {value}: should be {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME/CONFIG")
            return cls(HubRepository(found[1], key), found[2])
        has = [is_file(f"{value}/{name}") for name in ("README.md", "queries.jsonl", "queries.jsonl.gz")]
        return cls(HubRepository(value, key), None) if has == [True, False, False] else None

    def is_retrieval(self) -> bool:
        return self.config is None and {"corpus", "queries"} <= set(self.repository.configs())

    def rows(self, columns: Collection[str], config: str | None = None) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yield ``(1-based number, location for messages, record)`` for a config's rows.

        A record has those of ``columns`` that the config has.
        """
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
        """The judgements of the split ``train``, or else ``test``, or else the first by name."""
        configs = self.repository.configs()
        config = next((name for name in _QRELS if name in configs), None)
        separate = replace(self.repository, source=f"{self.repository.source}-qrels")
        judged = self if config else HubDataset(separate, None)
        found: Qrels = {}
        for _, where, record in judged.rows(("query-id", "corpus-id", "score"), config):
            try:
                query_id, doc_id, grade = str(record["query-id"]), str(record["corpus-id"]), int(record["score"])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: judgements have query-id, corpus-id and a whole number as score") from None
            found.setdefault(query_id, {})[doc_id] = grade
        return found

    def documents(self, wanted: Collection[str] | None = None) -> Iterator[Document]:
        """Yield the documents of ``corpus``, or only those of the ``wanted`` ids; memory holds a batch of them."""
        for _, where, record in self.rows(("_id", "id", "title", "text"), "corpus"):
            doc_id = _id(record, where)
            if wanted is None or doc_id in wanted:
                yield Document(doc_id, _text(record, "text", where), title=record.get("title") or "")

    def _split(self, config: str | None) -> Dataset:
        splits = self.repository.splits(config)
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
