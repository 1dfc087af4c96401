"""Which files of this machine travel with a submitted job, and what is refused instead."""

import zipfile
from pathlib import Path
from typing import get_args

import pytest

from limrank.cluster.shipping import check_paths_of_cluster, find_inputs, pack, with_places
from limrank.config import JOBS, ModelConfig, config_hash, dump_config, known_fields
from limrank.config.recipe import load_config, model_keys, parse_config
from limrank.errors import UserError

HEAD = "http://head:8265"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with a BEIR folder, a run and a prompt."""
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    (tmp_path / "beir" / "corpus.jsonl").write_text("{}\n")
    (tmp_path / "beir" / "qrels" / "test.tsv").write_text("q d 1\n")
    (tmp_path / "first.trec").write_text("q Q0 d 1 1.0 bm25\n")
    (tmp_path / "prompt.txt").write_text("{{ query }} {{ document }}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rerank(**values):
    base = {"job": "rerank", "run_dir": "s3://bucket/run", "data": {"format": "beir", "path": "beir"}}
    return parse_config(base | {"engine": {"kind": "fake"}} | values)


def unpacked(config, inputs, folder):
    pack(folder / "job.zip", {"recipe.yaml": dump_config(with_places(config, inputs))}, inputs)
    with zipfile.ZipFile(folder / "job.zip") as packed:
        packed.extractall(folder / "job")
    return folder / "job"


def test_every_local_input_travels_and_the_recipe_finds_it_where_it_lies(home, tmp_path_factory, monkeypatch):
    config = rerank(first_stage={"kind": "run", "path": "first.trec"}, scoring={"prompt": "prompt.txt"})
    there = unpacked(config, find_inputs(config), tmp_path_factory.mktemp("node"))
    monkeypatch.chdir(there)
    (home / "beir").rename(home / "gone")
    found = load_config("recipe.yaml")
    assert found.data.path.startswith(f"{there}/") and found.data.path.endswith("/beir")
    for path, same in [
        (f"{found.data.path}/corpus.jsonl", "gone/corpus.jsonl"),
        (f"{found.data.path}/qrels/test.tsv", "gone/qrels/test.tsv"),
        (found.first_stage.path, "first.trec"),
        (found.scoring.prompt, "prompt.txt"),
    ]:
        assert path.startswith(f"{there}/")
        assert Path(path).read_text() == (home / same).read_text()
    assert found.run_dir == "s3://bucket/run"


def test_each_of_several_paths_of_a_key_travels_and_uris_stay(home):
    (home / "a").mkdir()
    (home / "a" / "dev.jsonl").write_text("1")
    (home / "b").mkdir()
    (home / "b" / "dev.jsonl").write_text("2")
    listed = ["a/dev.jsonl", "benchmark://pydocs", "b/dev.jsonl"]
    config = parse_config({"job": "synthesize", "run_dir": "s3://b/run", "synthesis": {"decontaminate": listed}})
    inputs = find_inputs(config)
    first, named, second = with_places(config, inputs).synthesis.decontaminate
    assert named == "benchmark://pydocs"
    assert [each.place for each in inputs] == [first, second] and first != second


def test_names_that_are_no_files_do_not_travel(home):
    config = rerank(data={"format": "pydocs"}, scoring={"prompt": "relevance"})
    assert find_inputs(config) == []
    assert with_places(config, []) == config


def test_the_same_inputs_give_the_same_package(home, tmp_path_factory):
    config = rerank()
    archives = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("package")
        pack(folder / "job.zip", {"recipe.yaml": "a"}, find_inputs(config))
        archives.append((folder / "job.zip").read_bytes())
        (home / "beir" / "corpus.jsonl").touch()
    assert archives[0] == archives[1]


def test_a_folder_s_ignored_files_its_links_and_a_loop_of_links(home, tmp_path_factory):
    (home / "beir" / ".gitignore").write_text("*.jsonl\n")
    (home / "queries.jsonl").write_text("{}\n")
    (home / "beir" / "queries.jsonl").symlink_to(home / "queries.jsonl")
    (home / "beir" / "self").symlink_to(home / "beir")
    config = rerank()
    there = unpacked(config, find_inputs(config), tmp_path_factory.mktemp("node"))
    names = sorted(path.name for path in there.rglob("*") if path.is_file())
    assert names == [".gitignore", "corpus.jsonl", "queries.jsonl", "recipe.yaml", "test.tsv"]


def test_large_inputs_are_refused_with_what_to_type(home):
    (home / "beir" / "corpus.jsonl").write_bytes(b"0" * (2 * 2**20))
    with pytest.raises(UserError) as refused:
        find_inputs(rerank(), 1)
    assert str(refused.value).startswith(
        f"data.path {home}/beir: 2.0 MiB of 2.0 MiB of inputs, and 1 MiB travel with a job"
    )
    assert "s3://" in str(refused.value) and "--cluster-paths" in str(refused.value)
    assert find_inputs(rerank(), 3)[0].size == 2 * 2**20 + len("q d 1\n")


def test_a_path_that_is_not_here_is_refused(home):
    with pytest.raises(
        UserError, match="data.path /shared/beir: no such file or folder on this machine; .* --cluster-paths"
    ):
        find_inputs(rerank(data={"format": "beir", "path": "/shared/beir"}))


def test_a_local_run_dir_on_other_machines_is_refused(home):
    with pytest.raises(
        UserError, match=f"run_dir {home}/run: the nodes of {HEAD} are not this machine: .*run_dir=s3://"
    ):
        check_paths_of_cluster(rerank(run_dir="run"), HEAD)
    check_paths_of_cluster(rerank(), HEAD)
    # A server writes no run directory.
    check_paths_of_cluster(parse_config({"job": "serve", "run_dir": "run"}), HEAD)


def test_a_model_s_directory_does_not_travel(home):
    (home / "tuned").mkdir()
    config = rerank(model={"id": "tuned"})
    with pytest.raises(UserError, match=f"model.id {home}/tuned: a model's directory does not travel"):
        check_paths_of_cluster(config, HEAD)
    assert [each.key for each in find_inputs(config)] == ["data.path"]


def test_a_file_of_api_keys_does_not_travel(home):
    (home / "keys").write_text("me: secret\n")
    config = parse_config({"job": "serve", "run_dir": "run", "serving": {"keys_file": "keys"}})
    with pytest.raises(UserError, match="serving.keys_file .*/keys: API keys do not travel"):
        check_paths_of_cluster(config, HEAD)
    assert find_inputs(config) == []


def test_every_model_of_every_job_is_known_as_one():
    models = {
        f"{name}.id"
        for job in JOBS.values()
        for name, field in known_fields(job)
        if ModelConfig in (field.annotation, *get_args(field.annotation))
    }
    assert models <= model_keys()


def test_where_the_cluster_unpacks_inputs_is_no_part_of_a_hash():
    def hashed(path):
        return config_hash({"data": {"path": path, "split": "test"}})

    assert hashed("/tmp/one/limrank-inputs/0-data.path/beir") == hashed("/tmp/two/limrank-inputs/0-data.path/beir")
    assert hashed("/tmp/one/limrank-inputs/0-data.path/beir") != hashed("/tmp/one/limrank-inputs/0-data.path/other")
    assert hashed("/data/one/beir") != hashed("/data/two/beir")
