"""Held-out nDCG@10: a small benchmark, reranked directly by the model that is in training.

The candidates, the prompts and the order are those of a rerank job with ``scoring.mode:
direct``; only the engine is the training's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limrank import retrieval
from limrank.config import DevConfig
from limrank.data import benchmarks
from limrank.errors import RowError, UserError
from limrank.evaluation.metrics import evaluate
from limrank.records import Qrels
from limrank.scoring import TRUE, close_tokens, encode_closed, encode_pair
from limrank.training.examples import EncodedExample

if TYPE_CHECKING:
    from limrank.engines.base import Tokenizer

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class DevSet:
    """Queries with their candidates, best of the first stage first.

    ``pairs`` are encoded up to where the label would stand, query by query; ``documents``
    are (query id, document id) of each. ``warnings`` are sentences for a person, about the data.
    """

    pairs: list[EncodedExample]
    documents: list[tuple[str, str]]
    qrels: Qrels
    warnings: list[str]

    def ndcg(self, scores: Sequence[float]) -> float:
        """Mean nDCG@10 of the candidates in the order of their scores, then of the first stage."""
        ranked: dict[str, list[tuple[float, str]]] = {}
        for (query_id, doc_id), score in zip(self.documents, scores, strict=True):
            ranked.setdefault(query_id, []).append((score, doc_id))
        run = {
            query_id: {
                doc_id: -rank for rank, (_, doc_id) in enumerate(sorted(found, key=lambda each: -each[0]), start=1)
            }
            for query_id, found in ranked.items()
        }
        return evaluate(self.qrels, run, [MEASURE]).mean[MEASURE]


def read_dev_set(dev: DevConfig, tokenizer: Tokenizer, template: str, cutoff: int) -> DevSet:
    """Load and encode; a pair that is longer than ``cutoff`` tokens loses the end of its passage.

    Raises:
        UserError: the data is not there, a query alone is too long, or no query has a candidate.
    """
    benchmark = benchmarks.load(dev.data)
    close, label = close_tokens(tokenizer), tokenizer.encode(TRUE, add_special_tokens=False)
    pairs, documents, warnings = [], [], [*benchmark.warnings]
    for query, candidates in retrieval.candidates(benchmark, dev.first_stage, warnings):
        for candidate in candidates:
            try:
                prompt = encode_pair(tokenizer, template, query, candidate.text, max_tokens=cutoff - close - 1)
            except RowError:
                raise UserError(
                    f"dev: query {query.query_id} does not fit in training.cutoff_tokens={cutoff}"
                ) from None
            pairs.append(_asked(encode_closed(tokenizer, prompt, ""), label, query.query_id))
            documents.append((query.query_id, candidate.doc_id))
    if not pairs:
        raise UserError("dev: its first stage finds no candidate for any of its queries: look at dev.data")
    return DevSet(pairs, documents, benchmark.qrels, warnings)


def _asked(prompt: list[int], label: list[int], query_id: str) -> EncodedExample:
    """A pair whose one target is a label's token: its place is where both labels' logits are read."""
    import numpy as np

    return EncodedExample(0, np.asarray(prompt + label, dtype=np.int32), len(prompt), False, (query_id,), cut=False)
