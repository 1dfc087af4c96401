"""Rates and a workload of round numbers, whose time can be checked by hand."""

import pytest

from limrank.config import EngineConfig, ModelConfig
from limrank.config.recipe import parse_config
from limrank.engines.base import Usage
from limrank.errors import UserError
from limrank.sizing.forecast import forecast, in_words
from limrank.sizing.rates import Rates, device_rates, local_rates, measured, parse_gpus, parse_rates, with_given
from limrank.sizing.sizing import Question, advice, size
from limrank.sizing.workload import Load, Workload

MODEL = ModelConfig()
RATES = Rates("a device", "a test", True, prefill=100, decode=10, train=50, startup_s=7, setup_s=3, chunk_s=0.01)


def load(prompt=0, cached=0, generated=0, requests=0, **engine):
    return Load(MODEL, EngineConfig(**engine), Usage(requests, prompt, cached, generated))


def test_the_time_is_of_prompts_that_are_not_cached_and_of_tokens_behind_each_request_s_first():
    found = forecast(Workload("rerank", {}, [load(prompt=1500, cached=500, generated=60, requests=10)], 5), RATES, 1)
    assert found.parts == {"setup": 3, "startup": 7, "prefill": 10, "decode": 5, "driver": 0.05}
    assert (found.seconds, found.bottleneck) == (25, "prefill")


def test_engines_share_the_work_and_start_together():
    work = Workload("rerank", {}, [load(prompt=1000), load(generated=100)], 5)
    assert forecast(work, RATES, 4).seconds == 3 + 7 + (10 + 10) / 4


def test_the_driver_is_the_bottleneck_where_engines_wait_for_it():
    found = forecast(Workload("rerank", {}, [load(prompt=1000)], 5000), RATES, 10)
    assert (found.seconds, found.bottleneck) == (3 + 7 + 50, "driver")


def test_a_short_run_is_bound_by_the_start_of_its_engines():
    assert forecast(Workload("rerank", {}, [load(prompt=100)], 1), RATES, 8).bottleneck == "startup"


def test_training_takes_its_tokens():
    found = forecast(Workload("train", {}, trained=500), RATES, 2)
    assert (found.parts["train"], found.seconds, found.bottleneck) == (5, 8, "train")


def test_the_cost_is_of_every_device_for_the_whole_time():
    work = Workload("train", {}, trained=50 * 3597)
    assert forecast(work, RATES, 1, price=2.5, devices=8).cost == pytest.approx(2.5 * 8)


def test_an_unknown_rate_is_no_time():
    found = forecast(
        Workload("rerank", {}, [load(prompt=10, generated=100, requests=1)]), Rates("x", "y", False, prefill=1), 1
    )
    assert (found.seconds, found.bottleneck, found.cost) == (None, None, None)
    # A rate that is not needed need not be known.
    assert forecast(Workload("rerank", {}, [load(prompt=10)]), Rates("x", "y", False, prefill=1), 1).seconds == 10


def test_the_fake_engine_takes_its_latency():
    work = Workload("rerank", {}, [load(requests=80, kind="fake", max_in_flight=8, fault={"latency_ms": 100})], 1)
    assert forecast(work, RATES, 1).parts["prefill"] == 1


def test_given_rates_take_the_place_of_others_and_are_named():
    rates = with_given(RATES, parse_rates(["prefill=1e3", "chain=40"]))
    assert (rates.prefill, rates.decode, rates.chain) == (1000, 10, 40)
    assert rates.source == "a test; given: chain, prefill"


def test_an_engine_that_is_up_takes_no_time_to_start():
    assert parse_rates(["startup_s=0"]) == {"startup_s": 0}


@pytest.mark.parametrize(
    "text",
    ["speed=3", "prefill", "prefill=fast", "prefill=0", "prefill=-1", "prefill=inf", "prefill=nan", "startup_s=soon",
     "startup_s=-1"],
)  # fmt: skip
def test_a_rate_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=f"--rate {text.partition('=')[0]}"):
        parse_rates([text])


def test_gpus_are_a_name_and_a_number():
    assert parse_gpus("h100:8") == ("H100", 8)
    assert parse_gpus("L4") == ("L4", 1)
    for text in ("H999:2", "H100:0", "H100:x"):
        with pytest.raises(UserError, match=f"--gpus {text}"):
            parse_gpus(text)


def test_what_nobody_measured_says_so():
    rates = device_rates("H100", MODEL, 1, True, {"parameters": 7.6e9})
    assert not rates.measured and rates.source.startswith("not measured")
    # 0.4 of 989 TFLOP/s, two operations a parameter.
    assert rates.prefill == pytest.approx(0.4 * 989e12 / 2 / 7.6e9)
    assert device_rates("H100", MODEL, 2, True, {"parameters": 7.6e9}).prefill == pytest.approx(2 * rates.prefill)


def test_a_larger_model_on_this_machine_is_an_estimate():
    small, large = (local_rates(MODEL, {"parameters": size}) for size in (134.5e6, 1345e6))
    assert large.prefill == pytest.approx(small.prefill / 10, rel=0.01)
    assert large.source.startswith("not measured")


def test_engines_of_this_machine_share_its_cores(monkeypatch):
    entry = {"device": "a CPU", "processor": "a CPU", "cores": 2, "dtype": "float32", "parameters": 1e8, "prefill": 800,
             "decode": 200, "source": "a test"}  # fmt: skip
    monkeypatch.setattr("limrank.sizing.rates.measured", lambda: [entry])
    monkeypatch.setattr("limrank.sizing.rates.this_processor", lambda: ("a CPU", 2))

    def rates(replicas, **given):
        keys = {"job": "serve", "run_dir": "run", "model": {"dtype": "float32"}, "workers": {"replicas": replicas}}
        (found,) = size(parse_config(keys), Question(rates={"parameters": 1e8, **given}))
        return found.rates

    assert (rates(1).prefill, rates(1).decode) == (800, 200)
    assert (rates(4).prefill, rates(4).decode) == (200, 50)
    # A rate that is given is one engine's.
    assert rates(4, prefill=300).prefill == 300


def test_every_measured_rate_says_where_it_is_from():
    from helpers import REPOSITORY

    for entry in measured():
        for file in entry["source"].split(", "):
            assert (REPOSITORY / file.partition(" ")[0]).is_file(), file
        assert {"device", "processor", "cores", "dtype", "parameters", "prefill", "decode"} <= entry.keys()


def test_times_in_words():
    assert [in_words(seconds) for seconds in (8.4, 250, 11_520)] == ["8 s", "4 min 10 s", "3 h 12 min"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "workers.replicas=4 -s workers.gpus=2"),
        ({"judge": {"id": "b"}}, "divide the 8 GPUs between workers and judge_workers"),
        ({"judge": {"id": "b"}, "judge_engine": {"kind": "openai", "base_url": "http://h/v1"}}, "workers.replicas=4"),
    ],
)
def test_the_advice_knows_the_pools_of_a_synthesis(keys, said):
    base = {"job": "synthesize", "run_dir": "run", "model": {"id": "a"}, "workers": {"tensor_parallel": 2}}
    config = parse_config(base | {"synthesis": {"seeds": "seeds.jsonl"}} | keys)
    (line,) = advice(config, Question(gpus="H100:8"))
    assert said in line
