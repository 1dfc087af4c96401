"""Think where it pays: direct scores for all candidates, chains where their order is in doubt.

A query's candidates are sorted by their direct log-odds. What may end above the cut-off,
and is not clearly apart from its neighbours, is in doubt; these pairs get a chain, the
nearest to the cut-off first, as far as the allowance of tokens reaches. A chain's verdict
orders the pairs that were in doubt among themselves: they share out the stretch of direct
log-odds that they lay on, so that every other pair keeps its place, and a score means the
same over the whole ranking.

Knows no engine: it is given two functions, so recorded scores can be replayed through it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from statistics import pstdev

from limrank.records import Candidate, Judgment, ScoreStatus

Ask = Callable[[Candidate], Awaitable[Judgment]]

_LEAST, _MOST = 1e-300, 1 - 2**-53
_TIED = 1e-6
"""Log-odds that tied pairs are spread over, so that their chains can order them."""


async def cascade(
    candidates: Sequence[Candidate],
    ask: Ask,
    think: Ask,
    *,
    cutoff: int,
    band: float,
    longest: int,
    allowance: int | None = None,
    known: Mapping[str, Judgment] | None = None,
) -> list[Judgment]:
    """Judge a query's candidates; judgments are in their order.

    A judgment keeps both scores, ``direct_score`` and, where a chain was asked for,
    ``think_score``. A pair whose chain fails keeps its direct score, and ``error`` says why.

    Args:
        ask, think: score a pair directly, and after a chain.
        cutoff: the rank that the order matters down to.
        band: how near two direct scores are in doubt, in the query's standard deviations.
        longest: tokens that a chain and its label generate at most.
        allowance: generated tokens that all of it may take, a direct score's one included;
            None: any number. It is kept, but for the direct scores themselves.
        known: what an earlier call made of some of them; what failed in it is tried again.
    """
    known = known or {}
    direct = await asyncio.gather(*(_known_or(known.get(each.doc_id), ask, each) for each in candidates))
    scored = [index for index, judgment in enumerate(direct) if judgment.score is not None]
    odds = {index: log_odds(direct[index].score) for index in scored}
    thought = {
        index: known[candidates[index].doc_id]
        for index in scored
        if candidates[index].doc_id in known and known[candidates[index].doc_id].think_score is not None
    }
    # A direct score takes one token; a failed one may be tried again.
    before = [known[each.doc_id].generated_tokens for each in candidates if each.doc_id in known]
    spent = len(candidates) + sum(max(0, tokens - 1) for tokens in before)
    waiting = [index for index in in_doubt(odds, cutoff, band) if index not in thought]
    failed: dict[int, Judgment] = {}
    while waiting:
        wave = waiting if allowance is None else waiting[: max(0, allowance - spent) // longest]
        if not wave:
            break
        waiting = waiting[len(wave) :]
        for index, judgment in zip(
            wave, await asyncio.gather(*(think(candidates[index]) for index in wave)), strict=True
        ):
            spent += judgment.generated_tokens
            (failed if judgment.score is None else thought)[index] = _after(direct[index], judgment)
    fused = fuse(odds, {index: log_odds(judgment.think_score) for index, judgment in thought.items()}, band)
    judgments = []
    for index, judgment in enumerate(direct):
        final = thought.get(index) or failed.get(index) or judgment
        moved = index in fused and fused[index] != odds[index]
        score = 1 / (1 + math.exp(-fused[index])) if moved else judgment.score
        judgments.append(replace(final, score=score, direct_score=judgment.score))
    return judgments


def in_doubt(odds: Mapping[int, float], cutoff: int, band: float) -> list[int]:
    """The pairs that may end above the cut-off and whose order is not clear, the nearest to
    the cut-off first.

    Args:
        odds: direct log-odds, by any key.
        cutoff, band: see :func:`cascade`.
    """
    order = sorted(odds, key=lambda key: -odds[key])
    if len(order) < 2:
        return []
    apart = _apart(odds, band)
    if len(order) > cutoff:
        cut = odds[order[cutoff - 1]]
        order = [key for key in order if odds[key] >= cut - apart]
    else:
        cut = odds[order[0]]  # none is cut off: the first places matter most
    unclear = [key for block in _blocks(order, odds, apart) if len(block) > 1 for key in block]
    return sorted(unclear, key=lambda key: abs(odds[key] - cut))


def fuse(odds: Mapping[int, float], thought: Mapping[int, float], band: float) -> dict[int, float]:
    """Direct log-odds, in which each block of neighbours that were thought about is put in
    the order of its chains' log-odds, over the stretch that the block covers."""
    fused = dict(odds)
    order = sorted(odds, key=lambda key: -odds[key])
    place = {key: index for index, key in enumerate(order)}
    about = [key for key in order if key in thought]
    for block in _blocks(about, odds, _apart(odds, band), place):
        low, high = odds[block[-1]], odds[block[0]]
        least, most = min(thought[key] for key in block), max(thought[key] for key in block)
        if most > least:
            width = (high - low) or _TIED
            for key in block:
                fused[key] = low + width * (thought[key] - least) / (most - least)
    return fused


def log_odds(score: float) -> float:
    """Of a score in [0, 1]; its ends are a hair away from infinity."""
    score = min(max(score, _LEAST), _MOST)
    return math.log(score / (1 - score))


def _apart(odds: Mapping[int, float], band: float) -> float:
    return band * pstdev(odds.values()) if odds else 0.0


def _blocks(
    order: Sequence[int], odds: Mapping[int, float], apart: float, place: Mapping[int, int] | None = None
) -> list[list[int]]:
    """Neighbours that are not apart, together; with ``place`` only those next to each other there."""
    blocks: list[list[int]] = []
    for key in order:
        if (
            blocks
            and odds[blocks[-1][-1]] - odds[key] <= apart
            and (place is None or place[key] - place[blocks[-1][-1]] == 1)
        ):
            blocks[-1].append(key)
        else:
            blocks.append([key])
    return blocks


async def _known_or(known: Judgment | None, ask: Ask, candidate: Candidate) -> Judgment:
    if known is None or known.direct_score is None:
        return await ask(candidate)
    return replace(known, score=known.direct_score, status=ScoreStatus.DIRECT, reasoning=None, generated_tokens=1)


def _after(direct: Judgment, chain: Judgment) -> Judgment:
    """A pair that was asked twice: the prompt is the same, its chain comes on top."""
    tokens = direct.generated_tokens + chain.generated_tokens
    if chain.score is None:
        return replace(direct, generated_tokens=tokens, error=chain.error)
    return replace(chain, think_score=chain.score, generated_tokens=tokens)
