"""What a plan says a run asks is what it then asks of the real engine."""

import asyncio

import pytest

from helpers.beir import write_common
from limrank.batch.chunks import run_unit
from limrank.config.recipe import load_config
from limrank.engines.base import meter
from limrank.sizing import calibrate
from limrank.sizing.calibrate import Recorder, measure
from limrank.sizing.rates import Rates
from limrank.sizing.workload import count

WORDS = (
    "of",
    "vitamin",
    "D",
    "and",
    "the",
    "risk",
    "of",
    "hip",
    "fractures",
    "in",
    "older",
    "adults",
    "who",
    "live",
) * 3
RATES = Rates("here", "a test", True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Writes a recipe over 4 queries with 6 documents each: the config of a job and its own keys."""
    folder = tmp_path_factory.mktemp("sizing")
    beir = write_common(folder / "beir", queries=4, documents=6, words=WORDS)

    def config(job, *keys):
        path = folder / f"{job}.yaml"
        path.write_text(
            f"job: {job}\nrun_dir: {folder}/run\nmodel:\n  id: smollm2-135m-instruct\n  max_model_len: 2048\n"
        )
        return load_config(path, [key.format(beir=beir) for key in keys])

    return config


def rerank(recipe, *keys):
    return recipe("rerank", "data.format=beir", "data.path={beir}", *keys)


def asked(live, counted):
    """What the real engine is asked for, and how long its texts are."""
    recorder = Recorder(live.engine)

    async def run():
        with meter() as usage:
            engines = dict.fromkeys(counted.engines, recorder)
            await asyncio.gather(*(run_unit(counted.task, unit, engines) for unit in counted.sample))
        return usage

    return live.run(run(), timeout=300), recorder.shares()


def test_direct_scores_ask_for_what_was_counted(recipe, vllm_engine):
    counted = count(rerank(recipe), on_cpu=True, engines=1)
    (load,) = counted.workload.loads
    used, _ = asked(vllm_engine, counted)
    assert counted.workload.counts == {"queries": 4, "pairs": 24}
    assert (load.usage.requests, load.usage.prompt, load.usage.generated) == (
        used.requests,
        used.prompt,
        used.generated,
    )
    # Another test may have left the beginning of the prompt in the cache: a block.
    assert load.usage.cached_prompt == pytest.approx(used.cached_prompt, abs=64)


def test_chains_ask_for_what_was_counted_by_their_measured_length(recipe, vllm_engine):
    config = rerank(recipe, "scoring.mode=budget", "scoring.max_think_tokens=24")
    counted = count(config, on_cpu=True, engines=1)
    used, shares = asked(vllm_engine, counted)
    (load,) = count(config, on_cpu=True, engines=1, written=shares).workload.loads
    assert load.usage.requests == used.requests == 48
    assert load.usage.prompt == pytest.approx(used.prompt, rel=0.05)
    assert load.usage.generated == pytest.approx(used.generated, rel=0.05)


def test_queries_for_passages_ask_for_what_was_counted(recipe, vllm_engine):
    keys = ("synthesis.source=passages", "synthesis.seeds={beir}", "synthesis.query_tokens=20", "synthesis.max_seeds=3")
    config = recipe("synthesize", *keys)
    counted = count(config, on_cpu=True, engines=1)
    used, _ = asked(vllm_engine, counted)
    (load,) = counted.workload.loads
    assert (load.usage.requests, load.usage.prompt) == (used.requests, used.prompt)


def test_a_calibration_measures_speeds_and_lengths(recipe, vllm_engine, monkeypatch):
    monkeypatch.setattr(calibrate, "MEASURED_S", 1.0)
    config = rerank(recipe, "scoring.mode=budget", "scoring.max_think_tokens=24")
    counted = count(config, on_cpu=True, engines=1)
    found = vllm_engine.run(measure(vllm_engine.engine, counted, RATES, "scorer", decodes=True), timeout=300)
    assert found.rates.measured and found.rates.prefill > 0 and found.rates.decode > 0
    assert found.written.keys() == {"chain"} and 0 < found.written["chain"] <= 1
