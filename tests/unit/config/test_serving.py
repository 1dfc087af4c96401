"""``serving``: limits, modes and aliases, and one line for what is none."""

import pytest

from limrank.config import ServeJob
from limrank.config.recipe import parse_config
from limrank.errors import UserError
from limrank.serving import job

RECIPE = {"job": "serve", "run_dir": "out"}


def serving(**keys):
    return parse_config(RECIPE | {"serving": keys}).serving


def test_defaults():
    config = serving()
    assert (config.max_queued_pairs, config.max_queued_requests, config.modes, config.aliases) == (
        10_000,
        256,
        None,
        (),
    )


def test_replicas():
    config = serving()
    assert (config.spread_pairs, config.target_pairs_per_replica, config.scale_down_after_s) == (100, None, 300)
    assert serving(spread_pairs=None, target_pairs_per_replica=7).target_pairs_per_replica == 7
    engine = {"kind": "fake", "max_in_flight": 8}
    recipe = RECIPE | {"engine": engine, "workers": {"replicas": [1, 3]}}
    plan = job.plan(parse_config(recipe))
    assert (plan["pairs_per_replica"], plan["spread_over_pairs"], plan["drain_s"]) == (16, 100, 20)
    assert job.plan(parse_config(RECIPE | {"engine": engine}))["pairs_per_replica"] is None


def test_values():
    config = serving(max_queued_pairs=-1, modes=["think", "direct"], aliases=["rerank-v3.5", "a/b"])
    assert (config.max_queued_pairs, config.modes) == (-1, ("think", "direct"))
    assert config.aliases == ("rerank-v3.5", "a/b")
    assert serving(modes=[]).modes == ()
    assert serving(modes=None, aliases=[]).modes is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, value, "")
            for key in ("spread_pairs", "target_pairs_per_replica", "scale_down_after_s")
            for value in (0, -1, "", "many", True, [], float("nan"), float("inf"), 2**64, 10**9)
        ),
        ("spread_pairs", 1.5, ""),
        ("target_pairs_per_replica", 1.5, ""),
        ("scale_down_after_s", None, ""),
        ("max_queued_pairs", 0, "should be above 0, or -1 for no limit"),
        ("max_queued_pairs", -2, ""),
        ("max_queued_pairs", None, ""),
        ("max_queued_pairs", "many", ""),
        ("max_queued_pairs", True, "should not be true"),
        ("max_queued_pairs", 1.5, ""),
        ("max_queued_pairs", float("inf"), ""),
        ("max_queued_pairs", float("nan"), ""),
        ("max_queued_pairs", 2**64, "is too large a number"),
        ("modes", "direct", ""),
        ("modes", ["none"], ""),
        ("modes", [None], ""),
        ("modes", ["think", "think"], "has 'think' twice"),
        ("aliases", "name", ""),
        ("aliases", [""], "is empty"),
        ("aliases", [7], ""),
        ("aliases", None, ""),
        ("aliases", ["a", "b", "a"], "has 'a' twice"),
        ("aliases", ["n" * 5000], "is too long"),
        ("aliases", [str(number) for number in range(101)], ""),
        ("aliases", {"a": "b"}, ""),
    ],
)
def test_what_is_none_is_named(key, value, message):
    with pytest.raises(UserError) as caught:
        serving(**{key: value})
    assert f"serving.{key}" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chain_of_any_mode_has_to_fit():
    recipe = RECIPE | {"model": {"max_model_len": 512}, "scoring": {"mode": "direct", "min_think_tokens": 512}}
    parse_config(recipe)
    with pytest.raises(UserError, match="min_think_tokens 512 leaves no tokens for a prompt"):
        parse_config(recipe | {"serving": {"modes": ["think"]}})


def test_the_plan_has_the_limits():
    limits = job.plan(ServeJob(run_dir="r", serving={"max_queued_pairs": 500}))["limits"]
    assert (limits["waiting_requests"], limits["pairs"]) == (256, 500)
