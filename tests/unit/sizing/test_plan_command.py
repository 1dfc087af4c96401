"""``limrank plan`` from outside. The fake engine's tokenizer needs no model."""

import json

import pytest

from helpers.beir import write_common
from limrank.cli import main


@pytest.fixture
def recipe(tmp_path):
    beir = write_common(tmp_path / "beir", queries=5, documents=4)
    path = tmp_path / "rerank.yaml"
    path.write_text(
        f"job: rerank\nrun_dir: {tmp_path}/run\ndata:\n  format: beir\n  path: {beir}\n"
        "engine:\n  kind: fake\n  max_in_flight: 4\n  fault:\n    latency_ms: 1000\n"
    )
    return path


def planned(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_rerank_job_is_its_pairs_and_nothing_is_written(recipe, tmp_path, capsys):
    found = planned(capsys, recipe)
    (stage,) = found["stages"]
    assert (stage["job"], stage["counts"]) == ("rerank", {"queries": 5, "pairs": 20})
    assert (stage["requests"], stage["tokens"]["generated"], stage["chunks"]) == (20, 20, 5)
    # 20 requests of a second, four at a time.
    assert stage["seconds"]["prefill"] == 5
    assert stage["bottleneck"] == "setup"
    assert not (tmp_path / "run").exists()


def test_replicas_share_the_work(recipe, capsys):
    (stage,) = planned(capsys, recipe, "-s", "workers.replicas=5")["stages"]
    assert (stage["engines"], stage["seconds"]["prefill"]) == (5, 1)


def test_a_price_gives_a_cost(recipe, capsys):
    assert main(["plan", str(recipe), "--price", "7200", "--rate", "setup_s=20"]) == 0
    said = capsys.readouterr().out
    assert "time: 25 s (setup 20 s, prefill 5 s); bottleneck: setup" in said
    assert "cost: 50.00" in said


def test_what_is_scored_without_a_model_asks_nothing(recipe, capsys):
    (stage,) = planned(capsys, recipe, "-s", "scoring.mode=none")["stages"]
    assert stage["requests"] == 0 and stage["notes"] == ["no model is asked"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "Z80:4"], "--gpus Z80:4: is none of B200"),
        (["--rate", "speed=1"], "--rate speed=1: speed is none of prefill"),
        (["--calibrate", "--gpus", "H100"], "--calibrate: measures this machine"),
        (["--against", "nowhere"], "--against nowhere: holds no finished run"),
    ],
)
def test_a_wrong_option_is_one_line(recipe, arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(recipe), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_endpoint_s_time_is_not_known_without_rates(recipe, capsys):
    endpoint = ("-s", "engine.kind=openai", "-s", "engine.base_url=http://127.0.0.1:1/v1", "-s", "engine.fault=null")
    (stage,) = planned(capsys, recipe, *endpoint)["stages"]
    assert stage["requests"] == 20 and "total" not in stage["seconds"]
    (stage,) = planned(capsys, recipe, *endpoint, "--rate", "prefill=1000")["stages"]
    assert stage["seconds"]["total"] > 0
