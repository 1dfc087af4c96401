"""Held-out nDCG@10: the model in training reranks a small benchmark directly.

Candidates, prompts and order are those of a rerank job with ``scoring.mode: direct``; only the
forward pass is the trainer's.
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
    """Queries with their candidates, in the order of the first stage.

    ``pairs`` are encoded up to the label, query by query; ``documents`` are their (query id, document
    id). ``warnings`` are sentences for the user about the data.
    """

    pairs: list[EncodedExample]
    documents: list[tuple[str, str]]
    qrels: Qrels
    warnings: list[str]

    def ndcg(self, scores: Sequence[float]) -> float:
        """Mean nDCG@10 of the candidates by score; equal scores keep the order of the first stage."""
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
    """Load and encode a dev set; a pair longer than ``cutoff`` tokens loses the end of its passage.

    Raises:
        UserError: the data is missing, a query is too long even without a passage, or no query has a
            candidate.
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
            pairs.append(_with_label(encode_closed(tokenizer, prompt, ""), label, query.query_id))
            documents.append((query.query_id, candidate.doc_id))
    if not pairs:
        raise UserError("dev: its first stage finds no candidate for any of its queries: check dev.data")
    return DevSet(pairs, documents, benchmark.qrels, warnings)


def _with_label(prompt: list[int], label: list[int], query_id: str) -> EncodedExample:
    """A pair whose only target is a label's token: the logits of both labels are read at its position."""
    import numpy as np

    return EncodedExample(
        0, np.asarray(prompt + label, dtype=np.int32), len(prompt), False, (query_id,), truncated=False
    )
