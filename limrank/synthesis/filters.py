"""Which examples are kept, and why the others are not. Pure functions of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from limrank.records import Judgment, PassageRole, Seed, SynthesisExample

MIN_QUERY_WORDS, MIN_PASSAGE_WORDS = 4, 12


def query_fault(query: str | None, seed: Seed) -> str | None:
    """Why no passage need be written for a query: ``copies_seed`` or ``length``; None where
    one may."""
    if _normal(query) == _normal(seed.query):
        return "copies_seed"
    return "length" if len(_normal(query).split()) < MIN_QUERY_WORDS else None


def rejected_before_judging(examples: Sequence[SynthesisExample], seed: Seed) -> list[SynthesisExample]:
    """The same examples, with a reason on those that need no judge: ``length``,
    ``copies_seed``, ``same_passages`` (a written passage stands twice under one query)."""
    seen: set[str] = set()
    checked = []
    for example in examples:
        passage = _normal(example.passage)
        reason = query_fault(example.query, seed)
        if reason is None and example.passage_role is not PassageRole.MINED_NEGATIVE:
            if len(passage.split()) < MIN_PASSAGE_WORDS:
                reason = "length"
            elif passage == _normal(seed.passage):
                reason = "copies_seed"
            elif passage in seen:
                reason = "same_passages"
        seen.add(passage)
        checked.append(replace(example, reject_reason=reason))
    return checked


def judged(
    examples: Sequence[SynthesisExample], judgments: Mapping[str, Judgment], agreement: Literal["verdict", "ranking"]
) -> list[SynthesisExample]:
    """The same examples with the judge's chain and score, and kept where it agrees.

    Args:
        judgments: by example id; an example without one was rejected before.
        agreement: ``verdict``: p(true) on the intended side of one half, else
            ``judge_disagrees``. ``ranking``: the positive above each negative of its
            query; a negative that is not below it is rejected, and the positive too
            unless it beats one of them.

    A pair that the judge could not score is ``judge_failed``.
    """
    scored = [_with_judgment(example, judgments.get(example.example_id)) for example in examples]
    positives = [
        example.judge_score
        for example in scored
        if example.label and example.reject_reason is None and example.judge_score is not None
    ]
    negatives = [
        example.judge_score
        for example in scored
        if example.label is False and example.reject_reason is None and example.judge_score is not None
    ]
    result = []
    for example in scored:
        if example.reject_reason is not None:
            result.append(example)
            continue
        if agreement == "verdict":
            agrees = (example.judge_score > 0.5) == example.label
        elif example.label:
            agrees = any(example.judge_score > other for other in negatives)
        else:
            agrees = any(example.judge_score < other for other in positives)
        result.append(replace(example, kept=agrees, reject_reason=None if agrees else "judge_disagrees"))
    return result


def _with_judgment(example: SynthesisExample, judgment: Judgment | None) -> SynthesisExample:
    if judgment is None:
        return example
    if judgment.score is None:
        return replace(example, reject_reason="judge_failed")
    return replace(example, judge_score=judgment.score, reasoning=judgment.reasoning)


def _normal(text: str | None) -> str:
    return " ".join((text or "").lower().split())
