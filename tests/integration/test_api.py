"""The jobs as functions on a real Ray, with the fake engine: in a notebook's loop, and outside the main thread."""

import asyncio
import json
import threading
from pathlib import Path

import httpx
import pytest

from helpers.tiny_model import make_tiny
from limrank import evaluate, rerank, serve, synthesize, train

FAKE = {"kind": "fake"}
PAIRS = {"data": {"format": "pydocs", "max_queries": 2}, "first_stage": {"depth": 2}}


def in_a_notebook(call):
    """What a cell of a notebook does, whose kernel runs its loop in a thread that is not the main one."""
    found = []

    async def cell():
        found.append(call())

    thread = threading.Thread(target=lambda: asyncio.run(cell()))
    thread.start()
    thread.join()
    return found[0]


def test_rerank(local_ray, tmp_path):
    keys = {"run_dir": tmp_path / "run", **PAIRS, "engine": FAKE}
    result = in_a_notebook(lambda: rerank(**keys))
    assert result.rows["status"].unique().to_pylist() == ["direct"]
    assert result.stats["status"] == "done"
    assert list(evaluate(result.run, result.qrels, ["RR"]).per_query["RR"]) == list(result.qrels)
    assert rerank(**keys, address="local") == result


def test_what_failed_is_counted(local_ray, tmp_path):
    keys = {"run_dir": tmp_path / "run", **PAIRS}
    result = rerank(**keys, engine=FAKE | {"fail_rate": 1.0})
    assert result.failed == result.rows.num_rows == result.stats["counts"]["failed"]


def test_synthesize(local_ray, tmp_path):
    result = in_a_notebook(
        lambda: synthesize(run_dir=tmp_path / "run", engine=FAKE, synthesis={"max_seeds": 3, "kinds": ["daily"]})
    )
    assert result.rows.num_rows == result.stats["examples"] > 0
    selected = [row for row in result.rows.to_pylist() if row["selected"]]
    lines = Path(result.train_file).read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"prompt", "completion"}] * len(selected)


def test_train(local_ray, tmp_path):
    model = make_tiny(tmp_path / "tiny", tied=True)
    lines = [
        {"prompt": f"Query: {word}\nPassage: a {word}\n<think>", "completion": f"\n</think> {label}"}
        for word, label in (("cat", "true"), ("dog", "false"), ("roof", "true"), ("park", "false"))
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 1, "lora_rank": 4, "target": "direct"}
    training = settings | {"train_file": tmp_path / "train.jsonl", "validation_share": 0}
    result = train(run_dir=tmp_path / "run", model={"id": model, "dtype": "float32"}, training=training)
    assert [line["step"] for line in result.metrics] == [1, 2, 3, 4]
    assert result.final_loss == pytest.approx(result.metrics[-1]["loss"])
    assert (result.best_step, result.exported_step, result.validation_loss) == (None, 4, None)
    assert (Path(result.model_dir) / "config.json").is_file()
    assert (Path(result.adapter_dir) / "adapter_config.json").is_file()
    assert result.stats["counts"]["rows"] == 4


def test_progress_is_shown_where_it_is_asked_for(local_ray, tmp_path, capfd):
    keys = PAIRS | {"engine": FAKE}
    rerank(run_dir=tmp_path / "quiet", **keys)
    assert capfd.readouterr() == ("", "")
    rerank(run_dir=tmp_path / "shown", **keys, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "rerank: 4/4 pairs" in err


def test_serve(local_ray):
    def ask():
        with serve(model={"id": "any"}, engine=FAKE, serving={"port": 0}) as url:
            body = {"query": "cat", "documents": ["a cat", "a dog"]}
            return url, httpx.post(f"{url}/v1/rerank", json=body, trust_env=False).json()

    url, answer = in_a_notebook(ask)
    assert {result["index"] for result in answer["results"]} == {0, 1}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/readyz", trust_env=False)
