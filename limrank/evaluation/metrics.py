"""Effectiveness measures of a run, through ir_measures, and FollowIR's p-MRR.

A leaf: anyone may import it, and the import is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from limrank.errors import UserError
from limrank.records import Qrels, Run

if TYPE_CHECKING:
    import ir_measures

_EXAMPLES = "nDCG@10, AP, RR, R@20, P@5"
_MAX_CUTOFF = 1_000_000


@dataclass(frozen=True)
class Scores:
    """The result of :func:`evaluate`.

    Attributes:
        mean: ``{measure: value}``, in the order of the measures given, by ir_measures' names.
        per_query: ``{measure: {query_id: value}}``; queries are in the order of the judgements.
        missing: the judged queries that the run lacks.
    """

    mean: dict[str, float]
    per_query: dict[str, dict[str, float]]
    missing: list[str]

    @property
    def queries(self) -> list[str]:
        """Every query that counts in the means."""
        return list(next(iter(self.per_query.values())))


def evaluate(qrels: Qrels, run: Run, measures: Sequence[str]) -> Scores:
    """Measure a run over every judged query, as the ``ir_measures`` command does.

    A judged query that the run lacks, or for which it ranks nothing, is 0 in every measure and counts in every
    mean. The same holds for a query without a relevant document, as in trec_eval. Queries that are not judged
    are ignored. Documents with equal scores are ordered by id, descending, as in trec_eval.

    Args:
        qrels: grades; a grade of 1 or more is relevant.
        run: a ranking by score.
        measures: names in ir_measures' syntax, such as ``nDCG@10``, ``AP(rel=2)``.

    Raises:
        UserError: a measure is unknown, or there are no judgements.
    """
    if not qrels:
        raise UserError("there are no judgements to evaluate the run by")
    parsed = [parse_measure(name) for name in measures]
    if not parsed:
        raise UserError(f"evaluation.measures: name at least one measure, for example {_EXAMPLES}")
    ranked = {query_id: run[query_id] for query_id in qrels if run.get(query_id)}
    per_query = {str(measure): dict.fromkeys(qrels, 0.0) for measure in parsed}
    if ranked:
        for metric in _provider().iter_calc(parsed, qrels, ranked):
            per_query[str(metric.measure)][metric.query_id] = float(metric.value)
    mean = {name: sum(values.values()) / len(values) for name, values in per_query.items()}
    return Scores(mean, per_query, [query_id for query_id in qrels if query_id not in ranked])


def parse_measure(name: str) -> ir_measures.Measure:
    """ir_measures' object for a measure's name.

    Raises:
        UserError: the name is unknown or malformed, the measure is a count instead of a mean over queries,
            or no installed package computes it.
    """
    import ir_measures

    what = f"evaluation.measures: {name!r}"
    try:
        measure = ir_measures.parse_measure(name)
        supported = _provider().supports(measure)
    except (NameError, ValueError, TypeError, KeyError, AssertionError):  # it asserts on invalid names
        raise UserError(f"{what} is not a measure; examples: {_EXAMPLES}") from None
    cutoff = measure.params.get("cutoff", 1)
    if not 1 <= cutoff <= _MAX_CUTOFF:  # trec_eval crashes the process on 0
        raise UserError(f"{what}: the cut-off should be from 1 to {_MAX_CUTOFF}")
    if not supported:
        raise UserError(f"{what} cannot be computed here; examples: {_EXAMPLES}")
    if not isinstance(measure.aggregator(), ir_measures.measures.base.MeanAgg):
        raise UserError(f"{what} is a count, not a mean over queries; examples: {_EXAMPLES}")
    return measure


def p_mrr(original: Run, changed: Run, flipped: dict[str, list[str]]) -> float:
    """How well a ranking follows a change of instruction (FollowIR, eq. 1; arXiv 2403.15246).

    Args:
        original: the run under the original instructions; query ids bare or with ``-og``.
        changed: the run under the changed ones; query ids bare or with ``-changed``.
        flipped: for each topic (bare id) the documents that the change made irrelevant.

    Returns:
        the mean over topics, in (-1, 1): positive if these documents fell, negative if they rose. Papers
        print it times 100.

    Raises:
        UserError: no topic has a flipped document.
    """
    topics = p_mrr_by_topic(original, changed, flipped)
    if not topics:
        raise UserError("p-MRR: no topic has a document whose relevance the changed instruction flipped")
    return sum(topics.values()) / len(topics)


def p_mrr_by_topic(original: Run, changed: Run, flipped: dict[str, list[str]]) -> dict[str, float]:
    """``{topic: value}``, of which :func:`p_mrr` is the mean.

    A topic that one of the runs lacks is 0. A topic without flipped documents is left out, since a mean over
    none is undefined.
    """
    values = {}
    for topic, doc_ids in flipped.items():
        if not doc_ids:
            continue
        before = _ranks(original.get(f"{topic}-og") or original.get(topic))
        after = _ranks(changed.get(f"{topic}-changed") or changed.get(topic))
        values[topic] = 0.0
        if before and after:
            # A document that a run lacks is ranked directly after its last one.
            ranks = [(before.get(doc, len(before) + 1), after.get(doc, len(after) + 1)) for doc in doc_ids]
            values[topic] = sum(_rank_change(old, new) for old, new in ranks) / len(ranks)
    return values


def _rank_change(old: int, new: int) -> float:
    """FollowIR's s(d) of a document's 1-based ranks: positive if it fell."""
    return new / old - 1 if old >= new else 1 - old / new


def _ranks(scores: dict[str, float] | None) -> dict[str, int]:
    """1-based ranks by score, ties by document id, both descending (trec_eval's order)."""
    order = sorted((scores or {}).items(), key=lambda item: (item[1], item[0]), reverse=True)
    return {doc_id: rank for rank, (doc_id, _) in enumerate(order, start=1)}


@cache
def _provider() -> ir_measures.providers.Provider:
    """The implementations of the ``ir_measures`` command, except external programs and those that accept only
    numeric query ids (gdeval)."""
    import ir_measures

    names = ("pytrec_eval", "judged", "msmarco")
    return ir_measures.providers.FallbackProvider([ir_measures.providers.registry[name] for name in names])
