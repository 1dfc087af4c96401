"""What one request may ask for, and what it gets; no Ray, no HTTP."""

import asyncio
import pickle
import time

import pytest

from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import meter, open_engine
from limrank.records import Query, ScoreStatus
from limrank.scoring import score_query
from limrank.scoring.calibration import Platt
from limrank.serving.errors import ApiError
from limrank.serving.options import AS_RECIPE, ScoreOptions, offered_modes, score_request, to_candidates

BUDGET = ScoringConfig(mode="budget", max_think_tokens=30)
QUERY = Query("", "merge sorted feeds", "only Python")
TEXTS = ["heapq.merge", "sorted", "bisect"]


def scored(recipe=BUDGET, options=AS_RECIPE, texts=TEXTS, latency_ms=0, **others):
    async def go():
        engine = open_engine(ModelConfig(), EngineConfig(kind="fake", fault={"latency_ms": latency_ms}))
        return await score_request(QUERY, texts, options, engine, recipe, **others)

    return asyncio.run(go())


def directly(scoring, texts=TEXTS):
    async def go():
        engine = open_engine(ModelConfig(), EngineConfig(kind="fake"))
        return await score_query(QUERY, to_candidates(texts), engine, scoring)

    return asyncio.run(go())


# ---- what may be asked for -----------------------------------------------------------


@pytest.mark.parametrize(
    ("scoring", "listed", "modes"),
    [
        ({"mode": "direct"}, None, {"direct": 0}),
        ({"mode": "think"}, None, {"think": 8192, "direct": 0}),
        ({"mode": "cascade", "max_think_tokens": 40}, None, {"cascade": 40, "direct": 0}),
        ({"mode": "think"}, (), {"think": 8192}),
        ({"mode": "direct"}, ("budget", "direct"), {"direct": 0, "budget": 256}),
        (
            {"mode": "budget", "max_think_tokens": 64, "samples": 4},
            ("direct", "think", "cascade"),
            {"budget": 64, "direct": 0, "think": 64, "cascade": 64},
        ),
    ],
)
def test_modes_that_a_server_offers(scoring, listed, modes):
    found = offered_modes(ScoringConfig(**scoring), listed)
    assert found == modes
    assert list(found) == list(modes)


def refusal(modes, **options):
    with pytest.raises(ApiError) as caught:
        ScoreOptions(**options).check(modes)
    return caught.value.status, caught.value.code, caught.value.param, str(caught.value)


def test_a_mode_that_is_not_offered_names_those_that_are():
    assert refusal({"budget": 30, "direct": 0}, mode="think") == (
        400,
        "mode_not_allowed",
        "mode",
        "mode: think is not offered here: take budget or direct",
    )


def test_a_longer_chain_than_the_recipes_is_refused():
    modes = {"budget": 30, "direct": 0}
    assert refusal(modes, max_think_tokens=31) == (
        400,
        "max_think_tokens_too_large",
        "max_think_tokens",
        "max_think_tokens: 31 is more than the 30 of budget here",
    )
    ScoreOptions(max_think_tokens=30).check(modes)
    ScoreOptions(mode="direct", max_think_tokens=31).check(modes)


# ---- what it gets --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["direct", "think", "budget", "cascade"])
def test_the_recipes_own_mode_scores_as_the_recipe_to_the_last_digit(mode):
    recipe = ScoringConfig(mode=mode, max_think_tokens=30)
    assert scored(recipe) == directly(recipe)
    assert scored(recipe, ScoreOptions(mode=mode, deadline_s=60, max_tokens_per_doc=1000)) == directly(recipe)


@pytest.mark.parametrize("mode", ["direct", "think", "cascade"])
def test_another_mode_scores_as_a_recipe_with_that_mode(mode):
    recipe = ScoringConfig(mode="budget", max_think_tokens=30, samples=3)
    wanted = ScoringConfig(mode=mode, max_think_tokens=30, samples=1 if mode == "direct" else 3)
    assert scored(recipe, ScoreOptions(mode=mode)) == directly(wanted)


def test_a_shorter_chain():
    shorter = ScoringConfig(mode="budget", max_think_tokens=5)
    found = scored(options=ScoreOptions(max_think_tokens=5))
    assert found == directly(shorter)
    assert {len(judgment.reasoning.split()) for judgment in found} == {5}


def test_documents_are_cut_to_so_many_tokens():
    texts = ["abcdefgh", "abc", "", "漢字"]  # a token is a byte
    found = scored(ScoringConfig(), ScoreOptions(max_tokens_per_doc=4), texts)
    expected = directly(ScoringConfig(), ["abcd", "abc", "", "漢"])
    assert [judgment.score for judgment in found] == [judgment.score for judgment in expected]
    assert [judgment.prompt_tokens for judgment in found] == [judgment.prompt_tokens for judgment in expected]
    assert [judgment.truncated for judgment in found] == [True, False, False, True]


def test_other_requests_go_on_while_documents_are_cut(monkeypatch):
    done = []

    def first_tokens(tokenizer, text, longest):
        done.append("cut")
        return text

    async def go():
        engine = open_engine(ModelConfig(), EngineConfig(kind="fake"))
        options = ScoreOptions(max_tokens_per_doc=4)
        running = asyncio.create_task(score_request(QUERY, ["a"] * 20, options, engine, ScoringConfig()))
        while done.count("cut") < 20:
            done.append("other")
            await asyncio.sleep(0)
        await running

    monkeypatch.setattr("limrank.serving.options.first_tokens", first_tokens)
    asyncio.run(go())
    assert "".join(name[0] for name in done) == "o" + "cccco" * 4 + "cccc"


def test_a_calibration_is_only_for_what_it_was_fitted_with():
    calibration = Platt(2.0, -1.0)
    for same in (AS_RECIPE, ScoreOptions(mode="budget", max_think_tokens=30), ScoreOptions(max_tokens_per_doc=3)):
        assert all(judgment.raw_score is not None for judgment in scored(options=same, calibration=calibration))
    for other in (ScoreOptions(mode="direct"), ScoreOptions(max_think_tokens=29)):
        assert scored(options=other, calibration=calibration) == scored(options=other)


def test_the_time_in_a_queue_counts():
    options = ScoreOptions(deadline_s=60, asked_at=time.time() - 59)
    assert 0 < options.seconds_left() <= 1
    assert ScoreOptions(deadline_s=60, asked_at=time.time() - 61).seconds_left() == 0
    # A clock that is behind gives no more time than was asked for.
    assert ScoreOptions(deadline_s=60, asked_at=time.time() + 1000).seconds_left() == 60
    assert ScoreOptions(asked_at=0).seconds_left() is None
    late = scored(options=ScoreOptions(deadline_s=60, asked_at=time.time() - 61), latency_ms=50)
    assert {judgment.status for judgment in late} == {ScoreStatus.SKIPPED}


def test_options_travel_between_processes():
    options = ScoreOptions("think", 9, 5, 1.5, asked_at=7.0)
    assert pickle.loads(pickle.dumps(options)).asked_at == 7.0


def test_work_that_a_deadline_cancels_is_not_counted():
    with meter() as usage:
        scored(ScoringConfig(), ScoreOptions(deadline_s=0.02), latency_ms=50)
    assert usage.requests == 0
