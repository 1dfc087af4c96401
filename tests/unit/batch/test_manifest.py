"""The manifest as it has always been written, and what is said of one that limrank did not write."""

import json

import pytest

from limrank.batch import rundir
from limrank.batch.manifest import Data, Manifest, read_manifest
from limrank.batch.receipts import Receipt, Work
from limrank.batch.rundir import open_run
from limrank.batch.summary import manifest_sections, summarize
from limrank.errors import UserError
from limrank.storage import Storage

WORK = Work("session", "worker", 10.0, 12.0, 9.5, 1.25, 1, 1.5, {"writer": "float32"})
STEPS = {"query": (60, 20, 30), "judge": (40, 20, 20)}
SYNTHESIZED = Receipt(0, 4, 8, 1, 8, 100, 40, 50, (WORK,), "commit", STEPS, 3)

NOTED = {
    "rerank": [{"data": {"name": "bright/pony", "revision": None}}, manifest_sections(summarize([], 0), "pairs")],
    "synthesize": [manifest_sections(summarize([SYNTHESIZED], 4), "seeds")],
    "train": [
        {
            "counts": {"units": 7, "rows": 7, "failed": 0, "cut": 0},
            "seconds": {"work": 3.269},
            "tokens": {"trained": 673},
            "dtype": {"model": "bfloat16"},
            "rates": {"tokens_per_second": 205.9},
        }
    ],
    "pipeline": [{"counts": {"failed": 0}}],
}
"""What each job notes of its run."""

_HEAD = """{
  "schema_version": 1,
  "job": "%s",
  "status": "done",
  "config_hash": "aaaa",
  "versions": {
    "limrank": "0.1.0",
    "python": "3.11.7"
  },
  "started_at": "2026-01-02T03:04:05+00:00",
  "resumed": false,
"""
_TAIL = """  "finished_at": "2026-01-02T03:04:05+00:00"
}
"""

WRITTEN = {
    "rerank": """  "counts": {
    "units": 0,
    "rows": 0,
    "failed": 0
  },
  "seconds": {
    "engine_startup": 0.0,
    "work": 0.0,
    "engine_busy": 0,
    "engine_idle": 0.0,
    "total": 1.5
  },
  "tokens": {
    "prompt": 0,
    "cached_prompt": 0,
    "generated": 0
  },
  "rates": {},
  "data": {
    "name": "bright/pony",
    "revision": null
  },
  "dtype": {},
""",
    "synthesize": """  "counts": {
    "units": 4,
    "rows": 8,
    "failed": 1,
    "kept": 3
  },
  "seconds": {
    "engine_startup": 1.25,
    "work": 2.0,
    "engine_busy": 1.5,
    "engine_idle": 1.0,
    "total": 1.5
  },
  "tokens": {
    "prompt": 100,
    "cached_prompt": 40,
    "generated": 50,
    "by_step": {
      "query": {
        "prompt": 60,
        "cached_prompt": 20,
        "generated": 30
      },
      "judge": {
        "prompt": 40,
        "cached_prompt": 20,
        "generated": 20
      }
    }
  },
  "rates": {
    "seeds_per_second": 2.0,
    "tokens_per_second": 75.0
  },
  "dtype": {
    "writer": "float32"
  },
""",
    "train": """  "counts": {
    "units": 7,
    "rows": 7,
    "failed": 0,
    "cut": 0
  },
  "seconds": {
    "work": 3.269,
    "total": 1.5
  },
  "tokens": {
    "trained": 673
  },
  "rates": {
    "tokens_per_second": 205.9
  },
  "dtype": {
    "model": "bfloat16"
  },
""",
    "pipeline": """  "counts": {
    "failed": 0
  },
  "seconds": {
    "total": 1.5
  },
  "tokens": {},
  "rates": {},
""",
}
"""What limrank 0.1.0 wrote of them before the manifest had a model, byte for byte."""


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


