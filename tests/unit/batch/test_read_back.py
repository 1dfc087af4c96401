"""What training and a pipeline read back from their directories, where it is damaged or somebody's own."""

import json

import pytest

from limrank import pipeline
from limrank.batch.plan import read_chunk, read_plan
from limrank.errors import StorageError
from limrank.serving.one_query import best_document
from limrank.storage import Storage
from limrank.training.checkpoints import _INDEX, drop_broken_index
from limrank.training.metrics import MetricsWriter, read_metrics

LINE = {"step": 1, "loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 10.0}
STRANGE = ["", "[]", "null", "1", "{}", '"x"', "[" * 50_000, '{"checkpoint_results": 1}', '{"checkpoint_results": [1]}']


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


@pytest.mark.parametrize("text", STRANGE)
def test_an_index_of_checkpoints_that_is_none_is_made_anew(storage, text):
    storage.write_text(_INDEX, text)
    drop_broken_index(storage)
    assert not storage.exists(_INDEX)


def test_an_index_of_checkpoints_that_is_whole_stays(storage):
    storage.write_text(_INDEX, '{"checkpoint_results": [{"checkpoint_dir_name": "a", "metrics": {}}]}')
    drop_broken_index(storage)
    assert storage.exists(_INDEX)


@pytest.mark.parametrize(
    "line",
    ["[]", "1", "{}", '{"step": 2}', json.dumps(LINE | {"step": "2"}), json.dumps(LINE | {"loss": None}), "[" * 50_000],
)
def test_a_line_of_metrics_that_is_none_is_passed_over(storage, line):
    storage.write_text("metrics.jsonl", f"{json.dumps(LINE)}\n{line}\n")
    assert read_metrics(storage) == [LINE]
    MetricsWriter(storage, 5)
    assert storage.read_text("metrics.jsonl") == json.dumps(LINE) + "\n"


@pytest.mark.parametrize("text", [*STRANGE, '{"results": []}', '{"results": [1]}', '{"results": [{}]}'])
def test_a_served_answer_that_is_none_is_asked_again(tmp_path, text):
    (tmp_path / "answer.json").write_text(text)
    assert best_document(str(tmp_path)) is None


@pytest.mark.parametrize("text", [*STRANGE, '{"status": []}', '{"status": "done", "counts": 1}'])
def test_a_stage_whose_manifest_is_damaged_is_not_done(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert not pipeline._is_done(str(tmp_path))


@pytest.mark.parametrize("text", [*STRANGE, '{"schema_version": 1, "chunks": [[1, 2]]}', '{"chunks": [[1, 2, 3]]}'])
def test_a_plan_that_is_none_is_reported(storage, text):
    storage.write_text("plan.json", text)
    with pytest.raises(StorageError, match="plan.json is damaged; --overwrite starts over"):
        read_plan(storage)


def test_units_that_are_not_there_are_reported(storage):
    with pytest.raises(StorageError, match="units/part-00000.parquet is damaged .it is not there.; --overwrite starts"):
        read_chunk(storage, 0)
