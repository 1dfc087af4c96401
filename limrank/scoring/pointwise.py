"""Pointwise relevance: score = p(true) / (p(true) + p(false)) of a (query, passage) pair, or the expected grade.

*Think, then ask*: the model writes a chain until ``</think>``, its own end, or the budget. A
chain that it did not close is truncated and closed. One request of one token, whose prefix the
engine has cached, reads both labels' log-probabilities of the next token. ``direct`` is the same
with an empty chain. The prompt and the label tokens are Rank1's and LimRank's: the published
weights need them byte for byte.

The label follows exactly the tokens that the model wrote, or was trained on: ``.`` and a line end
are one token in Qwen's vocabulary, and two when they are encoded separately.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from limrank import prompts
from limrank.config import DEFAULT_SEED, Compatibility, ScoringConfig
from limrank.engines.base import Engine, Generation, Judge, Tokenizer
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring import deadline
from limrank.scoring.cascade import cascade
from limrank.scoring.encoding import (
    CLOSE,
    PLACEHOLDER,
    THINK_CLOSE,
    PairPrompt,
    close_tokens,
    encode_closed,
    encode_pair,
    encode_written,
)
from limrank.scoring.labels import FALSE, TRUE, label_depth, label_requests, label_score, lead_tokens
from limrank.scoring.samples import averaged, chain_sampling
from limrank.scoring.snapshots import Judge as Scorer

_NOTHING = Generation("", "length", 0, 0, 0)
"""The chain where the prompt leaves no tokens for one."""

_SCALE = re.compile(r"\{\{\s*(least|most|labels)\s*\}\}")
"""The placeholders of a graded prompt."""

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")


def prompt_template(scoring: ScoringConfig) -> str:
    """The text of the scoring prompt, with the placeholders ``query`` and ``passage``. With graded labels, the
    placeholders ``least``, ``most`` and ``labels`` are filled.

    Raises:
        UserError: there is no such prompt, or a placeholder is missing.
    """
    template = _template(scoring)
    prompts.require_placeholders(
        PLACEHOLDER.findall(template), {"query", "passage"}, f"scoring.prompt {scoring.prompt_name}"
    )
    return template


def _template(scoring: ScoringConfig) -> str:
    """The text of the scoring prompt. It names the graded labels where it has a placeholder for them."""
    template = prompts.load(scoring.prompt_name)
    if scoring.labels is None:
        return template
    scale = {"least": scoring.labels[0], "most": scoring.labels[-1], "labels": ", ".join(scoring.labels)}
    return _SCALE.sub(lambda match: scale[match.group(1)], template)


def with_prompt_text(scoring: ScoringConfig) -> ScoringConfig:
    """The same config with the text of its prompt. A worker gets this one: it may not have the
    prompt's file, or the file may have changed.

    Raises:
        UserError: as :func:`prompt_template`.
    """
    return scoring.model_copy(update={"prompt": prompt_template(scoring)})


def completion(chain: str | None, label: bool) -> str:
    """The text that a reranker is trained to write after the prompt."""
    thought = f"\n{chain.strip()}" if chain and chain.strip() else ""
    return f"{thought}{CLOSE}{TRUE if label else FALSE}"


async def score_pair(
    query: Query, candidate: Candidate, engine: Engine, scoring: ScoringConfig, *, seed: int = DEFAULT_SEED
) -> Judgment:
    """Score one pair, by the mean over its chains. An error of this pair only becomes a ``failed`` judgment.

    Args:
        seed: the run's, from which the seeds of sampled chains are derived.

    Raises:
        EngineError: the engine crashed.
        UserError: the labels are not single tokens of this model.
    """

    async def score(sampling: Mapping[str, Any]) -> Judgment:
        try:
            return await _score_chain(query, candidate, engine, scoring, sampling)
        except (EngineError, UserError):
            raise
        except Exception as error:  # a bug on one passage must not fail the other ones
            return Judgment(candidate.doc_id, None, ScoreStatus.FAILED, error=error)

    samplings = chain_sampling(query, candidate.text, scoring, seed)
    if len(samplings) == 1:
        return await score(samplings[0])
    return averaged(await asyncio.gather(*map(score, samplings)))


async def score_query(
    query: Query,
    candidates: Sequence[Candidate],
    engine: Engine | Judge,
    scoring: ScoringConfig,
    *,
    allowance: int | None = None,
    known: Mapping[str, Judgment] | None = None,
    seed: int = DEFAULT_SEED,
    deadline_s: float | None = None,
) -> list[Judgment]:
    """Score a query's candidates concurrently: the engine batches them and caches their common
    prefix. The judgments are in the candidates' order.

    Args:
        allowance: tokens that a cascade may generate; None: any number.
        known: existing judgments by document. Failed ones are scored a second time.
        seed: as in :func:`score_pair`.
        deadline_s: seconds after which an engine's work is cancelled, and the pairs without a score are
            ``skipped``; None: no deadline. A ``Judge`` has none.
    """
    known = {doc_id: judgment for doc_id, judgment in (known or {}).items() if judgment.score is not None}

    if isinstance(engine, Judge):
        # A cascade's scores depend on all candidates of the query.
        whole = scoring.mode == "cascade"
        unscored = [candidate for candidate in candidates if whole or candidate.doc_id not in known]
        judged = await engine.judge(query, [candidate.text for candidate in unscored])
        judged = [replace(each, doc_id=candidate.doc_id) for each, candidate in zip(judged, unscored, strict=True)]
        if whole:
            return [each if each.score is not None else known.get(each.doc_id, each) for each in judged]
        return _in_order(candidates, known, judged)

    async def judge(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
        return await score_pair(query, candidate, engine, scoring, seed=seed)

    async def score(judge: Scorer) -> list[Judgment]:
        return await score_candidates(candidates, judge, scoring, allowance=allowance, known=known)

    return await score(judge) if deadline_s is None else await deadline.by_deadline(deadline_s, score, judge)


async def score_candidates(
    candidates: Sequence[Candidate],
    judge: Scorer,
    scoring: ScoringConfig,
    *,
    allowance: int | None = None,
    known: Mapping[str, Judgment] | None = None,
) -> list[Judgment]:
    """Score a query's candidates with a function that scores one of them in one mode. The judgments are in the
    candidates' order. ``allowance`` and ``known`` are those of :func:`score_query`."""
    known = known or {}
    if scoring.mode == "cascade":
        return await cascade(
            candidates,
            partial(judge, scoring.model_copy(update={"mode": "direct"})),
            partial(judge, scoring),
            cutoff=scoring.cutoff,
            band=scoring.band,
            longest=scoring.chains * (scoring.think_tokens + 1),
            allowance=allowance,
            known=known,
        )
    unscored = [candidate for candidate in candidates if candidate.doc_id not in known]
    judged = await asyncio.gather(*(judge(scoring, candidate) for candidate in unscored))
    return _in_order(candidates, known, judged)


