"""Fusion with the first stage: values that can be worked out by hand, and garbage."""

import math
import random

import pytest

from limrank.records import Candidate, Judgment, ScoreStatus
from limrank.scoring import rank_judgments
from limrank.scoring.fusion import (
    LARGEST_LOG_ODDS,
    WEIGHTS,
    choose_weight,
    clipped_log_odds,
    fuse,
    fused_order,
    fused_scores,
    z_scores,
)

ODD = [math.nan, math.inf, -math.inf]


# ---- z -------------------------------------------------------------------------------


def test_z_has_mean_0_and_population_deviation_1():
    # Mean 5, squared distances 9, 1, 1, 1, 0, 0, 4, 16: deviation 2.
    assert z_scores([2, 4, 4, 4, 5, 5, 7, 9]) == pytest.approx([-1.5, -0.5, -0.5, -0.5, 0, 0, 1, 2])


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [0.1] * 3, [-7e300] * 4, [5e-324] * 2])
def test_equal_values_and_a_single_one_are_0(values):
    assert z_scores(values) == [0.0] * len(values)


def test_z_does_not_depend_on_scale_and_offset():
    values = [1.0, 2.0, 4.0, 8.0]
    expected = z_scores(values)
    for factor, offset in ((1e-300, 0.0), (1e300, 0.0), (3.0, 100.0), (2.0**-1070, 0.0)):
        assert z_scores([factor * value + offset for value in values]) == pytest.approx(expected, rel=1e-6)


def test_the_largest_doubles_do_not_overflow():
    largest = 1.7976931348623157e308
    assert z_scores([largest, -largest]) == [1.0, -1.0]
    found = z_scores([largest] + [-largest] * 99)
    assert all(map(math.isfinite, found)) and found[0] == pytest.approx(math.sqrt(99))


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_finite_is_refused(odd):
    with pytest.raises(ValueError, match="is not a finite number"):
        z_scores([1.0, odd])
    with pytest.raises(ValueError, match="is not a finite number"):
        fuse([1.0, 2.0], [1.0, odd], 0.5)
    with pytest.raises(ValueError, match="is not a finite number"):
        fused_scores([0.5, 0.6], [1.0, odd], [1, 2], 0.5)


# ---- log-odds ------------------------------------------------------------------------


def test_log_odds_are_clipped_alike_on_both_sides():
    assert clipped_log_odds(0.5) == 0.0
    assert clipped_log_odds(0.9) == pytest.approx(math.log(9))
    assert clipped_log_odds(1.0) == LARGEST_LOG_ODDS == pytest.approx(36.7368, abs=1e-4)
    assert clipped_log_odds(0.0) == clipped_log_odds(1e-300) == -LARGEST_LOG_ODDS
    assert clipped_log_odds(1e-10) == pytest.approx(math.log(1e-10))


@pytest.mark.parametrize("odd", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_out_of_range_is_refused(odd):
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
        clipped_log_odds(odd)


# ---- fuse ----------------------------------------------------------------------------


def test_the_sum_is_weighted():
    # z of both is ±1.
    assert fuse([3.0, 1.0], [10.0, 20.0], 0.25) == [0.5, -0.5]
    assert fuse([3.0, 1.0], [10.0, 20.0], 0.0) == [1.0, -1.0]
    assert fuse([3.0, 1.0], [10.0, 20.0], 1.0) == [-1.0, 1.0]
    assert fuse([], [], 0.5) == []
    assert fuse([2.0], [7.0], 0.5) == [0.0]


def test_a_ranking_that_says_nothing_leaves_the_other():
    assert fuse([1.0, 1.0, 1.0], [3.0, 2.0, 1.0], 0.1) == pytest.approx([0.1 * z for z in z_scores([3, 2, 1])])
    assert fuse([3.0, 2.0, 1.0], [4.0, 4.0, 4.0], 0.9) == pytest.approx([0.1 * z for z in z_scores([3, 2, 1])])


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="the weight"):
        fuse([1.0], [1.0], weight)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 log-odds and 2 first-stage scores"):
        fuse([1.0], [1.0, 2.0], 0.5)


