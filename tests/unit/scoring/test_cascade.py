import asyncio
import math
from statistics import pstdev

import pytest

from helpers.units import fake_engine
from limrank.config import ScoringConfig
from limrank.errors import RowError
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring import score_query
from limrank.scoring.cascade import cascade, fuse, in_doubt, log_odds

DIRECT, COMPLETE, FAILED = ScoreStatus.DIRECT, ScoreStatus.COMPLETE, ScoreStatus.FAILED


def candidates(count):
    return [Candidate(f"d{index}", f"text {index}", index + 1, 0.0) for index in range(count)]


def chance(odds):
    return 1 / (1 + math.exp(-odds))


class Recorded:
    """Scores by document; a chain takes ``tokens`` beside its label's. ``asked`` tells for what."""

    def __init__(self, direct, think, tokens=9):
        self.scores = {DIRECT: direct, COMPLETE: think}
        self.tokens = {DIRECT: 1, COMPLETE: tokens + 1}
        self.asked = {DIRECT: [], COMPLETE: []}

    async def judge(self, status, candidate):
        self.asked[status].append(candidate.doc_id)
        odds = self.scores[status][int(candidate.doc_id[1:])]
        if odds is None:
            return Judgment(candidate.doc_id, None, FAILED, error=RowError("too long"))
        return Judgment(candidate.doc_id, chance(odds), status, generated_tokens=self.tokens[status])

    def run(self, **options):
        options = {"cutoff": 2, "band": 1.0, "longest": 10} | options

        async def ask(candidate):
            return await self.judge(DIRECT, candidate)

        async def think(candidate):
            return await self.judge(COMPLETE, candidate)

        return asyncio.run(cascade(candidates(len(self.scores[DIRECT])), ask, think, **options))


def order(judgments):
    return [each.doc_id for each in sorted(judgments, key=lambda judgment: -judgment.score)]


# ---- which are in doubt --------------------------------------------------------------


def test_what_may_end_above_the_cut_off_is_in_doubt_nearest_first():
    odds = {0: 3.0, 1: 2.0, 2: 1.9, 3: 1.0, 4: -4.0}
    assert pstdev(odds.values()) == pytest.approx(2.47, abs=0.01)
    # Rank 2 has 2.0; above it, or within half a deviation (1.24) below, lie all but the last.
    assert in_doubt(odds, cutoff=2, band=0.5) == [1, 2, 0, 3]
    # A tenth of a deviation: 0 and 1 are a whole 1.0 apart, so only the two at the cut are unclear.
    assert in_doubt(odds, cutoff=2, band=0.1) == [1, 2]


def test_one_far_above_all_others_is_settled():
    odds = {0: 9.0, 1: 2.0, 2: 1.9, 3: 1.8}
    assert 0 not in in_doubt(odds, cutoff=3, band=0.5)


def test_a_band_of_nothing_doubts_only_ties():
    assert in_doubt({0: 2.0, 1: 1.0, 2: 0.0}, cutoff=1, band=0.0) == []
    assert in_doubt({0: 1.0, 1: 1.0, 2: 0.0}, cutoff=1, band=0.0) == [0, 1]


def test_where_all_are_above_the_cut_off_the_first_ranks_matter_most():
    assert in_doubt({0: 0.0, 1: 2.0, 2: 1.0}, cutoff=10, band=5.0) == [1, 2, 0]


@pytest.mark.parametrize("odds", [{}, {4: 1.0}])
def test_nothing_to_compare_is_not_in_doubt(odds):
    assert in_doubt(odds, cutoff=1, band=1.0) == []


# ---- the fused order -----------------------------------------------------------------


def test_chains_order_those_in_doubt_and_move_nobody_else():
    odds = {0: 5.0, 1: 2.0, 2: 1.5, 3: 1.0, 4: -9.0}
    # Chains give 1, 2 and 3 the odds -1, 7 and 3: the stretch 1.0 … 2.0 is shared out by these.
    fused = fuse(odds, {1: -1.0, 2: 7.0, 3: 3.0}, band=1.0)
    assert fused == {0: 5.0, 1: 1.0, 2: 2.0, 3: 1.5, 4: -9.0}


def test_chains_order_pairs_that_are_tied():
    fused = fuse({0: 2.0, 1: 2.0, 2: 2.0, 3: 1.0}, {0: -3.0, 1: 0.0, 2: 5.0}, band=0.0)
    assert sorted(fused, key=lambda key: -fused[key]) == [2, 1, 0, 3]


def test_chains_that_agree_change_nothing():
    odds = {0: 2.0, 1: 1.0}
    assert fuse(odds, {0: 3.0, 1: 3.0}, band=9.0) == odds


def test_blocks_with_a_clear_gap_are_not_mixed():
    odds = {0: 10.0, 1: 9.0, 2: 1.0, 3: 0.0}
    fused = fuse(odds, {0: 0.0, 1: 1.0, 2: 8.0, 3: 9.0}, band=0.5)
    assert sorted(fused, key=lambda key: -fused[key]) == [1, 0, 3, 2]


def test_odds_of_certain_scores_are_finite():
    assert log_odds(0.5) == 0.0
    assert log_odds(1.0) == pytest.approx(36.7, abs=0.1)
    assert log_odds(0.0) == pytest.approx(-690.8, abs=0.1)


# ---- the whole -----------------------------------------------------------------------


def test_only_pairs_in_doubt_get_a_chain_and_move():
    recorded = Recorded(direct=[4.0, 2.0, 1.9, -3.0], think=[0.0, -5.0, 5.0, 9.0])
    judgments = recorded.run(band=0.1)
    assert sorted(recorded.asked[COMPLETE]) == ["d1", "d2"]
    assert order(judgments) == ["d0", "d2", "d1", "d3"]
    assert [judgment.status for judgment in judgments] == [DIRECT, COMPLETE, COMPLETE, DIRECT]
    assert judgments[2].direct_score == pytest.approx(chance(1.9))
    assert judgments[2].think_score == pytest.approx(chance(5.0))
    assert judgments[2].score == pytest.approx(chance(2.0))
    assert [judgment.generated_tokens for judgment in judgments] == [1, 11, 11, 1]


