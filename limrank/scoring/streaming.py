"""A query's ranking while its pairs are being scored: direct scores first, then those after a chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from limrank.config import DEFAULT_SEED, ScoringConfig
from limrank.engines.base import Engine
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring.cascade import Ask
from limrank.scoring.deadline import deadline_passed
from limrank.scoring.pointwise import rank_judgments, score_candidates, score_pair
from limrank.scoring.snapshots import Judge, Snapshot, Snapshots

PAUSE_S = 0.1
"""The shortest time between two snapshots of a query."""

_PAIRS_PER_S = 2000
"""Pairs of a query that are replayed in a second, at most. A replay takes about 13 µs for a pair, on the engine's loop."""


@dataclass(frozen=True, slots=True)
class Stage(Snapshot):
    """A snapshot of a query that is streamed.

    Attributes:
        ranked: whether all direct scores are there.
        final: whether it is the last one, whose judgments are those of :func:`~limrank.scoring.score_query`.
    """

    ranked: bool = False
    final: bool = False


async def stream_query(
    query: Query,
    candidates: Sequence[Candidate],
    engine: Engine,
    scoring: ScoringConfig,
    *,
    seed: int = DEFAULT_SEED,
    deadline_s: float | None = None,
) -> AsyncGenerator[Stage, None]:
    """Score a query's candidates, and give its judgments while they come in.

    There is a stage as soon as all direct scores are there, a last one at the end, and others about every 0.1 s where
    something has changed, and every 0.5 s with 1000 candidates. Where each pair gets a chain, it is scored directly
    first, and the best pairs get theirs first. Until then a pair has its direct score. Closing the generator aborts the
    engine's requests.

    Args, Raises: as :func:`~limrank.scoring.score_query`. At the deadline a pair without a chain keeps its direct score.
    """
    changed, urgent = asyncio.Event(), asyncio.Event()
    direct = scoring.model_copy(update={"mode": "direct"})
    waiting = {candidate.doc_id for candidate in candidates}

    async def judge(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
        judgment = await score_pair(query, candidate, engine, scoring, seed=seed)
        if scoring.mode == "direct":
            waiting.discard(candidate.doc_id)
        return judgment

    def on_judgment() -> None:
        changed.set()
        if not waiting and not ranked:
            urgent.set()

    async def score(judge: Judge) -> list[Judgment]:
        if scoring.mode in ("direct", "cascade"):
            return await score_candidates(candidates, judge, scoring)
        return await direct_first(candidates, partial(judge, direct), partial(judge, scoring))

    def end(_: asyncio.Task[list[Judgment]]) -> None:
        changed.set()
        urgent.set()

    snapshots = Snapshots(score, judge, on_judgment)
    ranked = False
    pause_s = max(PAUSE_S, len(candidates) / _PAIRS_PER_S)
    clock = asyncio.get_running_loop().time
    running = asyncio.create_task(snapshots.by(deadline_s, deadline_passed()))
    running.add_done_callback(end)
    try:
        due = clock() + pause_s
        while not running.done():
            await changed.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(urgent.wait(), due - clock())
            if running.done():
                break
            changed.clear()
            urgent.clear()
            ranked = not waiting
            snapshot = await snapshots.so_far()
            yield _stage(snapshot, ranked=ranked)
            due = clock() + pause_s
        judgments = await running
        snapshot = await snapshots.so_far()
        yield _stage(replace(snapshot, judgments=judgments), ranked=not waiting, final=True)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def direct_first(candidates: Sequence[Candidate], ask: Ask, think: Ask) -> list[Judgment]:
    """A query's judgments after a chain, in the candidates' order; of a pair whose chain has not ended (``skipped``),
    the direct one with the chain's ``error``.

    Args:
        ask: scores a pair directly. A direct score that fails is no error of the pair.
        think: scores a pair after a chain.
    """
    direct = await asyncio.gather(*map(ask, candidates))
    order = rank_judgments(candidates, direct)
    chains = dict(zip(order, await asyncio.gather(*(think(candidates[index]) for index in order)), strict=True))
    return [
        replace(judgment, error=chains[index].error)
        if chains[index].status == ScoreStatus.SKIPPED and judgment.score is not None
        else chains[index]
        for index, judgment in enumerate(direct)
    ]


def _stage(snapshot: Snapshot, *, ranked: bool, final: bool = False) -> Stage:
    chains = (snapshot.chains_finished, snapshot.chains_wanted) if ranked else (0, 0)
    return Stage(snapshot.judgments, *chains, ranked, final)
