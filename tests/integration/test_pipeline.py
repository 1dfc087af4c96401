"""A whole pipeline with the fake engine and a real (small) training: every stage, and a second call."""

import json

import pytest

from helpers.units import Recorder
from limrank import pipeline
from limrank.config.recipe import parse_config
from limrank.errors import UserError
from limrank.progress import Progress


def config(run_dir, **training):
    return parse_config(
        {
            "job": "pipeline",
            "run_dir": str(run_dir),
            "data": {"format": "pydocs", "split": "dev", "max_queries": 3},
            "first_stage": {"depth": 3},
            "engine": {"kind": "fake"},
            "synthesis": {"max_seeds": 3, "mined_negatives": 1},
            "training": {"target": "direct", "max_examples": 4, "epochs": 1, "cutoff_tokens": 128, "lora_rank": 4}
            | training,
            "serving": {"port": 0},
        }
    )


def run(a_config):
    recorder = Recorder()
    return pipeline.run(a_config, address="local", progress=Progress(recorder, every_s=0)), recorder.events


def test_every_stage_leaves_its_output_and_is_not_done_again(local_ray, model_dir, tmp_path):
    root = tmp_path / "run"
    result, events = run(config(root))
    assert result.failed == 0
    stages = [event.stage for event in events if event.finished]
    assert stages == [
        "engine, smollm2-135m-instruct",
        "synthesize",
        "rerank, base model",
        "train",
        "engine, model",
        "rerank, tuned model",
        "serve",
    ]
    assert (root / "train" / "model" / "model.safetensors").is_file()
    assert len((root / "rerank-tuned" / "run.trec").read_text().splitlines()) == 9
    answer = json.loads((root / "serve" / "answer.json").read_text())
    assert [each["index"] for each in answer["results"]] != [] and answer["results"][0]["status"] == "direct"
    assert json.loads((root / "manifest.json").read_text())["status"] == "done"
    report = (root / "report.html").read_text()
    assert all(name in report for name in ("first stage", "base model", "tuned model"))

    _, again = run(config(root))
    assert not [event.stage for event in again if event.stage.startswith(("engine", "serve"))]
    with pytest.raises(UserError, match="another config"):
        run(config(root, epochs=2))