def _in_order(
    candidates: Sequence[Candidate], known: Mapping[str, Judgment], judged: Sequence[Judgment]
) -> list[Judgment]:
    """Known and new judgments in the candidates' order."""
    fresh = iter(judged)
    return [known.get(candidate.doc_id) or next(fresh) for candidate in candidates]


def rank_judgments(candidates: Sequence[Candidate], judgments: Sequence[Judgment]) -> list[int]:
    """The order of a ranking, as indices into the candidates: by descending score (before calibration, if there is
    one), then by first-stage rank. Failed pairs follow all scored ones, in first-stage order."""

    def key(index: int) -> tuple[bool, float, int]:
        score, raw = judgments[index].score, judgments[index].raw_score
        score = score if raw is None else raw
        return score is None, -(score or 0.0), candidates[index].rank

    return sorted(range(len(candidates)), key=key)


def above(min_score: float, order: Sequence[int], judgments: Sequence[Judgment]) -> list[int]:
    """An order without the pairs whose score is below ``min_score``. Failed pairs stay: nobody knows their score."""

    def stays(score: float | None) -> bool:
        return score is None or score >= min_score

    return [index for index in order if stays(judgments[index].score)]


async def _score_chain(
    query: Query, candidate: Candidate, engine: Engine, scoring: ScoringConfig, sampling: Mapping[str, Any]
) -> Judgment:
    """Score a pair by one chain that is sampled as ``sampling`` says; without a chain in a direct mode."""
    tokenizer = engine.tokenizer
    lead = lead_tokens(tokenizer, scoring.labels)
    # The context holds prompt, chain, close and the label, whose last token is read.
    label_tokens = len(lead) + label_depth(tokenizer, scoring.labels)
    context = engine.limits.context - close_tokens(tokenizer) - label_tokens
    kept = engine.limits.context // 2 if scoring.min_think_tokens is None else scoring.min_think_tokens
    max_tokens = context - min(scoring.think_tokens, kept)
    if max_tokens <= 0:
        raise RowError(f"scoring.min_think_tokens {kept} leaves no tokens for a prompt in a context of {context}")
    prompt = encode_pair(tokenizer, _template(scoring), query, candidate.text, max_tokens=max_tokens)
    chain, status, generated = None, ScoreStatus.DIRECT, 0
    if scoring.think_tokens:
        # The chain may take all tokens that the prompt leaves.
        budget = min(scoring.think_tokens, context - len(prompt.ids))
        written = _NOTHING
        if budget:
            written = await engine.generate(prompt.ids, max_tokens=budget, stop=[THINK_CLOSE], **sampling)
        generated = written.generated_tokens
        # No stop string is reported where </think> is the model's own end token.
        closed = written.stop == THINK_CLOSE or tokenizer.get_added_vocab().get(THINK_CLOSE) in written.ids
        status = ScoreStatus.COMPLETE if closed else ScoreStatus.FORCED
        chain = written.text if closed else truncate_chain(written.text, scoring.compatibility)
    longest = engine.limits.context - label_tokens
    if status == ScoreStatus.COMPLETE:
        asked = encode_written(tokenizer, prompt, chain, written.ids)
        if len(asked) > longest:  # an endpoint's text may encode to more tokens than it wrote
            status = ScoreStatus.FORCED
    if status != ScoreStatus.COMPLETE:
        asked, shorter = _closed(tokenizer, prompt, chain or "", longest)
        chain = chain and shorter
    try:
        score, error = await label_score(engine, [*asked, *lead], scoring.labels), None
        generated += label_requests(tokenizer, scoring.labels)
    except RowError as failed:
        score, error, status = None, failed, ScoreStatus.FAILED  # the tokens of its chain still count
    return Judgment(
        candidate.doc_id,
        score,
        status,
        reasoning=chain,
        prompt_tokens=len(prompt.ids),
        generated_tokens=generated,
        truncated=prompt.truncated,
        error=error,
    )


