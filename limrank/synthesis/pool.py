"""The pool of all kept rows: duplicate queries, copies of benchmarks, and the examples to train on.
``rows/`` is only read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limrank.batch.rows import read_rows
from limrank.config import SynthesisConfig
from limrank.records import Document, PassageRole, Query, synthesis_row_schema
from limrank.storage import Storage
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.embeddings import embedder
from limrank.synthesis.mining import Mined, mine_passages
from limrank.synthesis.select import Selection, select
from limrank.synthesis.teachers import Grade, teacher_name
from limrank.text.near_duplicates import find_duplicates

Row = dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """The rows of a run in their final state.

    ``rejected``: example id → reason and detail, for rows that their seed kept and the pool does not.
    ``selection`` is None if all kept rows are exported. ``mined``: the candidates of queries that were written for
    passages, whose rows follow that of their query's passage; None for the seeds' examples.
    """

    storage: Storage
    rejected: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    selection: Selection | None = None
    mined: Mined | None = None
    teacher: str | None = None

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their files, with their final ``kept``, ``reject_reason``,
        ``reject_detail`` and ``selected``, and with ``source``, ``teacher_score`` and ``teacher``."""
        chosen = None if self.selection is None else frozenset(self.selection.example_ids)
        for written in _read(self.storage):
            for row in self._with_mined(written):
                row["selected"] = row["kept"] if chosen is None else row["example_id"] in chosen
                yield row

    def selected_queries(self) -> Iterator[str]:
        """The ids of the queries with a selected row, in the order of the rows."""
        return iter(dict.fromkeys(query_of(row["example_id"]) for row in self.rows() if row["selected"]))

    def _with_mined(self, row: Row) -> Iterator[Row]:
        if found := self.rejected.get(row["example_id"]):
            reason, detail = found
            row |= {"kept": False, "reject_reason": reason, "reject_detail": detail}
        row |= {"source": "passages" if self.mined else "seeds", "teacher_score": None, "teacher": None}
        found = self.mined and row["passage"] and self.mined.queries.get(query_of(row["example_id"]))
        yield row | self._graded(found.grade, True) if found else row
        if not found or found.fault or not row["kept"]:
            return
        for number, candidate in enumerate((*found.negatives, *found.doubtful), 1):
            reason, detail = candidate.fault or (None, None)
            yield (
                row
                | self._graded(candidate.grade, False)
                | {
                    "example_id": f"{found.query_id}/{number}-{PassageRole.MINED_NEGATIVE}",
                    "passage": self.mined.documents[candidate.doc_id].contents,
                    "passage_role": str(PassageRole.MINED_NEGATIVE),
                    "label": False,
                    "kept": reason is None,
                    "reject_reason": reason,
                    "reject_detail": detail,
                }
            )

    def _graded(self, grade: Grade | None, label: bool) -> Row:
        """A grade's columns. A reranker's chain is taken where it ends in the label."""
        if grade is None:
            return {"teacher_score": None, "teacher": None}
        agrees = grade.probability is not None and (grade.probability > 0.5) == label
        return {
            "teacher_score": grade.score,
            "teacher": self.teacher,
            "judge_score": grade.probability,
            "reasoning": grade.reasoning if agrees else None,
        }


def dedupe_and_select(
    storage: Storage,
    settings: SynthesisConfig,
    benchmarks: Benchmarks | None,
    seed: int,
    corpus: Sequence[Document] | None = None,
    judged: Mapping[str, Collection[str]] | None = None,
) -> Pool:
    """Reject kept rows that are ``contaminated`` or have a ``duplicate_query``, mine the candidates of queries that
    were written for passages, and select ``settings.size`` of what is left.

    The first of several duplicate queries stays: first those with a positive and a negative, then in
    the order of the files.

    Args:
        corpus: with ``source: passages``, its documents.
        judged: with ``writer: none``, seed id → the ids of the documents that are relevant to it.
    """
    rejected: dict[str, tuple[str, str]] = {}
    queries: dict[str, str] = {}
    labels: dict[str, set[bool]] = {}
    for row in _kept(storage):
        if benchmarks and (found := benchmarks.example_overlap(row["query"], row["instruction"], row["passage"])):
            rejected[row["example_id"]] = "contaminated", str(found)
        else:
            query_id = query_of(row["example_id"])
            queries.setdefault(query_id, row["query"])
            labels.setdefault(query_id, set()).add(row["label"])
    pool = Pool(storage, rejected)
    if corpus is not None:
        # Of two queries that are one, the one that finds its passage stays.
        pool = _mined(pool, settings, benchmarks, seed, corpus, judged or {})
    pool = _without_duplicates(pool, queries, labels, settings.near_duplicate)
    if settings.size is None:
        return pool
    embed = embedder(settings.embedder)
    return replace(pool, selection=select(pool.rows(), settings.size, settings.select, seed=seed, embed=embed))