# ---- orders --------------------------------------------------------------------------


def test_failed_candidates_come_last_in_first_stage_order_and_count_in_no_mean():
    scores = [None, 0.2, 0.8, None]
    fused = fused_scores(scores, [1000.0, 8.0, 4.0, 1.0], [1, 2, 3, 4], 0.25)
    assert fused == [None, pytest.approx(-0.5), pytest.approx(0.5), None]
    assert fused_order(scores, [1000.0, 8.0, 4.0, 1.0], [1, 2, 3, 4], 0.25) == [2, 1, 0, 3]
    assert fused_order(scores, [1000.0, 8.0, 4.0, 1.0], [1, 2, 3, 4], 0.75) == [1, 2, 0, 3]
    assert fused_order([None, None], [2.0, 1.0], [2, 1], 0.5) == [1, 0]
    assert fused_order([], [], [], 0.5) == []


def test_ties_are_in_first_stage_order():
    assert fused_order([0.5, 0.5, 0.5], [2.0, 2.0, 2.0], [3, 1, 2], 0.5) == [1, 2, 0]
    # Opposite orders of equal weight: every sum is 0.
    assert fused_order([0.2, 0.8], [1.0, 0.0], [1, 2], 0.5) == [0, 1]


def test_ranks_stand_in_for_scores_that_are_not_there():
    scores, ranks = [0.1, 0.4, 0.9], [1, 2, 3]
    expected = fused_scores(scores, [-1.0, -2.0, -3.0], ranks, 0.4)
    assert fused_scores(scores, [None, None, None], ranks, 0.4) == expected
    assert fused_scores(scores, [5.0, None, 1.0], ranks, 0.4) == expected


def test_at_weight_0_the_order_is_the_pure_one_and_at_1_the_first_stage_s():
    rng = random.Random(7)
    for _ in range(200):
        count = rng.randint(1, 30)
        # Near, equal, extreme and missing scores.
        pool = [0.0, 1.0, 0.5, 0.5 + 2**-53, 0.5 + 2**-52, 1e-310, 1e-300, 1e-17, 1 - 2**-53, None, rng.random()]
        scores = [rng.choice(pool) for _ in range(count)]
        first_stage = sorted((rng.choice([1.0, 2.0, rng.random() * 30]) for _ in range(count)), reverse=True)
        ranks = list(range(1, count + 1))
        candidates = [Candidate(str(rank), "", rank, score) for rank, score in zip(ranks, first_stage, strict=True)]
        judgments = [Judgment("", score, ScoreStatus.DIRECT) for score in scores]
        assert fused_order(scores, first_stage, ranks, 0.0) == rank_judgments(candidates, judgments)
        by_first_stage = sorted(range(count), key=lambda index: (scores[index] is None, ranks[index]))
        assert fused_order(scores, first_stage, ranks, 1.0) == by_first_stage


# ---- the choice ----------------------------------------------------------------------


def test_the_best_weight_is_chosen():
    assert len(WEIGHTS) == 21 and WEIGHTS[:3] == (0.0, 0.05, 0.1) and WEIGHTS[-1] == 1.0
    weight, found = choose_weight(lambda weight: 1 - (weight - 0.3) ** 2)
    assert weight == 0.3
    assert found.keys() == set(WEIGHTS) and found[0.3] == 1.0


@pytest.mark.parametrize(
    ("best", "chosen"),
    [(WEIGHTS, 0.5), ((0.1, 0.2, 0.3), 0.3), ((0.7, 0.8), 0.7), ((0.45, 0.55), 0.45), ((0.0, 1.0), 0.0)],
)
def test_among_equals_the_weight_nearest_to_a_half_and_then_the_smaller(best, chosen):
    assert choose_weight(lambda weight: float(weight in best))[0] == chosen
