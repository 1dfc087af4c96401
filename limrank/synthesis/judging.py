"""The steps that judge pairs.

The judge judges every example that is not yet rejected. The reranker, which the examples are to
improve, scores directly, without a chain: it mines the passages that mislead it, and says which
kept examples are hard for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from limrank import prompts
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.engines.base import Engine, spent_on
from limrank.errors import RowError
from limrank.records import Candidate, Failure, Judgment, Query, Seed, SynthesisExample
from limrank.scoring import score_pair
from limrank.synthesis.answers import read_verdict, without_formula
from limrank.synthesis.filters import Verdict, chains_checked, judged
from limrank.synthesis.prompting import judge_prompt, judge_tokens


async def judge_examples(
    examples: Sequence[SynthesisExample],
    seed: Seed,
    judge: Engine,
    scoring: ScoringConfig,
    settings: SynthesisConfig,
) -> tuple[list[SynthesisExample], list[Failure]]:
    """The examples with the judge's chain and verdict, and the reason if they are rejected for them.

    Examples that are already rejected are not judged. The verdict is p(true) of the label tokens, or
    the answer that the judge writes (``judge_by``).
    """
    open_ones = [example for example in examples if example.reject_reason is None]
    if settings.agreement == "ranking" and len({example.label for example in open_ones}) < 2:
        open_ones = []  # nothing to compare
    if settings.judge_by == "answer":
        verdicts, failures = await _ask(open_ones, judge, scoring, settings)
    else:
        judgments, failures = await _score("judge", _pairs(open_ones), judge, scoring)
        verdicts = [_by_label_tokens(judgment) for judgment in judgments]
    by_id = {example.example_id: verdict for example, verdict in zip(open_ones, verdicts, strict=True)}
    ruled = judged(examples, by_id, settings)
    if scoring.think_tokens:
        asked_in = settings.prompts.judge if settings.judge_by == "answer" else scoring.prompt
        ruled = chains_checked(ruled, seed, prompts.load(asked_in))
    return ruled, failures


async def mine(
    query: Query, passages: Sequence[str], count: int, reranker: Engine, scoring: ScoringConfig
) -> tuple[list[str], list[Failure]]:
    """The ``count`` passages that the reranker ranks highest for a query, best first, equals in
    their order. A passage that it could not score is a failure and not taken."""
    judgments, failures = await _score("mine", [(query, passage) for passage in passages], reranker, scoring)
    scored = [pair for pair in zip(judgments, passages, strict=True) if pair[0].score is not None]
    scored.sort(key=lambda pair: -pair[0].score)
    return [passage for _, passage in scored[:count]], failures


async def add_base_scores(
    examples: Sequence[SynthesisExample], reranker: Engine, scoring: ScoringConfig
) -> tuple[list[SynthesisExample], list[Failure]]:
    """The same examples with the reranker's p(true) for the kept ones."""
    kept = [example for example in examples if example.kept]
    judgments, failures = await _score("base", _pairs(kept), reranker, scoring)
    scores = {example.example_id: judgment.score for example, judgment in zip(kept, judgments, strict=True)}
    return [replace(example, base_score=scores.get(example.example_id)) for example in examples], failures


def _by_label_tokens(judgment: Judgment) -> Verdict:
    if judgment.score is None:
        return Verdict(None, failed=True)
    chain = judgment.reasoning and without_formula(judgment.reasoning)
    return Verdict(judgment.score > 0.5, judgment.score, chain, truncated=judgment.truncated)


async def _ask(
    examples: Sequence[SynthesisExample], judge: Engine, scoring: ScoringConfig, settings: SynthesisConfig
) -> tuple[list[Verdict], list[Failure]]:
    """The verdict that the judge writes for each example, and a failure for each failed request."""
    with spent_on("judge"):
        answers = await asyncio.gather(
            *(
                judge.generate(
                    [{"role": "user", "content": judge_prompt(query, passage, settings)}],
                    max_tokens=judge_tokens(scoring),
                )
                for query, passage in _pairs(examples)
            ),
            return_exceptions=True,
        )
    verdicts, failures = [], []
    for example, answer in zip(examples, answers, strict=True):
        if isinstance(answer, RowError):
            failures.append(Failure.of(example.example_id, "judge", answer))
            verdicts.append(Verdict(None, failed=True))
        elif isinstance(answer, BaseException):
            raise answer
        else:
            relevant, chain = read_verdict(answer)
            verdicts.append(Verdict(relevant, reasoning=chain))
    return verdicts, failures


def _pairs(examples: Sequence[SynthesisExample]) -> list[tuple[Query, str]]:
    return [
        (Query(example.example_id, example.query or "", example.instruction or ""), example.passage or "")
        for example in examples
    ]


async def _score(
    step: str, pairs: Sequence[tuple[Query, str]], engine: Engine, scoring: ScoringConfig
) -> tuple[list[Judgment], list[Failure]]:
    """The judgment of each pair, and a failure of its query for each pair that could not be scored."""
    with spent_on(step):
        judgments = await asyncio.gather(
            *(
                score_pair(query, Candidate(query.query_id, passage, 1, None), engine, scoring)
                for query, passage in pairs
            )
        )
    return judgments, [
        Failure.of(query.query_id, step, judgment.error)
        for (query, _), judgment in zip(pairs, judgments, strict=True)
        if judgment.error is not None
    ]
