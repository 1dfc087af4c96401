"""Comparison of rerank runs over the same queries: their quality against their generated tokens.

The run that generated most is the reference. The comparison says which cheaper runs are not inferior to it, and
whether it is worth its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from limrank.evaluation.inputs import Inputs
from limrank.evaluation.report import signed
from limrank.evaluation.significance import Difference, paired_bootstrap
from limrank.evaluation.system import Evaluation, Interval, evaluate_run
from limrank.files import path_of

MARGIN = 0.01
"""A run is not inferior to the reference if the interval of its difference in the first measure does not
go below minus this."""


@dataclass(frozen=True)
class Compared:
    """A run in a comparison, or the first stage that all runs share.

    Attributes:
        generated, prompt: tokens per query.
        is_first_stage: whether all other runs reorder this one.
        from_reference, from_first_stage: differences of the first measure, paired by query; None for the
            reference and the first stage themselves.
        on_frontier: whether no run with as few tokens is as good.
    """

    evaluation: Evaluation
    model: str
    scoring: str
    generated: float
    prompt: float
    is_first_stage: bool = False
    from_reference: Difference | None = None
    from_first_stage: Difference | None = None
    on_frontier: bool = False

    @property
    def name(self) -> str:
        return self.evaluation.name

    @property
    def quality(self) -> Interval:
        """The first measure."""
        return next(iter(self.evaluation.intervals.values()))

    @property
    def values(self) -> list[float]:
        """The first measure of each query."""
        return list(next(iter(self.evaluation.values.values())).values())

    @property
    def non_inferior(self) -> bool:
        return self.from_reference is None or self.from_reference.low >= -MARGIN

    @property
    def thinks(self) -> bool:
        return self.scoring not in ("none", "direct", "")


@dataclass(frozen=True)
class Comparison:
    """The compared runs, cheapest first; the last one is the reference.

    The first stage is one of them if the runs share it.
    """

    measure: str
    compared: list[Compared]

    @property
    def reference(self) -> Compared:
        return self.compared[-1]

    @property
    def first_stage(self) -> Compared | None:
        return next((each for each in self.compared if each.is_first_stage), None)

    def share(self, each: Compared) -> float | None:
        """The share of the reference's generated tokens that a run generates; None if the reference generates none."""
        return each.generated / self.reference.generated if self.reference.generated else None


def compare(inputs: Sequence[Inputs], measures: Sequence[str], samples: int, seed: int) -> Comparison:
    """Evaluate runs over the same queries and compare them with the one that generated most. No files are written.

    Args:
        inputs: from ``inputs.read_compared``, with their tokens.
        measures: the comparison is by the first one.
        samples, seed: of the bootstrap.
    """
    # All runs have the same order of queries, so their values are paired.
    queries, qrels = len(inputs[0].queries), inputs[0].qrels
    shared = share_first_stage(inputs)
    compared = []
    for each in inputs:
        evaluation = evaluate_run(
            each.run,
            qrels,
            measures,
            samples,
            seed,
            name=each.name,
            flipped=each.flipped,
            pairs_per_second=each.pairs_per_second,
            tokens_per_pair=each.tokens_per_pair,
        )
        generated, prompt = each.generated_tokens / queries, (each.prompt_tokens or 0) / queries
        is_first_stage = shared and each.scoring == "none"
        compared.append(Compared(evaluation, each.model, each.scoring, generated, prompt, is_first_stage))
    # At a tie, the first one given.
    reference = max(compared, key=lambda each: each.generated)
    compared.remove(reference)
    if shared and all(each.scoring != "none" for each in inputs):
        compared.append(_first_stage(inputs[0], measures, samples, seed))
    compared = [*sorted(compared, key=lambda each: each.generated), reference]
    first_stage = next((each for each in compared if each.is_first_stage), None)
    frontier = _frontier(compared)

    def difference(each: Compared, other: Compared | None) -> Difference | None:
        if other is None or each is other:
            return None
        return paired_bootstrap(each.values, other.values, samples, seed=seed)

    return Comparison(
        next(iter(reference.evaluation.intervals)),
        [
            replace(
                each,
                from_reference=difference(each, reference),
                from_first_stage=difference(each, first_stage),
                on_frontier=any(each is other for other in frontier),
            )
            for each in compared
        ],
    )


