"""The first stage: the candidate documents of each query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from limrank.config import FirstStageConfig
from limrank.data import trec
from limrank.data.run_ids import match_run, unknown_documents
from limrank.errors import UserError
from limrank.records import Benchmark, Candidate, Document, Query, Run
from limrank.text.analyzer import Analyzer
from limrank.text.languages import with_language

if TYPE_CHECKING:
    import bm25s
    from bm25s.tokenization import Tokenized
    from numpy import ndarray


def candidates(
    benchmark: Benchmark, first_stage: FirstStageConfig, warnings: list[str] | None = None
) -> Iterator[tuple[Query, list[Candidate]]]:
    """Yield each query with its candidates, at most ``first_stage.depth``, best first.

    Excluded documents are dropped before the list is truncated to the depth. A query for which nothing is found
    has no candidates.

    Args:
        warnings: the list to which warnings about a run that does not match the benchmark are added.

    Raises:
        UserError: the given run cannot be read, has none of the queries, or names a document that the corpus
            lacks; or the benchmark publishes no candidates.
    """
    warnings = [] if warnings is None else warnings
    if first_stage.kind == "run":
        run = _matched(trec.read_run(first_stage.path), benchmark, first_stage.path, warnings)
    elif first_stage.kind == "published":
        run = _matched(_published(benchmark), benchmark, f"the candidates of {benchmark.name}", warnings)
    else:
        run = bm25(
            benchmark.documents,
            benchmark.queries,
            first_stage.depth + max((len(query.excluded) for query in benchmark.queries), default=0),
            k1=first_stage.k1,
            b=first_stage.b,
            query_weights=first_stage.query_weights,
            analyzer=Analyzer(with_language(first_stage, benchmark.documents)),
        )
    contents = {document.doc_id: document.contents for document in benchmark.documents}
    for query in benchmark.queries:
        # sorted() is stable: documents with the same score keep the order of the run.
        ranked = sorted(run.get(query.query_id, {}).items(), key=lambda item: -item[1])
        kept = [(doc_id, score) for doc_id, score in ranked if doc_id not in query.excluded][: first_stage.depth]
        yield (
            query,
            [Candidate(doc_id, contents[doc_id], rank, score) for rank, (doc_id, score) in enumerate(kept, start=1)],
        )


def bm25(
    documents: list[Document],
    queries: list[Query],
    depth: int,
    *,
    k1: float = 0.9,
    b: float = 0.4,
    query_weights: Literal["count", "bm25"] = "count",
    analyzer: Analyzer | None = None,
) -> Run:
    """BM25 by bm25s (Lucene's variant) over the words of :mod:`limrank.text.analyzer`.

    Documents that share no word with the query are left out.

    Args:
        query_weights: the weight of a word in a query: its count, or its BM25 weight as in a document. The
            latter is that of BRIGHT's BM25 (gensim's) and Anserini's ``bm25qs``.
        analyzer: finds the words; None: the English analyzer, as in Lucene.
    """
    import bm25s

    analyzer = analyzer or Analyzer(FirstStageConfig())
    indexed = analyzer.tokens(document.contents for document in documents)
    if not indexed.vocab or not queries:  # bm25s takes neither a corpus without words nor no queries
        return {query.query_id: {} for query in queries}
    index = bm25s.BM25(k1=k1, b=b)
    index.index(indexed, show_progress=False)
    depth = min(depth, len(documents))
    searched = analyzer.tokens(query.retrieval_text or f"{query.text} {query.instruction}" for query in queries)
    if query_weights == "count":
        indexes, scores = index.retrieve(searched, k=depth, show_progress=False, n_threads=1)
    else:
        length = sum(map(len, indexed.ids)) / len(documents)
        indexes, scores = _retrieve_weighted(index, searched, depth, length)
    return {
        query.query_id: {
            documents[found].doc_id: float(score)
            for found, score in zip(query_indexes, query_scores, strict=True)
            if score > 0
        }
        for query, query_indexes, query_scores in zip(queries, indexes.tolist(), scores.tolist(), strict=True)
    }


def _retrieve_weighted(index: bm25s.BM25, searched: Tokenized, depth: int, length: float) -> tuple[ndarray, ndarray]:
    """Like ``index.retrieve``, with the words of a query weighted by BM25.

    Args:
        length: mean length of a document, in words.

    Returns:
        indexes and scores of the best ``depth`` documents, each of shape (queries, depth).
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    starts, documents = index.scores["indptr"], index.scores["num_docs"]
    weights = csr_matrix((index.scores["data"], index.scores["indices"], starts), shape=(len(starts) - 1, documents))
    holding = np.diff(starts)
    idf = np.log1p((documents - holding + 0.5) / (holding + 0.5))
    words = {word_id: word for word, word_id in searched.vocab.items()}
    found = []
    for query in searched.ids:
        known = np.asarray(index.get_tokens_ids([words[word_id] for word_id in query]), dtype=np.int64)
        ids, counts = np.unique(known, return_counts=True)
        norm = index.k1 * (1 - index.b + index.b * len(known) / length)
        query_weights = csr_matrix((idf[ids] * counts / (counts + norm), ids, [0, len(ids)]), shape=(1, len(holding)))
        scores = (query_weights @ weights).toarray()[0]
        best = np.argsort(-scores, kind="stable")[:depth]
        found.append((best, scores[best]))
    return np.array([indexes for indexes, _ in found]), np.array([scores for _, scores in found])


def _published(benchmark: Benchmark) -> Run:
    if benchmark.published is None:
        raise UserError(
            f"first_stage.kind=published: {benchmark.name} publishes no candidates; the hub's followir/<collection> do"
        )
    return benchmark.published()


def _matched(run: Run, benchmark: Benchmark, where: str, warnings: list[str]) -> Run:
    """The run's lists for the benchmark's queries. Raises UserError: they name documents that the corpus lacks."""
    lists, warning = match_run(run, benchmark, where)
    if unknown := unknown_documents(lists, benchmark):
        raise UserError(f"{where}: {unknown}")
    warnings += warning
    return lists
