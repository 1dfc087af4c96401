"""A query's ranking while it is scored, over the fake engine's latency: two requests at a time, 0.1 s each, in virtual
time."""

import asyncio
from contextlib import aclosing

import pytest

from helpers import virtual_time
from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import open_engine
from limrank.errors import EngineError
from limrank.records import Candidate, Query, ScoreStatus
from limrank.scoring import rank_judgments, score_query
from limrank.scoring.streaming import stream_query

DIRECT, SKIPPED, FAILED = ScoreStatus.DIRECT, ScoreStatus.SKIPPED, ScoreStatus.FAILED
CANDIDATES = [Candidate(str(index), f"passage {index}", index + 1, 0.0) for index in range(6)]
QUERY = Query("q", "query")
BUDGET = ScoringConfig(mode="budget", max_think_tokens=30)
CASCADE = ScoringConfig(mode="cascade", band=100, max_think_tokens=30)
SOME_IN_DOUBT = ScoringConfig(mode="cascade", band=0.2, max_think_tokens=30)


def engine_of(latency_ms=100, **fault):
    return open_engine(
        ModelConfig(), EngineConfig(kind="fake", max_in_flight=2, fault={"latency_ms": latency_ms, **fault})
    )


def whole(scoring, candidates=CANDIDATES, **fault):
    return asyncio.run(score_query(QUERY, candidates, engine_of(0, **fault), scoring))


def streamed(scoring, deadline_s=None, candidates=CANDIDATES, most=None, **fault):
    """The stages of a query with the times at which they came, and the requests that the engine still has."""

    async def go():
        engine = engine_of(**fault)
        found = []
        async with aclosing(stream_query(QUERY, candidates, engine, scoring, deadline_s=deadline_s)) as stages:
            async for stage in stages:
                found.append((asyncio.get_running_loop().time(), stage))
                if len(found) == most:
                    break
        return found, engine.limiter.requests

    return virtual_time.run(go())


def statuses(stage):
    return [judgment.status for judgment in stage.judgments]


@pytest.mark.parametrize("scoring", [ScoringConfig(), BUDGET, CASCADE, SOME_IN_DOUBT], ids=lambda each: each.mode)
@pytest.mark.parametrize("fault", [{}, {"fail_rate": 0.3}, {"fail_rate": 1.0}])
def test_the_last_stage_is_the_plain_answer_and_the_first_ranked_one_the_direct_one(scoring, fault):
    stages = [stage for _, stage in streamed(scoring, **fault)[0]]
    assert stages[-1].judgments == whole(scoring, **fault) or _alike(stages[-1].judgments, whole(scoring, **fault))
    assert [stage.final for stage in stages] == [False] * (len(stages) - 1) + [True]
    ranked = [stage.ranked for stage in stages]
    assert ranked == sorted(ranked)
    first = next(stage for stage in stages if stage.ranked)
    direct = whole(ScoringConfig(), **fault)
    if not first.final:
        assert [each.score for each in first.judgments] == [each.score for each in direct]
        assert first.chains_finished == 0


def _alike(found, wanted):
    """Equal but for the identity of the errors."""
    return [repr(judgment) for judgment in found] == [repr(judgment) for judgment in wanted]


def test_direct_scores_come_first_and_chains_as_they_end():
    (*stages,), running = streamed(BUDGET)
    seconds = [second for second, _ in stages]
    # Direct scores: three rounds. Then chains and their labels: three more rounds each.
    assert seconds[-1] == pytest.approx(0.9)
    ranked = [(second, stage) for second, stage in stages if stage.ranked]
    assert ranked[0][0] == pytest.approx(0.3)
    assert (ranked[0][1].chains_finished, ranked[0][1].chains_wanted) == (0, 6)
    finished = [stage.chains_finished for _, stage in ranked]
    assert finished == sorted(finished) and finished[-1] == 6 and len(set(finished)) > 2
    # The best pairs get their chains first, and a pair's score changes once.
    best = rank_judgments(CANDIDATES, ranked[0][1].judgments)
    half = next(stage for _, stage in ranked if stage.chains_finished == 2)
    assert [statuses(half)[index] == DIRECT for index in best] == [False, False, True, True, True, True]
    final = ranked[-1][1].judgments
    for _, stage in ranked:
        for now, direct, last in zip(stage.judgments, ranked[0][1].judgments, final, strict=True):
            assert now.score in (direct.score, last.score)
    assert running == 0


