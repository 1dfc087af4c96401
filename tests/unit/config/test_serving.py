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


def test_values():
    config = serving(max_queued_pairs=-1, modes=["think", "direct"], aliases=["rerank-v3.5", "a/b"])
    assert (config.max_queued_pairs, config.modes) == (-1, ("think", "direct"))
    assert config.aliases == ("rerank-v3.5", "a/b")
    assert serving(modes=[]).modes == ()
    assert serving(modes=None, aliases=[]).modes is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
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