@pytest.mark.parametrize(("allowance", "chains"), [(5, 0), (14, 0), (15, 1), (24, 1), (25, 2), (None, 5)])
def test_an_allowance_is_kept_and_spent_nearest_to_the_cut_off(allowance, chains):
    recorded = Recorded(direct=[2.0, 1.9, 1.8, 1.7, 1.6], think=[0.0] * 5)
    judgments = recorded.run(band=9.0, allowance=allowance)
    assert len(recorded.asked[COMPLETE]) == chains
    assert recorded.asked[COMPLETE][:1] == ["d1"][:chains]
    if allowance is not None:
        assert sum(judgment.generated_tokens for judgment in judgments) <= allowance


def test_chains_that_fail_are_paid_for():
    class Unlabelled(Recorded):
        async def judge(self, status, candidate):
            if status is DIRECT:
                return await super().judge(status, candidate)
            self.asked[status].append(candidate.doc_id)
            return Judgment(candidate.doc_id, None, FAILED, generated_tokens=9, error=RowError("no label"))

    recorded = Unlabelled(direct=[2.0, 1.9, 1.8, 1.7, 1.6], think=None)
    judgments = recorded.run(band=9.0, allowance=25)
    assert len(recorded.asked[COMPLETE]) == 2
    assert sum(judgment.generated_tokens for judgment in judgments) == 23
    # A later call has what is left: nothing.
    again = Unlabelled(direct=None, think=None)
    again.scores[DIRECT] = [None] * 5
    again.run(band=9.0, allowance=25, known={judgment.doc_id: judgment for judgment in judgments})
    assert again.asked[COMPLETE] == []


def test_pairs_that_nobody_thought_about_keep_their_scores_to_the_last_digit():
    judged = Recorded(direct=[30.0, -40.0, -45.0, -50.0], think=[1.0] * 4).run(cutoff=1, band=0.01)
    assert [judgment.score for judgment in judged] == [chance(odds) for odds in (30.0, -40.0, -45.0, -50.0)]


def test_what_short_chains_leave_goes_to_others():
    # Two chains of ten tokens are reserved; each takes five, so that a third fits.
    recorded = Recorded(direct=[2.0, 1.9, 1.8, 1.7, 1.6], think=[0.0] * 5, tokens=4)
    judgments = recorded.run(band=9.0, allowance=25)
    assert len(recorded.asked[COMPLETE]) == 3
    assert sum(judgment.generated_tokens for judgment in judgments) == 20


def test_a_chain_that_fails_leaves_its_direct_score_and_says_so():
    recorded = Recorded(direct=[2.0, 1.9, 0.0], think=[1.0, None, 0.0])
    judgments = recorded.run(cutoff=1, band=0.2)
    assert [judgment.error is None for judgment in judgments] == [True, False, True]
    assert (judgments[1].score, judgments[1].status) == (pytest.approx(chance(1.9)), DIRECT)


def test_a_pair_without_a_direct_score_has_none_at_all():
    judgments = Recorded(direct=[2.0, None, 1.9], think=[1.0, 9.0, 2.0]).run(cutoff=1)
    assert (judgments[1].score, judgments[1].status) == (None, FAILED)


def test_what_is_known_is_not_asked_again_and_its_tokens_are_spent():
    think = [1.0, 5.0, None, 2.0]
    first = Recorded(direct=[2.0, 1.9, 1.8, None], think=think)
    before = first.run(cutoff=3, band=9.0, allowance=34)
    assert first.asked[COMPLETE] == ["d0", "d1", "d2"]
    second = Recorded(direct=[None, None, None, 1.7], think=[None, None, 7.0, 2.0])
    known = {judgment.doc_id: judgment for judgment in before}
    after = second.run(cutoff=3, band=9.0, allowance=34, known=known)
    assert (second.asked[DIRECT], second.asked[COMPLETE]) == (["d3"], ["d2"])
    assert order(after) == ["d2", "d1", "d0", "d3"]
    assert sum(judgment.generated_tokens for judgment in after) <= 34


def test_score_query_cascades_on_an_engine():
    scoring = ScoringConfig(mode="cascade", max_think_tokens=8, cutoff=2, band=0.3)
    query, found = Query("q", "which cat"), candidates(6)

    async def both():
        engine = fake_engine()
        direct = await score_query(query, found, engine, ScoringConfig(mode="direct"))
        return direct, await score_query(query, found, engine, scoring)

    direct, judged = asyncio.run(both())
    assert [judgment.direct_score for judgment in judged] == [judgment.score for judgment in direct]
    chains = [judgment for judgment in judged if judgment.reasoning is not None]
    assert 0 < len(chains) < 6
    assert all(judgment.think_score is not None for judgment in chains)
    best = sorted(judgment.score for judgment in direct)[-2:]
    assert {judgment.doc_id for judgment in chains} & {each.doc_id for each in direct if each.score in best}


def test_score_query_scores_only_what_is_not_known():
    query, found = Query("q", "which cat"), candidates(3)
    known = {
        "d0": Judgment("d0", 0.25, DIRECT),
        "d1": Judgment("d1", None, FAILED, error=RowError("lost")),
    }
    judged = asyncio.run(score_query(query, found, fake_engine(), ScoringConfig(), known=known))
    assert judged[0] is known["d0"]
    assert [judgment.status for judgment in judged] == [DIRECT] * 3
