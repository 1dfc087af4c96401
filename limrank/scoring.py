"""Pointwise relevance: score = p(true) / (p(true) + p(false)) of a (query, passage) pair.

*Think, then ask*: the model writes a chain until ``</think>``, its own end, or the
budget; the chain is closed; both labels' log-probabilities of the next token are read
in one request of one token, whose prefix the engine has cached. ``direct`` is the same
with an empty chain. The prompt and the label tokens are Rank1's and LimRank's (the
published weights need them byte for byte); nothing else knows label tokens.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from limrank import prompts
from limrank.cascade import cascade
from limrank.config import ScoringConfig
from limrank.encoding import (
    CLOSE,
    PLACE,
    THINK_CLOSE,
    THINK_OPEN,
    PairPrompt,
    encode_example,
    encode_pair,
    encode_template,
    encode_text,
    pair_text,
    prompt_query,
)
from limrank.engines.base import Engine, Judge, Tokenizer, label_token_ids
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus

TRUE, FALSE = LABELS = (" true", " false")
"""What the model answers, leading space included: each must be one token."""

__all__ = [
    "CLOSE",
    "FALSE",
    "LABELS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "TRUE",
    "PairPrompt",
    "check_labels",
    "completion",
    "cut_at_sentence",
    "encode_example",
    "encode_pair",
    "encode_template",
    "encode_text",
    "label_score",
    "pair_text",
    "prompt_query",
    "prompt_template",
    "rank_judgments",
    "score_pair",
    "score_query",
    "with_prompt_text",
]

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")


def prompt_template(scoring: ScoringConfig) -> str:
    """The text of the scoring prompt, with its places for ``query`` and ``passage``.

    Raises:
        UserError: there is no such prompt, or a place is missing: every pair would be
            the same to the model.
    """
    template = prompts.load(scoring.prompt)
    found = {match.group(1) for match in PLACE.finditer(template)}
    if missing := {"query", "passage"} - found:
        places = " and ".join(f"{{{{ {name} }}}}" for name in sorted(missing))
        raise UserError(f"scoring.prompt {scoring.prompt}: has no {places}")
    return template


def with_prompt_text(scoring: ScoringConfig) -> ScoringConfig:
    """The same, with its prompt's text in place of a name: what is handed to a worker, who may
    not have the file, or not as it was.

    Raises:
        UserError: as :func:`prompt_template`.
    """
    return scoring.model_copy(update={"prompt": prompt_template(scoring)})


def completion(chain: str | None, label: bool) -> str:
    """What a reranker is trained to write after the prompt."""
    thought = f"\n{chain.strip()}" if chain and chain.strip() else ""
    return f"{thought}{CLOSE}{TRUE if label else FALSE}"


def check_labels(tokenizer: Tokenizer) -> None:
    """Raises UserError where a label is not one token of this tokenizer."""
    label_token_ids(tokenizer, (TRUE, FALSE))


async def score_pair(query: Query, candidate: Candidate, engine: Engine, scoring: ScoringConfig) -> Judgment:
    """Score one pair. What goes wrong with the pair alone is a ``failed`` judgment.

    Raises:
        EngineError: the engine died.
        UserError: the labels are not single tokens of this model.
    """
    try:
        return await _score_pair(query, candidate, engine, scoring)
    except (EngineError, UserError):
        raise
    except Exception as error:  # a bug on one passage is no fault of its neighbours
        return Judgment(candidate.doc_id, None, ScoreStatus.FAILED, error=error)


async def score_query(
    query: Query,
    candidates: Sequence[Candidate],
    engine: Engine | Judge,
    scoring: ScoringConfig,
    *,
    allowance: int | None = None,
    known: Mapping[str, Judgment] | None = None,
) -> list[Judgment]:
    """Score a query's candidates, all at once: the engine batches them and keeps their
    common prefix. Judgments are in the candidates' order.

    Args:
        allowance: tokens that a cascade may generate; None: any number.
        known: judgments that there are already, by document; what failed is scored again.
    """
    known = {doc_id: judgment for doc_id, judgment in (known or {}).items() if judgment.score is not None}

    if isinstance(engine, Judge):
        # A cascade's order hangs on all of a query's candidates.
        whole = scoring.mode == "cascade"
        left = [candidate for candidate in candidates if whole or candidate.doc_id not in known]
        judged = await engine.judge(query, [candidate.text for candidate in left])
        judged = [replace(each, doc_id=candidate.doc_id) for each, candidate in zip(judged, left, strict=True)]
        if whole:
            return [each if each.score is not None else known.get(each.doc_id, each) for each in judged]
        return _in_order(candidates, known, judged)

    async def judge(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
        return await score_pair(query, candidate, engine, scoring)

    if scoring.mode == "cascade":
        return await cascade(
            candidates,
            partial(judge, scoring.model_copy(update={"mode": "direct"})),
            partial(judge, scoring),
            cutoff=scoring.cutoff,
            band=scoring.band,
            longest=scoring.think_tokens + 1,
            allowance=allowance,
            known=known,
        )
    left = [candidate for candidate in candidates if candidate.doc_id not in known]
    judged = await asyncio.gather(*(judge(scoring, candidate) for candidate in left))
    return _in_order(candidates, known, judged)


def _in_order(
    candidates: Sequence[Candidate], known: Mapping[str, Judgment], judged: Sequence[Judgment]
) -> list[Judgment]:
    """What was judged now, in its order, between what was known."""
    fresh = iter(judged)
    return [known.get(candidate.doc_id) or next(fresh) for candidate in candidates]


def rank_judgments(candidates: Sequence[Candidate], judgments: Sequence[Judgment]) -> list[int]:
    """The order of a ranking, as indices into the candidates: score descending, then
    first-stage rank; failed pairs after all scored ones in first-stage order."""

    def key(index: int) -> tuple[bool, float, int]:
        score = judgments[index].score
        return score is None, -(score or 0.0), candidates[index].rank

    return sorted(range(len(candidates)), key=key)


async def _score_pair(query: Query, candidate: Candidate, engine: Engine, scoring: ScoringConfig) -> Judgment:
    tokenizer = engine.tokenizer
    close = encode_template(tokenizer, CLOSE)
    # One more token for the label. A long prompt keeps at least half of the context from
    # its chain; the chain may have all that a short one leaves.
    context = engine.limits.context - len(close) - 1
    room = context - min(scoring.think_tokens, engine.limits.context // 2)
    prompt = encode_pair(tokenizer, prompts.load(scoring.prompt), query, candidate.text, room=room)
    budget = min(scoring.think_tokens, context - len(prompt.ids))
    chain, status, generated, thought = None, ScoreStatus.DIRECT, 0, []
    if budget:
        generation = await engine.generate(prompt.ids, max_tokens=budget, stop=[THINK_CLOSE])
        generated = generation.generated_tokens
        finished = generation.finish_reason == "stop"
        status = ScoreStatus.COMPLETE if finished else ScoreStatus.FORCED
        chain = generation.text if finished else cut_at_sentence(generation.text)
        chain = chain.rstrip()
        thought = encode_text(tokenizer, chain) if chain else []
    try:
        score, error = await label_score(engine, [*prompt.ids, *thought[:budget], *close]), None
    except RowError as failed:
        score, error, status = None, failed, ScoreStatus.FAILED  # its chain was paid for
    return Judgment(
        candidate.doc_id,
        score,
        status,
        reasoning=chain,
        prompt_tokens=len(prompt.ids),
        generated_tokens=generated + (score is not None),
        truncated=prompt.truncated,
        error=error,
    )


async def label_score(engine: Engine, ids: list[int]) -> float:
    """p(true) / (p(true) + p(false)) after a closed chain, from the label tokens."""
    logprobs = await engine.label_logprobs(ids, (TRUE, FALSE))
    difference = logprobs[FALSE] - logprobs[TRUE]
    if not math.isfinite(difference):
        raise RowError(f"the engine's log-probabilities are not finite: {logprobs}")
    # exp overflows beyond 709; there the score is 0 to every digit anyway.
    return 1.0 / (1.0 + math.exp(min(difference, 700.0)))


def cut_at_sentence(chain: str) -> str:
    """An unfinished chain up to its last sentence end; whole where it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(chain)]
    return chain[: ends[-1]] if ends else chain