def test_two_stages_are_a_tenth_of_a_second_apart():
    many = [Candidate(str(index), f"passage {index}", index + 1, 0.0) for index in range(40)]
    stages, _ = streamed(BUDGET, candidates=many, latency_ms=3)
    between = [later - sooner for (sooner, _), (later, _) in zip(stages, stages[1:], strict=False)]
    urgent = [index for index, (_, stage) in enumerate(stages) if stage.final or stage.ranked][:1]
    assert all(gap > 0.099 for index, gap in enumerate(between, 1) if index not in (*urgent, len(stages) - 1))
    assert len(stages) <= 5


def test_direct_scores_come_as_pairs_end():
    stages, _ = streamed(ScoringConfig())
    assert [statuses(stage).count(DIRECT) for _, stage in stages][-1] == 6
    assert 0 < statuses(stages[0][1]).count(DIRECT) < 6
    assert all(stage.chains_wanted == 0 for _, stage in stages)


def test_a_cascade_moves_only_what_has_a_chain():
    stages = [stage for _, stage in streamed(SOME_IN_DOUBT)[0]]
    ranked = [stage for stage in stages if stage.ranked]
    wanted = {stage.chains_wanted for stage in ranked}
    assert len(wanted) == 1
    direct = [judgment.direct_score for judgment in ranked[0].judgments]
    for stage in ranked:
        moved = [judgment.score != before for judgment, before in zip(stage.judgments, direct, strict=True)]
        thought = [judgment.think_score is not None for judgment in stage.judgments]
        assert sum(thought) == stage.chains_finished
        assert all(has for has, is_moved in zip(thought, moved, strict=True) if is_moved)


def test_no_pair_in_doubt_is_no_chain():
    stages = [stage for _, stage in streamed(ScoringConfig(mode="cascade", band=0))[0]]
    assert stages[-1].chains_wanted == 0
    assert set(statuses(stages[-1])) == {DIRECT}


def test_at_the_deadline_a_pair_without_a_chain_keeps_its_direct_score():
    for scoring in (BUDGET, CASCADE):
        stages, running = streamed(scoring, deadline_s=0.75)
        seconds, last = stages[-1]
        assert seconds == pytest.approx(0.75)
        assert last.final and last.ranked
        waiting = [judgment for judgment in last.judgments if judgment.status == DIRECT]
        assert 0 < len(waiting) < 6
        assert all(judgment.score is not None for judgment in last.judgments)
        assert {str(judgment.error) for judgment in waiting} == {
            "the deadline passed before the scoring of this pair ended"
        }
        assert running == 0


def test_a_deadline_before_the_direct_scores_skips_pairs():
    stages, running = streamed(BUDGET, deadline_s=0.15)
    _, last = stages[-1]
    assert (last.final, last.ranked) == (True, False)
    assert statuses(last).count(DIRECT) == 2 and statuses(last).count(SKIPPED) == 4
    assert running == 0


def test_a_direct_score_that_fails_is_no_failed_pair():
    # Every direct prompt ends with </think>, and every prompt of a chain does not: the fake engine fails by its prompt.
    stages = [stage for _, stage in streamed(BUDGET, fail_rate=0.3)[0]]
    for stage in stages[:-1]:
        for judgment in stage.judgments:
            if judgment.status == FAILED:
                assert judgment == stages[-1].judgments[int(judgment.doc_id)]


def test_who_leaves_frees_the_engine():
    stages, running = streamed(BUDGET, most=1)
    assert len(stages) == 1
    assert running == 0


def test_a_crashed_engine_ends_the_stream():
    with pytest.raises(EngineError, match="poisoned"):
        streamed(BUDGET, poison="passage 3")
