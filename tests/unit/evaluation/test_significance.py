import pytest

from limrank.evaluation import significance
from limrank.evaluation.significance import bootstrap_interval, paired_bootstrap


def test_equal_values_have_no_spread():
    assert bootstrap_interval([0.3] * 7, seed=1) == (pytest.approx(0.3), pytest.approx(0.3))


def test_the_interval_agrees_with_the_normal_one_where_that_holds():
    # Half zeros, half ones, 400 queries: standard error 0.5 / 20 = 0.025.
    low, high = bootstrap_interval([0.0, 1.0] * 200, samples=5000, seed=1)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)


def test_more_confidence_is_wider_and_a_seed_repeats():
    values = [0.1, 0.4, 0.9, 0.2, 0.7]
    narrow = bootstrap_interval(values, confidence=0.5, seed=3)
    wide = bootstrap_interval(values, confidence=0.99, seed=3)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_samples_are_drawn_in_blocks_without_changing_the_result(monkeypatch):
    values = [0.1, 0.4, 0.9, 0.2, 0.7]
    whole = bootstrap_interval(values, samples=100, seed=3)
    monkeypatch.setattr(significance, "_BLOCK", 35)
    assert bootstrap_interval(values, samples=100, seed=3) == whole


def test_paired_differences_cancel_what_the_queries_share():
    easy_and_hard = [0.05, 0.95] * 20
    better = [value + 0.02 for value in easy_and_hard]
    difference, low, high = paired_bootstrap(better, easy_and_hard, seed=1)
    assert (difference, low, high) == (pytest.approx(0.02), pytest.approx(0.02), pytest.approx(0.02))


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([], seed=1)
    with pytest.raises(ValueError, match="2 and 1 given"):
        paired_bootstrap([1.0, 2.0], [1.0], seed=1)
