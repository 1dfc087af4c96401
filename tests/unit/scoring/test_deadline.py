"""Judgments by a deadline, over the fake engine's latency: two requests at a time, 0.1 s each, in virtual time."""

import asyncio

import pytest

from helpers import virtual_time
from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import open_engine
from limrank.errors import EngineError
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring import rank_judgments, score_query
from limrank.scoring.deadline import by_deadline

DIRECT, COMPLETE, SKIPPED = ScoreStatus.DIRECT, ScoreStatus.COMPLETE, ScoreStatus.SKIPPED
CANDIDATES = [Candidate(str(index), f"passage {index}", index + 1, 0.0) for index in range(6)]


def judged(scoring, deadline_s, latency_ms=100, candidates=CANDIDATES):
    """Judgments, the seconds that they took, and the requests that the engine still has."""

    async def go():
        engine = open_engine(
            ModelConfig(), EngineConfig(kind="fake", max_in_flight=2, fault={"latency_ms": latency_ms})
        )
        judgments = await score_query(Query("q", "query"), candidates, engine, scoring, deadline_s=deadline_s)
        return judgments, asyncio.get_running_loop().time(), engine.limiter.requests

    return virtual_time.run(go())


def test_pairs_without_a_score_are_skipped_and_cancelled_in_the_engine():
    whole, _, _ = judged(ScoringConfig(), None, latency_ms=0)
    found, seconds, running = judged(ScoringConfig(), 0.25)
    assert [judgment.status for judgment in found] == [DIRECT] * 4 + [SKIPPED] * 2
    assert found[:4] == whole[:4]
    assert {str(judgment.error) for judgment in found[4:]} == {
        "the deadline passed before the scoring of this pair ended"
    }
    assert seconds == pytest.approx(0.25)
    assert running == 0
    assert rank_judgments(CANDIDATES, found)[4:] == [4, 5]


def test_a_deadline_that_does_not_pass_changes_nothing():
    for mode in ("direct", "budget", "cascade"):
        scoring = ScoringConfig(mode=mode, max_think_tokens=30)
        assert judged(scoring, 60, latency_ms=0)[0] == judged(scoring, None, latency_ms=0)[0]


def test_a_chain_that_has_not_ended_gives_no_score():
    # A pair with a chain is two requests: all chains have ended at 0.3 s, and the first two labels at 0.4 s.
    found, _, running = judged(ScoringConfig(mode="budget", max_think_tokens=30), 0.45)
    assert [judgment.status for judgment in found].count(SKIPPED) == 4
    assert running == 0


def test_a_cascade_without_time_for_chains_is_the_direct_order():
    direct, _, _ = judged(ScoringConfig(), None, latency_ms=0)
    # All are in doubt. Their direct scores take 0.3 s, and no chain ends before 0.4 s.
    found, _, running = judged(ScoringConfig(mode="cascade", band=100), 0.37)
    assert [judgment.score for judgment in found] == [judgment.score for judgment in direct]
    assert {judgment.status for judgment in found} == {DIRECT}
    assert all(str(judgment.error).startswith("the deadline passed") for judgment in found)
    assert running == 0


def test_a_cascade_uses_the_chains_that_have_ended():
    # 0.3 s of direct scores, 0.3 s of chains, and 0.1 s for the labels of the first two.
    found, _, _ = judged(ScoringConfig(mode="cascade", band=100, max_think_tokens=30), 0.3 + 0.45)
    thought = [judgment for judgment in found if judgment.think_score is not None]
    assert len(thought) == 2
    assert all(judgment.score is not None for judgment in found)


def test_no_time_at_all_is_no_score_at_all():
    found, seconds, running = judged(ScoringConfig(mode="cascade"), 0)
    assert {(judgment.score, judgment.status) for judgment in found} == {(None, SKIPPED)}
    assert seconds == 0
    assert running == 0


@pytest.mark.parametrize("error", [EngineError("crashed"), TimeoutError("of the engine")])
def test_an_error_is_not_taken_for_the_deadline(error):
    async def judge(scoring, candidate):
        raise error

    async def score(judge):
        return [await judge(ScoringConfig(), candidate) for candidate in CANDIDATES]

    with pytest.raises(type(error), match=str(error)):
        asyncio.run(by_deadline(60, score, judge))


def test_who_leaves_is_not_answered():
    async def judge(scoring, candidate):
        await asyncio.sleep(60)
        return Judgment(candidate.doc_id, 1.0, COMPLETE)

    async def score(judge):
        return list(await asyncio.gather(*(judge(ScoringConfig(), candidate) for candidate in CANDIDATES)))

    async def go():
        task = asyncio.create_task(by_deadline(60, score, judge))
        await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(go())
