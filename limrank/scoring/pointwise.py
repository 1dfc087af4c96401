"""Pointwise relevance: score = p(true) / (p(true) + p(false)) of a (query, passage) pair.

*Think, then ask*: the model writes a chain until ``</think>``, its own end, or the
budget; a chain that it did not close is cut and closed; both labels' log-probabilities of
the next token are read in one request of one token, whose prefix the engine has cached.
``direct`` is the same with an empty chain. The prompt and the label tokens are Rank1's and
LimRank's (the published weights need them byte for byte); nothing else knows label tokens.

The label is asked after the very tokens that the model wrote, or was trained on: ``.`` and a
line end are one token in Qwen's vocabulary, and two where they are encoded apart.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from limrank import prompts
from limrank.config import Compatibility, ScoringConfig
from limrank.engines.base import Engine, Generation, Judge, Tokenizer, label_token_ids
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring.cascade import cascade
from limrank.scoring.encoding import (
    CLOSE,
    PLACE,
    THINK_CLOSE,
    PairPrompt,
    close_tokens,
    encode_closed,
    encode_pair,
    encode_written,
)

TRUE, FALSE = LABELS = (" true", " false")
"""What the model answers, leading space included: each must be one token."""

_NOTHING = Generation("", "length", 0, 0, 0)
"""What is written where the prompt leaves no room for a chain."""

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
    # Beside prompt and chain there is room for the close, and one more token for the label.
    context = engine.limits.context - close_tokens(tokenizer) - 1
    kept = engine.limits.context // 2 if scoring.min_think_tokens is None else scoring.min_think_tokens
    max_tokens = context - min(scoring.think_tokens, kept)
    if max_tokens <= 0:
        raise RowError(f"scoring.min_think_tokens {kept} leaves no room for a prompt in a context of {context}")
    prompt = encode_pair(tokenizer, prompts.load(scoring.prompt), query, candidate.text, max_tokens=max_tokens)
    chain, status, generated = None, ScoreStatus.DIRECT, 0
    if scoring.think_tokens:
        # The chain may have all that the prompt leaves.
        budget = min(scoring.think_tokens, context - len(prompt.ids))
        written = await engine.generate(prompt.ids, max_tokens=budget, stop=[THINK_CLOSE]) if budget else _NOTHING
        generated = written.generated_tokens
        # A model whose own end is the mark is stopped by neither.
        closed = written.stop == THINK_CLOSE or tokenizer.get_added_vocab().get(THINK_CLOSE) in written.ids
        status = ScoreStatus.COMPLETE if closed else ScoreStatus.FORCED
        chain = written.text if closed else cut_chain(written.text, scoring.compatibility)
    most = engine.limits.context - 1
    if status == ScoreStatus.COMPLETE:
        asked = encode_written(tokenizer, prompt, chain, written.ids)
        if len(asked) > most:  # encoded again, an endpoint's text may have more tokens than it wrote
            status = ScoreStatus.FORCED
    if status != ScoreStatus.COMPLETE:
        asked, shorter = _closed(tokenizer, prompt, chain or "", most)
        chain = chain and shorter
    try:
        score, error = await label_score(engine, asked), None
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


def _closed(tokenizer: Tokenizer, prompt: PairPrompt, chain: str, most: int) -> tuple[list[int], str]:
    """Prompt, chain and close in at most so many tokens, and the chain that is in them: one that is
    encoded again may have more than were generated, and loses its end then."""
    while (over := len(ids := encode_closed(tokenizer, prompt, chain)) - most) > 0 and chain:
        # The characters that so many of its tokens have on average: a few turns, however long it is.
        tokens = max(len(ids) - prompt.head, 1)
        chain = chain[: len(chain) - max(1, math.ceil(len(chain) * over / tokens))]
    return ids, chain


def cut_chain(chain: str, compatibility: Compatibility | None = None) -> str:
    """What is judged of a chain that did not close: all up to its last sentence end.

    ``rank1`` cuts as the reference does: at the last of ``.!?``, which may stand in a number
    ("version 3.5 of" becomes "version 3."), and puts a line end before the chain where the model
    wrote none.
    """
    if compatibility is None:
        return cut_at_sentence(chain).rstrip()
    chain = chain.rstrip()
    end = max(map(chain.rfind, ".!?")) + 1
    return "\n" + (chain[:end] if end else chain).strip()


def cut_at_sentence(chain: str) -> str:
    """An unfinished chain up to its last sentence end; whole where it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(chain)]
    return chain[: ends[-1]] if ends else chain
