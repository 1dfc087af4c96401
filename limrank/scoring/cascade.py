"""Think where it pays: direct scores for all candidates, chains where their order is in doubt.

A query's candidates are sorted by their direct log-odds. A pair is in doubt if it may end above
the cut-off and lies within the band of a neighbour. Pairs in doubt get a chain, the nearest to the
cut-off first, as far as the allowance of tokens reaches. Think log-odds are rescaled onto the
block's range of direct log-odds: the block is reordered, nothing outside it moves, and a score
means the same over the whole ranking.

The cascade knows no engine. It takes two functions, so recorded scores can be replayed through it.
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
"""The range of log-odds over which tied pairs are spread, so that their chains can order them."""


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
    """Judge a query's candidates. The judgments are in their order.

    A judgment has both scores: ``direct_score``, and ``think_score`` if there is a chain. A pair
    whose chain fails keeps its direct score, and ``error`` says why.

    Args:
        ask: scores a pair directly.
        think: scores a pair after a chain.
        cutoff: the order matters down to this rank.
        band: two direct scores this near are in doubt, in standard deviations of the query's log-odds.
        longest: the most tokens that the chains of a pair and their labels generate.
        allowance: generated tokens for the whole query, one for each direct score included; None: any
            number. Only the direct scores themselves may exceed it.
        known: judgments of an earlier call. Failed ones are retried.
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
    # A direct score takes one token, also when a failed one is retried.
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
    """The pairs that may end above the cut-off and whose order is unclear, the nearest to the
    cut-off first.

    Args:
        odds: direct log-odds, by any key.
        cutoff, band: see :func:`cascade`.
    """
    order = sorted(odds, key=lambda key: -odds[key])
    if len(order) < 2:
        return []
    gap = _clear_gap(odds, band)
    if len(order) > cutoff:
        boundary = odds[order[cutoff - 1]]
        order = [key for key in order if odds[key] >= boundary - gap]
    else:
        boundary = odds[order[0]]  # all are above the cut-off: the first ranks matter most
    unclear = [key for block in _blocks(order, odds, gap) if len(block) > 1 for key in block]
    return sorted(unclear, key=lambda key: abs(odds[key] - boundary))


def fuse(odds: Mapping[int, float], thought: Mapping[int, float], band: float) -> dict[int, float]:
    """Direct log-odds, with each block of neighbouring pairs that have a chain in the order of their
    think log-odds, rescaled onto the block's range."""
    fused = dict(odds)
    order = sorted(odds, key=lambda key: -odds[key])
    position = {key: index for index, key in enumerate(order)}
    with_chain = [key for key in order if key in thought]
    for block in _blocks(with_chain, odds, _clear_gap(odds, band), position):
        low, high = odds[block[-1]], odds[block[0]]
        least, most = min(thought[key] for key in block), max(thought[key] for key in block)
        if most > least:
            width = (high - low) or _TIED
            for key in block:
                fused[key] = low + width * (thought[key] - least) / (most - least)
    return fused


def log_odds(score: float) -> float:
    """The log-odds of a score in [0, 1]; finite at 0 and 1, too. Of an expected grade they are its logit."""
    score = min(max(score, _LEAST), _MOST)
    return math.log(score / (1 - score))


def _clear_gap(odds: Mapping[int, float], band: float) -> float:
    """Two pairs whose log-odds differ by more than this are in a clear order."""
    return band * pstdev(odds.values()) if odds else 0.0


def _blocks(
    order: Sequence[int], odds: Mapping[int, float], gap: float, position: Mapping[int, int] | None = None
) -> list[list[int]]:
    """Blocks of neighbours without a clear gap between them. With ``position``, neighbours in a block
    also have neighbouring positions."""
    blocks: list[list[int]] = []
    for key in order:
        if (
            blocks
            and odds[blocks[-1][-1]] - odds[key] <= gap
            and (position is None or position[key] - position[blocks[-1][-1]] == 1)
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
    """The judgment of a pair that has a direct score and a chain: their generated tokens add up."""
    tokens = direct.generated_tokens + chain.generated_tokens
    if chain.score is None:
        return replace(direct, generated_tokens=tokens, error=chain.error)
    return replace(chain, think_score=chain.score, generated_tokens=tokens)