def conclusion(comparison: Comparison) -> list[str]:
    """The findings of a comparison, in sentences."""
    return [*_on_thinking(comparison), *_on_cost(comparison), *_on_first_stage(comparison)]


def short_names(comparison: Comparison) -> list[str]:
    """The names, without the model if all runs share it."""
    names = [each.name for each in comparison.compared]
    models = {each.model for each in comparison.compared if each.scoring != "none"}
    if len(models) != 1:
        return names
    return [name.removeprefix(f"{path_of(next(iter(models))).name}, ") for name in names]


def _on_thinking(comparison: Comparison) -> Iterator[str]:
    """Whether the reference's thinking is worth its tokens, compared with the cheapest run of the same model."""
    reference = comparison.reference
    others = [each for each in comparison.compared[:-1] if each.model == reference.model and each.scoring != "none"]
    if not reference.thinks or not others:
        return
    cheap = others[0]
    # The sign is reversed: the gain by thinking.
    mean, low, high = cheap.from_reference
    added = Difference(-mean, -high, -low)
    if added.high < 0:
        verdict = "hurts here"
    elif added.low <= 0:
        verdict = "does not help here, as far as these queries can tell"
    else:
        verdict = "helps here"
    subject = "Thinking longer" if cheap.thinks else "Thinking"
    ratio = f", for {_times(reference.generated / cheap.generated)} the generated tokens" if cheap.generated else ""
    yield (
        f"{subject} {verdict}: {comparison.measure} {cheap.quality.mean:.4f} with {cheap.name}, "
        f"{reference.quality.mean:.4f} with {reference.name}; difference {interval_text(added)}{ratio}."
    )


def _on_cost(comparison: Comparison) -> Iterator[str]:
    """The cheapest run that can replace the reference."""
    cheaper = [each for each in comparison.compared if each.generated < comparison.reference.generated]
    if not cheaper:
        return
    enough = next((each for each in cheaper if each.non_inferior), None)
    if enough is None:
        yield f"Nothing cheaper is shown to be within {MARGIN} of {comparison.reference.name}."
        return
    share = comparison.share(enough)
    cost = f"with {percent_text(share)} of its generated tokens" if enough.generated else "which generates nothing"
    name = "the first stage" if enough.is_first_stage else enough.name
    yield f"The cheapest that is not inferior to {comparison.reference.name} (by {MARGIN}) is {name}, {cost}."


def _on_first_stage(comparison: Comparison) -> Iterator[str]:
    first_stage = comparison.first_stage
    runs = [each for each in comparison.compared if each.from_first_stage]
    if first_stage and runs and all(each.from_first_stage.low <= 0 for each in runs):
        yield f"No run is shown to be better than the first stage ({first_stage.quality.mean:.4f})."


def share_first_stage(inputs: Sequence[Inputs]) -> bool:
    """Whether all runs reorder the same candidates in the same order."""
    first = inputs[0].first_stage
    return first is not None and all(each.first_stage == first for each in inputs)


def _first_stage(found: Inputs, measures: Sequence[str], samples: int, seed: int) -> Compared:
    evaluation = evaluate_run(
        found.first_stage, found.qrels, measures, samples, seed, name="first stage", flipped=found.flipped
    )
    return Compared(evaluation, "", "none", generated=0.0, prompt=0.0, is_first_stage=True)


def _frontier(compared: Sequence[Compared]) -> list[Compared]:
    """The runs that are better than every cheaper one, cheapest first."""
    frontier: list[Compared] = []
    for each in sorted(compared, key=lambda each: (each.generated, -each.quality.mean)):
        if not frontier or each.quality.mean > frontier[-1].quality.mean:
            frontier.append(each)
    return frontier


def interval_text(difference: Difference) -> str:
    mean, low, high = map(signed, difference)
    return f"{mean} ({low} to {high})"


def _times(ratio: float) -> str:
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def percent_text(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"
