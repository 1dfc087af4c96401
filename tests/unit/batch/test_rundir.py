import json
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from limrank.batch.rundir import open_run
from limrank.errors import UserError
from limrank.storage import Storage

COMMON = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "aaaa"}


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


def listed(storage, folder=""):
    """Every name in a folder, hidden and half-written files included."""
    return sorted(path.name for path in Path(storage.root, folder).iterdir())


def taking(storage, **options):
    """Takes the run directory and gives it back at once."""
    with open_run(storage.root, **(COMMON | options)) as run:
        return run


def manifest(storage):
    return json.loads(storage.read_text("manifest.json"))


# ---- files ---------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written_and_a_second_writer_replaces_it(storage):
    storage.write_text("a/b.txt", "long first text")
    storage.write_text("a/b.txt", "é")
    assert storage.read_text("a/b.txt") == "é"
    assert storage.read_bytes("a/b.txt") == b"\xc3\xa9"
    assert listed(storage, "a") == ["b.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(storage, monkeypatch):
    storage.write_text("a.txt", "old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        storage.write_text("a.txt", "new")
    monkeypatch.undo()
    assert storage.read_text("a.txt") == "old"
    assert listed(storage) == ["a.txt"]


def test_a_reader_never_sees_half_a_file(storage):
    texts = ["a" * 100_000, "b" * 100_000]
    storage.write_text("file", texts[0])
    seen = set()
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.add(storage.read_text("file"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(50):
        storage.write_text("file", texts[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)


def test_names_are_sorted_files_without_those_being_written(storage):
    for name in ("rows/b", "rows/a", "rows/.c.123", "rows/deeper/d"):
        storage.write_text(name, "")
    assert storage.names("rows") == ["a", "b"]
    assert storage.names("nowhere") == []


def test_exists_and_remove(storage):
    storage.write_text("a", "")
    assert (storage.exists("a"), storage.exists("b")) == (True, False)
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a")
    with pytest.raises(FileNotFoundError):
        storage.read_text("a")


def test_a_table_keeps_its_schema_and_metadata(storage):
    table = pa.table({"x": [1, None]}).replace_schema_metadata({"version": "1"})
    storage.write_table("t.parquet", table)
    assert storage.read_table("t.parquet").to_pylist() == [{"x": 1}, {"x": None}]
    assert storage.read_table("t.parquet").schema.metadata[b"version"] == b"1"


def test_a_local_path_is_refused_for_an_object_store(storage):
    assert storage.local("model") == Path(storage.root) / "model"
    with pytest.raises(UserError, match="run_dir s3://bucket/run: this job writes files that need a local path"):
        Storage("s3://bucket/run").local()


def test_overwrite_is_safe_to_be_killed_in(storage, monkeypatch):
    """Whatever is left still belongs to limrank, with a stranger's file beside it, and goes on."""
    with open_run(storage.root, **COMMON):
        for name in ("rows/chunk-00000.parquet", "units/part-00000.parquet", "run.trec", "plan.json"):
            storage.write_text(name, "")
        storage.write_text("notes.txt", "precious")
    removed, remove = [], Storage.remove

    def killed(self, name):
        if name != "lock.json":
            removed.append(name)
            if len(removed) == 2:
                raise KeyboardInterrupt
        remove(self, name)

    monkeypatch.setattr(Storage, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        taking(storage, config_hash="bbbb", overwrite=True)
    # Rows mean nothing without a plan.
    assert removed[0] == "rows/chunk-00000.parquet" and storage.exists("plan.json")
    monkeypatch.undo()
    with open_run(storage.root, **(COMMON | {"config_hash": "cccc"})) as run:
        assert not run.resumed
        # The plan of another config would be taken for this one's.
        assert listed(storage) == ["config.yaml", "lock.json", "manifest.json", "notes.txt"]
    assert storage.read_text("notes.txt") == "precious"


# ---- whose rows ----------------------------------------------------------------------


def test_a_new_run_writes_config_and_manifest(storage):
    with open_run(storage.root, **COMMON) as run:
        assert (run.resumed, run.root) == (False, storage.root)
        assert storage.read_text("config.yaml") == "job: rerank\n"
        assert manifest(storage)["status"] == "running"
        run.note(counts={"units": 2}, seconds={"work": 1.5})
        run.note(counts={"rows": 6})
        run.finish("done")
    written = manifest(storage)
    assert written["counts"] == {"units": 2, "rows": 6}
    assert written["seconds"].keys() == {"work", "total"}
    assert {name: written[name] for name in ("schema_version", "job", "status", "config_hash", "resumed")} == {
        "schema_version": 1,
        "job": "rerank",
        "status": "done",
        "config_hash": "aaaa",
        "resumed": False,
    }
    assert {"versions", "started_at", "finished_at", "tokens", "rates"} <= written.keys()
    assert {"limrank", "python", "pyarrow"} <= written["versions"].keys()


def test_the_same_config_resumes(storage):
    with open_run(storage.root, **COMMON):
        storage.write_text("rows/a", "kept")
    with open_run(storage.root, **COMMON) as run:
        assert run.resumed
        assert storage.read_text("rows/a") == "kept"
    assert manifest(storage)["resumed"] is True


@pytest.mark.parametrize("other", [{"config_hash": "bbbb"}, {"job": "train"}])
def test_another_config_is_refused_and_its_run_is_not_touched(storage, other):
    with open_run(storage.root, **COMMON) as run:
        run.finish("done")
    before = manifest(storage)
    with pytest.raises(UserError, match="holds a rerank run of another config .*aaaa.*--overwrite"):
        taking(storage, **other)
    assert manifest(storage) == before
    assert not storage.exists("lock.json")


def test_overwrite_empties_the_directory(storage):
    with open_run(storage.root, **COMMON):
        storage.write_text("rows/chunk-00000.parquet", "old")
        storage.write_text("run.trec", "old")
    with open_run(storage.root, **(COMMON | {"config_hash": "bbbb"}), overwrite=True) as run:
        assert not run.resumed
        assert storage.names("rows") == []
        assert listed(storage) == ["config.yaml", "lock.json", "manifest.json"]


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"name": "my web app"}'])
def test_overwrite_never_empties_what_is_not_ours(storage, text):
    storage.write_text("manifest.json", text)
    storage.write_text("index.html", "precious")
    with pytest.raises(UserError, match="its manifest.json is not one of limrank's"):
        taking(storage, overwrite=True)
    assert storage.read_text("index.html") == "precious"


def test_a_job_that_fails_says_so_and_its_own_error_comes_through(storage):
    with pytest.raises(PermissionError, match="the train file"), open_run(storage.root, **COMMON):
        raise PermissionError("the train file")
    assert manifest(storage)["status"] == "failed"
    assert not storage.exists("lock.json")


def test_a_directory_that_cannot_be_written_is_the_user_s_fault(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", "/proc/limrank", "s3x://bucket/run"):
        with pytest.raises(UserError, match="cannot be written: ") as caught:
            taking(Storage(str(path)))
        assert str(caught.value).startswith(f"run_dir {path}: ")
