"""The number of engine replicas for a load."""

from types import SimpleNamespace

import pytest

from limrank.serving.scaling import PAIRS, PairsPolicy, wanted_replicas


@pytest.mark.parametrize(
    ("pairs", "running", "waiting", "replicas"),
    [
        (0, 0, 0, 0),
        (1, 1, 0, 1),
        (500, 50, 0, 1),
        (501, 50, 0, 2),
        (1000, 1, 0, 2),  # one large request
        (500, 500, 0, 1),  # many small ones
        (2000, 200, 100, 6),  # those that wait have ten pairs each, too
        (0, 0, 1000, 2),  # no replica says what a request has
        (0, 5, 10, 1),
        (250.5, 10, 0, 1),
    ],
)
def test_wanted_replicas(pairs, running, waiting, replicas):
    assert wanted_replicas(pairs, running, waiting, target=500) == replicas


def context(reports, running=0, waiting=0):
    return SimpleNamespace(
        aggregated_metrics=reports, total_running_requests=running, total_queued_requests=waiting, policy_state={}
    )


def test_the_policy_adds_the_reports_of_all_replicas():
    policy = PairsPolicy(100)
    assert policy(context({PAIRS: {"a": 150.0, "b": 100.0}, "other": {"a": 9e9}}, running=2)) == (3, {})
    assert policy(context({PAIRS: {"a": 100.0}}, running=10, waiting=10)) == (2, {})


@pytest.mark.parametrize("reports", [None, {}, {PAIRS: {}}])
def test_without_reports_requests_that_wait_count(reports):
    assert PairsPolicy(100)(context(reports, waiting=250)) == (3, {})
    assert PairsPolicy(100)(context(reports, waiting=None)) == (0, {})
