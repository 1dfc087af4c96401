"""What becomes of the queries that were written for passages, decided over all of them.

A query has to find its passage again (``synthesis.round_trip``), and a teacher has to agree
(``synthesis.teacher``). Its negatives are the candidates that the teacher puts well below its passage: BM25's
first candidates are often relevant, and training on them as negatives costs more than any other fault of the data
(RocketQA, arXiv 2010.08191, table 4). Everything here reads ``rows/`` and the corpus, and may be done anew
with other settings.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from limrank import retrieval
from limrank.config import FirstStageConfig, SynthesisConfig
from limrank.records import Document, Query, Run
from limrank.scoring import prompt_query
from limrank.scoring.fusion import fuse
from limrank.storage import Storage
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.embeddings import sentence_embeddings
from limrank.synthesis.filters import same_text
from limrank.synthesis.select import in_turn
from limrank.synthesis.teachers import Grade, open_teacher
from limrank.text.analyzer import Analyzer
from limrank.text.languages import with_language
from limrank.text.words import words


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage of the corpus for a query. ``fault`` is why it is no negative, with the detail."""

    doc_id: str
    grade: Grade | None = None
    fault: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class MinedQuery:
    """A query with the grades of its passage and candidates.

    Attributes:
        fault: why the query is rejected, and the detail; None if it is not.
        grade: of its own passage; None without a teacher.
        negatives: the candidates that are taken.
        doubtful: candidates that may be relevant.
        listed: graded candidates of the query's record in ``lists.jsonl``, without its own passage.
    """

    query_id: str
    doc_id: str
    fault: tuple[str, str] | None = None
    grade: Grade | None = None
    negatives: tuple[Candidate, ...] = ()
    doubtful: tuple[Candidate, ...] = ()
    listed: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Mined:
    """All queries that were kept when they were written, and the corpus.

    ``candidates`` are the ranked documents of each query that found its passage, which is one of them: what a
    teacher grades. ``warnings`` are sentences on what it did not grade.
    """

    queries: Mapping[str, MinedQuery]
    asked: Mapping[str, Query]
    documents: Mapping[str, Document] = field(repr=False)
    candidates: Mapping[str, Sequence[str]] = field(repr=False)
    warnings: Sequence[str] = ()


def mine_passages(
    asked: Sequence[tuple[Query, str]],
    documents: Sequence[Document],
    settings: SynthesisConfig,
    benchmarks: Benchmarks | None,
    seed: int,
    storage: Storage | None = None,
) -> Mined:
    """Find, grade and choose the candidates of written queries.

    Args:
        asked: queries, each with the id of the document that it was written for.
        seed: draws what is drawn, for each query by itself.
        storage: keeps the grades of a teacher that is a model.
    """
    by_id = {document.doc_id: document for document in documents}
    own = {query.query_id: doc_id for query, doc_id in asked}
    ranked = _search([query for query, _ in asked], documents, settings)
    mined = {
        query_id: MinedQuery(query_id, own[query_id], fault) for query_id, fault in _lost(own, ranked, settings).items()
    }
    found = [query for query, _ in asked if query.query_id not in mined]

    @cache
    def words_of(doc_id: str) -> list[str]:
        return words(by_id[doc_id].contents)

    lists = [_candidates(own[query.query_id], ranked, query.query_id, words_of, settings.mine_depth) for query in found]
    passages = [[by_id[doc_id] for doc_id in each] for each in lists]
    grades, deviation, warnings = _graded(found, passages, settings, storage, seed)
    if settings.teacher and settings.teacher.bm25_weight:
        grades = _with_bm25(found, lists, grades, documents, settings)
        deviation = spread(grades)
    repeated = _Repeated(benchmarks, by_id)
    for query, doc_ids, graded in zip(found, lists, grades, strict=True):
        passage = own[query.query_id]
        by_doc = dict(zip(doc_ids, graded, strict=True))
        grade = by_doc.pop(passage)
        others = [Candidate(*each) for each in by_doc.items() if not repeated.find(each[0])]
        draw = random.Random(f"{seed}/mined/{query.query_id}")
        mined[query.query_id] = _decided(
            MinedQuery(query.query_id, passage, grade=grade), others, deviation, settings, draw
        )
    return Mined(
        {query.query_id: mined[query.query_id] for query, _ in asked},
        {query.query_id: query for query, _ in asked},
        by_id,
        {query.query_id: each for query, each in zip(found, lists, strict=True)},
        warnings,
    )