def _closed(tokenizer: Tokenizer, prompt: PairPrompt, chain: str, max_tokens: int) -> tuple[list[int], str]:
    """Token ids of prompt, chain and close, and the chain that is in them. The chain loses its end
    where its text encodes to more tokens than were generated and exceeds ``max_tokens``."""
    while (over := len(ids := encode_closed(tokenizer, prompt, chain)) - max_tokens) > 0 and chain:
        # Drop the characters that so many tokens have on average: a few rounds are enough.
        tokens = max(len(ids) - prompt.head, 1)
        chain = chain[: len(chain) - max(1, math.ceil(len(chain) * over / tokens))]
    return ids, chain


def truncate_chain(chain: str, compatibility: Compatibility | None = None) -> str:
    """A chain that did not close, truncated at its last sentence end.

    ``rank1`` truncates as the reference does: at the last ``.``, ``!`` or ``?``, also inside a
    number ("version 3.5 of" becomes "version 3."). It puts a line end before the chain if the
    model wrote none.
    """
    if compatibility is None:
        return truncate_at_sentence(chain).rstrip()
    chain = chain.rstrip()
    end = max(map(chain.rfind, ".!?")) + 1
    return "\n" + (chain[:end] if end else chain).strip()


def truncate_at_sentence(chain: str) -> str:
    """An unfinished chain up to its last sentence end; the whole chain if it has none."""
    ends = [match.end() for match in _SENTENCE_END.finditer(chain)]
    return chain[: ends[-1]] if ends else chain
