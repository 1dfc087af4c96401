"""The first documents of a corpus for each query, by BM25 and by an embedder."""

from __future__ import annotations

from collections.abc import Sequence

from limrank import retrieval
from limrank.config import FirstStageConfig, SynthesisConfig
from limrank.records import Document, Query, Run
from limrank.scoring import prompt_query
from limrank.synthesis.embeddings import sentence_embeddings
from limrank.text.analyzer import Analyzer
from limrank.text.languages import with_language


def search(queries: Sequence[Query], documents: Sequence[Document], settings: SynthesisConfig) -> list[Run]:
    """The first documents for each query, by each retriever."""
    depth = max(settings.mine_depth + 1, settings.round_trip.k)
    runs = []
    for retriever in settings.round_trip.retrievers:
        if retriever == "embedder":
            runs.append(_nearest(settings.embedder, queries, documents, depth))
        else:
            runs.append(bm25(queries, documents, depth))
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


def bm25(queries: Sequence[Query], documents: Sequence[Document], depth: int) -> Run:
    analyzer = Analyzer(with_language(FirstStageConfig(language="auto"), list(documents)))
    return retrieval.bm25(list(documents), list(queries), depth, analyzer=analyzer)