def _graded(
    queries: Sequence[Query],
    passages: Sequence[Sequence[Document]],
    settings: SynthesisConfig,
    storage: Storage | None,
    seed: int,
) -> tuple[list[list[Grade | None]], float | None, Sequence[str]]:
    """The teacher's grades, their :func:`spread`, which is None without a teacher, and its warnings."""
    if settings.teacher is None:
        return [[None] * len(each) for each in passages], None, ()
    teacher = open_teacher(settings.teacher, storage, seed)
    grades = teacher.grade(queries, passages)
    return grades, spread(grades), teacher.warnings


def spread(grades: Sequence[Sequence[Grade | None]]) -> float:
    """The standard deviation of a query's scores, as a mean over the queries that have two or more; 0 without any."""
    scores = [[grade.score for grade in each if grade] for each in grades]
    deviations = [statistics.pstdev(each) for each in scores if len(each) > 1]
    return statistics.fmean(deviations) if deviations else 0.0


def _with_bm25(
    queries: Sequence[Query],
    lists: Sequence[Sequence[str]],
    grades: Sequence[Sequence[Grade | None]],
    documents: Sequence[Document],
    settings: SynthesisConfig,
) -> list[list[Grade | None]]:
    """The grades fused with BM25's scores by :func:`~limrank.scoring.fusion.fuse`. A candidate that is not among
    BM25's first documents has the lowest of their scores."""
    run = _bm25(queries, documents, _BM25_DEPTH)
    fused: list[list[Grade | None]] = []
    for query, doc_ids, graded in zip(queries, lists, grades, strict=True):
        known = run[query.query_id]
        lowest = min(known.values(), default=0.0)
        both = [
            (grade.score, known.get(doc_id, lowest)) for doc_id, grade in zip(doc_ids, graded, strict=True) if grade
        ]
        scores = iter(fuse([own for own, _ in both], [other for _, other in both], settings.teacher.bm25_weight))
        fused.append([grade and replace(grade, score=next(scores)) for grade in graded])
    return fused


_BM25_DEPTH = 100


def _bm25(queries: Sequence[Query], documents: Sequence[Document], depth: int) -> Run:
    analyzer = Analyzer(with_language(FirstStageConfig(language="auto"), list(documents)))
    return retrieval.bm25(list(documents), list(queries), depth, analyzer=analyzer)


def _search(queries: Sequence[Query], documents: Sequence[Document], settings: SynthesisConfig) -> list[Run]:
    """The first documents for each query, by each retriever."""
    depth = max(settings.mine_depth + 1, settings.round_trip.k)
    runs = []
    for retriever in settings.round_trip.retrievers:
        if retriever == "embedder":
            runs.append(_nearest(settings.embedder, queries, documents, depth))
        else:
            runs.append(_bm25(queries, documents, depth))
    return runs


_ROWS = 256
"""Queries whose similarities to the corpus are in memory at a time."""