@pytest.mark.parametrize("job", NOTED)
def test_a_manifest_is_written_byte_for_byte_as_before(job, storage, monkeypatch):
    monkeypatch.setattr(rundir, "_now", lambda: "2026-01-02T03:04:05+00:00")
    monkeypatch.setattr(rundir, "versions", lambda: {"limrank": "0.1.0", "python": "3.11.7"})
    with open_run(storage.root, job=job, config_yaml="", config_hash="aaaa") as run:
        for facts in NOTED[job]:
            run.note(**facts)
        monkeypatch.setattr(rundir.time, "monotonic", lambda: run._started + 1.5)
        run.finish("done")
    assert storage.read_text("manifest.json") == _HEAD % job + WRITTEN[job] + _TAIL


@pytest.mark.parametrize("job", WRITTEN)
def test_a_manifest_that_is_read_and_written_is_the_same(job, storage):
    text = _HEAD % job + WRITTEN[job] + _TAIL
    storage.write_text("manifest.json", text)
    manifest = read_manifest(storage)
    assert (manifest.job, manifest.status, manifest.config_hash) == (job, "done", "aaaa")
    assert manifest.values() == json.loads(text)
    manifest.write(storage)
    assert storage.read_text("manifest.json") == text


def test_the_sections_are_typed(storage):
    storage.write_text("manifest.json", _HEAD % "rerank" + WRITTEN["rerank"] + _TAIL)
    manifest = read_manifest(storage)
    assert manifest.data == Data(name="bright/pony", revision=None)
    assert (manifest.tokens.prompt, manifest.counts["rows"], manifest.seconds["total"]) == (0, 0, 1.5)


def test_parts_may_be_missing_and_unknown_keys_are_kept(storage):
    assert read_manifest(storage) is None
    storage.write_text("manifest.json", '{"tokens": {"generated": 3, "dreamt": 1}, "weather": ["fair"]}')
    manifest = read_manifest(storage)
    assert (manifest.job, manifest.counts, manifest.tokens.prompt, manifest.tokens.generated) == ("", {}, None, 3)
    manifest.merged(status="done", tokens={"prompt": 2}).write(storage)
    assert json.loads(storage.read_text("manifest.json")) == {
        "status": "done",
        "tokens": {"prompt": 2, "generated": 3, "dreamt": 1},
        "weather": ["fair"],
    }


def test_facts_are_merged_key_by_key():
    manifest = Manifest(counts={"units": 2}).merged(counts={"rows": 6}, status="done")
    assert manifest.values() == {"status": "done", "counts": {"units": 2, "rows": 6}}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("not JSON", "its manifest.json is not one of limrank's (not JSON: Expecting value (column 1))"),
        ("[]", "its manifest.json is not one of limrank's (not a JSON object, but list)"),
        (
            '{"counts": {"rows": "many"}}',
            "its manifest.json is not one of limrank's (counts.rows: input should be a valid integer, got 'many')",
        ),
        (
            '{"seconds": {"work": -1}}',
            "its manifest.json is not one of limrank's (seconds.work: input should be greater than or equal to 0, got -1)",
        ),
        (
            '{"job": ["rerank"]}',
            "its manifest.json is not one of limrank's (job: input should be a valid string, got ['rerank'])",
        ),
        (
            '{"schema_version": 2, "versions": {"limrank": "9"}, "counts": 1}',
            "its manifest.json is of another version of limrank (schema 2, this one writes 1)",
        ),
    ],
)
def test_a_strange_manifest_is_refused_in_one_line_that_names_the_fault(text, fault, storage):
    storage.write_text("manifest.json", text)
    with pytest.raises(UserError) as caught:
        read_manifest(storage)
    assert str(caught.value) == f"run_dir {storage.root}: {fault}"


def test_a_folder_of_the_name_is_refused(storage):
    (storage.local("manifest.json")).mkdir(parents=True)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: .*directory"):
        read_manifest(storage)


def test_a_model_whose_dtype_is_unknown_has_none_there(tmp_path):
    """A checkpoint of an earlier version does not say what its model computed with."""
    storage = Storage(str(tmp_path))
    Manifest().merged(dtype={"model": None}).write(storage)
    assert read_manifest(storage).dtype == {"model": None}
