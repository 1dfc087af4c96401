"""One system's scores: means over queries with their intervals, and what the ranking cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from limrank.config import EvaluationConfig
from limrank.evaluation.inputs import Inputs
from limrank.evaluation.metrics import Scores, evaluate, p_mrr_by_topic
from limrank.evaluation.report import System, signed
from limrank.evaluation.significance import Difference, bootstrap_interval, paired_bootstrap
from limrank.records import Qrels, Run


class Interval(NamedTuple):
    """A mean over queries and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """One system's scores.

    ``values`` (query → value) and ``intervals`` are by measure. Where the data has changed instructions, they also
    have ``p-MRR``, whose values are by topic.
    """

    name: str
    scores: Scores
    values: dict[str, dict[str, float]]
    intervals: dict[str, Interval]
    pairs_per_second: float | None = None
    tokens_per_pair: float | None = None


def evaluate_run(
    run: Run,
    qrels: Qrels,
    measures: Sequence[str],
    samples: int,
    seed: int,
    *,
    name: str = "run",
    flipped: dict[str, list[str]] | None = None,
    pairs_per_second: float | None = None,
    tokens_per_pair: float | None = None,
) -> Evaluation:
    """Measure a run, with intervals; touches no files.

    Args:
        run, qrels, measures: see ``metrics.evaluate``.
        samples, seed: of the bootstrap.
        name: the system's name in tables.
        flipped: FollowIR's changed judgements, for p-MRR. ``run`` then has the queries of both instructions,
            ``-og`` and ``-changed``.
        pairs_per_second, tokens_per_pair: what the ranking cost, where known.
    """
    scores = evaluate(qrels, run, measures)
    values = dict(scores.per_query)
    if flipped and (topics := p_mrr_by_topic(run, run, flipped)):
        values["p-MRR"] = topics
    intervals = {}
    for measure, column in values.items():
        low, high = bootstrap_interval(list(column.values()), samples, seed=seed)
        intervals[measure] = Interval(sum(column.values()) / len(column), low, high)
    return Evaluation(name, scores, values, intervals, pairs_per_second, tokens_per_pair)


def evaluate_inputs(inputs: Inputs, settings: EvaluationConfig, seed: int, name: str = "") -> Evaluation:
    """Measure a run that was read, with what its ranking cost. ``name`` replaces its own."""
    return evaluate_run(
        inputs.run,
        inputs.qrels,
        settings.measures,
        settings.bootstrap_samples,
        seed,
        name=name or inputs.name,
        flipped=inputs.flipped,
        pairs_per_second=inputs.pairs_per_second,
        tokens_per_pair=inputs.tokens_per_pair,
    )


def paired_differences(one: Evaluation, other: Evaluation, samples: int, seed: int) -> dict[str, Difference]:
    """``one - other`` by measure, paired by query. Both are of the same queries and measures.

    Args:
        samples, seed: of the bootstrap.
    """
    return {
        measure: paired_bootstrap(
            list(one.values[measure].values()), list(other.values[measure].values()), samples, seed=seed
        )
        for measure in one.values
    }


def fusion_finding(differences: Mapping[str, Difference]) -> str:
    """What fusion adds to the pure order by the first measure, in a sentence.

    Args:
        differences: the fused order minus the pure one, by measure.
    """
    verdict, figures = _finding(
        differences, "helps here", "hurts here", "makes no difference that these queries can show"
    )
    return f"Fusion with the first stage {verdict}: {figures}."


def ranking_finding(name: str, base: str, differences: Mapping[str, Difference]) -> str:
    """How far a system is above another one by the first measure, in a sentence.

    Args:
        differences: the system minus ``base``, by measure.
    """
    verdict, figures = _finding(differences, "above it", "below it", "no difference that these queries can show")
    return f"Against the {base}, {name}: {figures}, {verdict}."


def _finding(differences: Mapping[str, Difference], higher: str, lower: str, neither: str) -> tuple[str, str]:
    """Which of three verdicts the interval of the first measure allows, and that measure's figures."""
    measure, (mean, low, high) = next(iter(differences.items()))
    verdict = higher if low > 0 else lower if high < 0 else neither
    return verdict, f"{measure} {signed(mean)} ({signed(low)} to {signed(high)})"


def report_rows(evaluations: Sequence[Evaluation]) -> list[System]:
    """The evaluations as the report shows them."""
    return [System(each.name, each.scores, each.pairs_per_second, each.tokens_per_pair) for each in evaluations]


def p_mrr_facts(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """p-MRR of each evaluation that has it, for the facts of a report: it has no values per query to plot."""
    return {
        f"p-MRR, {each.name}": "{:.4f} ({:.4f} to {:.4f})".format(*each.intervals["p-MRR"])
        for each in evaluations
        if "p-MRR" in each.intervals
    }