def _nearest(model: str, queries: Sequence[Query], documents: Sequence[Document], depth: int) -> Run:
    """The documents with the largest cosine to each query."""
    import numpy as np

    if not queries:
        return {}
    vectors = sentence_embeddings(model, [document.contents for document in documents])
    asked = sentence_embeddings(model, [prompt_query(query) for query in queries])
    depth = min(depth, len(documents))
    run: Run = {}
    for start in range(0, len(queries), _ROWS):
        cosines = asked[start : start + _ROWS] @ vectors.T
        # Only the nearest are sorted: sorting a corpus takes longer than the product.
        near = np.sort(np.argpartition(cosines, -depth, axis=1)[:, -depth:], axis=1)
        order = np.argsort(-np.take_along_axis(cosines, near, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(near, order, axis=1)
        for query, row, indexes in zip(queries[start : start + _ROWS], cosines, best, strict=True):
            run[query.query_id] = {documents[index].doc_id: float(row[index]) for index in indexes}
    return run


def _lost(own: Mapping[str, str], runs: Sequence[Run], settings: SynthesisConfig) -> dict[str, tuple[str, str]]:
    """The queries that do not find their passage, with its rank."""
    lost: dict[str, tuple[str, str]] = {}
    if not settings.round_trip.filters:
        return lost
    for query_id, doc_id in own.items():
        for name, run in zip(settings.round_trip.retrievers, runs, strict=True):
            ranks = {found: rank for rank, found in enumerate(run[query_id], 1)}
            rank = ranks.get(doc_id)
            if rank is None or rank > settings.round_trip.k:
                where = f"rank {rank}" if rank else f"not among the first {len(ranks)}"
                lost.setdefault(query_id, ("not_found", f"{name}: {where}"))
    return lost


def _candidates(
    passage: str, runs: Sequence[Run], query_id: str, words_of: Callable[[str], list[str]], depth: int
) -> list[str]:
    """A query's passage and its first ``depth`` other documents, of the retrievers in turn, without copies of the
    passage."""
    merged = dict.fromkeys(in_turn(run[query_id] for run in runs))
    kept = [doc_id for doc_id in merged if doc_id == passage or not same_text(words_of(passage), words_of(doc_id))]
    if passage not in kept[: depth + 1]:
        return [*(doc_id for doc_id in kept[:depth] if doc_id != passage), passage]
    return kept[: depth + 1]


@dataclass
class _Repeated:
    """What a document repeats of a benchmark, looked up once."""

    benchmarks: Benchmarks | None
    documents: Mapping[str, Document]
    known: dict[str, str | None] = field(default_factory=dict)

    def find(self, doc_id: str) -> str | None:
        if self.benchmarks is None:
            return None
        if doc_id not in self.known:
            overlap = self.benchmarks.overlap(self.documents[doc_id].contents)
            self.known[doc_id] = overlap and str(overlap)
        return self.known[doc_id]


_PASSAGE_ABOVE = 0.5
"""By how many standard deviations ``teacher.passage_first`` grades a query's passage above the best candidate."""


def _decided(
    query: MinedQuery,
    others: Sequence[Candidate],
    deviation: float | None,
    settings: SynthesisConfig,
    draw: random.Random,
) -> MinedQuery:
    if deviation is None:
        chosen = draw.sample(others, min(settings.negatives, len(others)))
        return replace(query, negatives=tuple(chosen))
    graded = sorted((each for each in others if each.grade), key=lambda each: -each.grade.score)
    if settings.teacher.passage_first and query.grade and graded:
        first = graded[0].grade.score + _PASSAGE_ABOVE * deviation
        query = replace(query, grade=replace(query.grade, score=max(query.grade.score, first)))
    if fault := _disagreement(query.grade, graded, settings):
        return replace(query, fault=fault)
    score = query.grade.score
    bound = score - settings.teacher.margin * deviation
    doubtful = [
        replace(each, fault=("false_negative", f"{each.grade.score:.4g}, the query's passage {score:.4g}"))
        for each in graded
        if each.grade.score >= bound
    ]
    negatives = [each for each in graded if each.grade.score < bound][: settings.negatives]
    listed = draw.sample(graded, min(settings.list_size - 1, len(graded)))
    return replace(query, negatives=tuple(negatives), doubtful=tuple(doubtful), listed=tuple(listed))


def _disagreement(
    grade: Grade | None, graded: Sequence[Candidate], settings: SynthesisConfig
) -> tuple[str, str] | None:
    """Why the teacher rejects a query."""
    if grade is None:
        return "ungraded", ""
    better = sum(each.grade.score > grade.score for each in graded)
    if better >= settings.teacher.best:
        return "teacher_disagrees", f"{better} candidates have a higher score"
    if settings.teacher.min_score is not None and grade.score < settings.teacher.min_score:
        return "teacher_disagrees", f"score {grade.score:.4g}"
    return None