def _without_duplicates(
    pool: Pool, queries: Mapping[str, str], labels: Mapping[str, set[bool]], near_duplicate: float
) -> Pool:
    """The pool without the rows of queries that repeat another one that is kept.

    Args:
        queries: query id → text, of all rows that were kept when they were written.
        labels: query id → the labels of its rows.
    """
    kept = [row["example_id"] for row in _kept(pool.storage) if row["example_id"] not in pool.rejected]
    left = dict.fromkeys(query_of(example_id) for example_id in kept)
    ordered = sorted(((each, queries[each]) for each in left), key=lambda each: -len(labels[each[0]]))
    firsts = find_duplicates(ordered, near_duplicate)
    repeated = {
        example_id: ("duplicate_query", first) for example_id in kept if (first := firsts.get(query_of(example_id)))
    }
    return replace(pool, rejected={**pool.rejected, **repeated})


def _mined(
    pool: Pool,
    settings: SynthesisConfig,
    benchmarks: Benchmarks | None,
    seed: int,
    corpus: Sequence[Document],
    judged: Mapping[str, Collection[str]],
) -> Pool:
    left = {row["example_id"]: row for row in _kept(pool.storage) if row["example_id"] not in pool.rejected}
    own = _documents_of(left.values(), corpus, settings)
    asked = [
        (Query(query_of(example_id), row["query"], row["instruction"] or ""), doc_id)
        for (example_id, row), doc_id in zip(left.items(), own, strict=True)
    ]
    relevant = _relevant(asked, left, judged) if settings.writer == "none" else None
    mined = mine_passages(asked, corpus, settings, benchmarks, seed, pool.storage, relevant)
    faults = {
        example_id: fault for example_id in left if (fault := mined.queries[query_of(example_id)].fault) is not None
    }
    return replace(
        pool,
        rejected={**pool.rejected, **faults},
        mined=mined,
        teacher=settings.teacher and teacher_name(settings.teacher),
    )


def _documents_of(rows: Iterable[Row], corpus: Sequence[Document], settings: SynthesisConfig) -> list[str]:
    """The id of each row's passage in the corpus. A seed is that passage, or with ``writer: none`` a query."""
    if settings.writer != "none":
        return [row["seed_id"] for row in rows]
    by_contents = {document.contents: document.doc_id for document in reversed(corpus)}
    return [by_contents[row["passage"]] for row in rows]


def _relevant(
    asked: Sequence[tuple[Query, str]], rows: Mapping[str, Row], judged: Mapping[str, Collection[str]]
) -> dict[str, set[str]]:
    """The ids of the documents that are relevant to each query: those judged so, and the passages of all queries with
    its text."""
    answers: dict[str, set[str]] = {}
    for query, doc_id in asked:
        answers.setdefault(query.question, set()).add(doc_id)
    return {
        query.query_id: answers[query.question] | set(judged.get(row["seed_id"], ()))
        for (query, _), row in zip(asked, rows.values(), strict=True)
    }


def query_of(example_id: str) -> str:
    """The id of an example's query, with which the id of the example begins."""
    return example_id.rpartition("/")[0]


def _kept(storage: Storage) -> Iterator[Row]:
    return (row for row in _read(storage) if row["kept"])


def _read(storage: Storage) -> Iterator[Row]:
    for table in read_rows(storage, "rows", synthesis_row_schema().names):
        yield from table.to_pylist()
