"""What a run directory may be, and that nothing of a person's is lost by one."""

import json
import os

import pytest
import yaml

from helpers.beir import CORPUS
from limrank import cli
from limrank.batch.run_dir_checks import check_location, contains
from limrank.batch.rundir import open_run
from limrank.errors import UserError
from limrank.outputs import is_written
from limrank.storage import Storage

HASH = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "a"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A person's machine: a home, a project in it that is worked in, and data."""
    home = tmp_path / "home"
    project = home / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git" / "HEAD").write_text("ref")
    (project / "main.py").write_text("print()")
    data = home / "data" / "beir"
    (data / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": each, "text": text}) for each, text in CORPUS.items()]
    (data / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (data / "queries.jsonl").write_text('{"_id": "q", "text": "cat"}\n')
    (data / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    return home


def snapshot(folder):
    """Every file and folder below, links as such, with contents and times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        fact = path.lstat().st_mtime_ns if not path.is_dir() else None
        found[str(path.relative_to(folder))] = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
            fact,
        )
    return found


def rerank(home, run_dir, *flags, **more):
    recipe = home.parent / "recipe.yaml"
    config = {"job": "rerank", "run_dir": str(run_dir), "scoring": {"mode": "none"}}
    config |= {"data": {"format": "beir", "path": str(home / "data" / "beir")}}
    recipe.write_text(yaml.safe_dump(config | more))
    return cli.main(["rerank", str(recipe), *flags])


DIRECTORIES = {
    "the root": lambda home: "/",
    "home": lambda home: "~",
    "home by its path": lambda home: home,
    "home's link": lambda home: _link(home.parent / "link", home),
    "above home": lambda home: home.parent,
    "the working directory": lambda home: ".",
    "the working directory by its path": lambda home: home / "project",
    "the working directory, with a slash": lambda home: f"{home}/project//",
    "the working directory through another": lambda home: f"{home}/data/../project",
    "above the working directory": lambda home: "..",
    "the corpus": lambda home: home / "data" / "beir",
    "above the corpus": lambda home: home / "data",
    "a link to the corpus": lambda home: _link(home / "mine", home / "data" / "beir"),
    "a project": lambda home: _project(home / "other"),
    "a directory with one file": lambda home: _project(home / "one", "notes.txt"),
    "a directory with a name of ours": lambda home: _project(home / "queries", "queries.jsonl"),
    "a directory with a recipe": lambda home: _project(home / "recipes", "config.yaml"),
    "a directory with a card": lambda home: _project(home / "card", "README.md", "DATASET.md"),
    "a directory with a folder of ours": lambda home: _project(home / "table", "rows/mine.csv"),
    "somebody else's manifest": lambda home: _project(home / "app", "manifest.json", "index.html"),
    "an npm lock": lambda home: _locked(home / "npm"),
    "a broken link": lambda home: _link(home / "gone", home / "nowhere" / "at" / "all"),
    "an empty text": lambda home: "",
    "blanks": lambda home: "  ",
}


def _link(path, to):
    path.symlink_to(to)
    return path


def _project(folder, *names):
    for name in names or (".git/HEAD", "src/main.py", "Makefile"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"name": "mine", "job": "rerank", "config_hash": "a"}')
    return folder


def _locked(folder):
    folder.mkdir()
    (folder / "lock.json").write_text('{"packages": {}}')
    return folder


@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize("where", DIRECTORIES)
def test_what_is_a_person_s_is_refused_and_untouched(where, flags, home, capsys):
    run_dir = DIRECTORIES[where](home)
    before = snapshot(home)
    assert rerank(home, run_dir, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("limrank: ") and "run_dir" in line
    if where not in ("a broken link", "an empty text", "blanks"):
        assert "-s run_dir=runs/mine" in line  # what to type instead
    assert snapshot(home) == before


@pytest.mark.parametrize("job", ["evaluate", "synthesize", "train", "pipeline"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["", "overwrite"])
def test_every_job_that_writes_refuses_a_project(job, flags, home, capsys):
    run_dir = _project(home / "other")
    train = home / "train.jsonl"
    lines = [{"query": f"q{n}", "passage": "a passage of words", "label": n % 2} for n in range(8)]
    train.write_text("".join(json.dumps(each) + "\n" for each in lines))
    run = home / "run.trec"
    run.write_text("q Q0 d1 1 1.0 x\n")
    data = {"format": "beir", "path": str(home / "data" / "beir")}
    keys = {
        "evaluate": {"data": data, "evaluation": {"run": str(run)}},
        "synthesize": {"engine": {"kind": "fake"}, "synthesis": {"max_seeds": 1}},
        "train": {"training": {"train_file": str(train), "target": "direct"}},
        "pipeline": {"engine": {"kind": "fake"}, "data": data},
    }[job]
    recipe = home.parent / f"{job}.yaml"
    recipe.write_text(yaml.safe_dump({"job": job, "run_dir": str(run_dir)} | keys))
    before = snapshot(home)
    assert cli.main([job, str(recipe), *flags]) == 2
    assert "holds what is not limrank's (.git, Makefile, src), and stays as it is" in capsys.readouterr().err
    assert snapshot(home) == before


def test_overwrite_leaves_what_it_did_not_write_and_says_so(home, capsys):
    run_dir = home / "run"
    assert rerank(home, run_dir) == 0
    written = {name for name in snapshot(run_dir) if not name.startswith("attempts")}
    for name in ("notes.txt", "rows/mine.parquet", "rows/sub/deep.txt", "thesis/chapter.tex", "run.trec.bak"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("precious")
    (run_dir / "attempts" / "outside").symlink_to(home / "data", target_is_directory=True)
    capsys.readouterr()
    before = snapshot(home / "data")
    assert rerank(home, run_dir, "--overwrite", first_stage={"depth": 2}) == 0
    assert "not limrank's, and left there" in capsys.readouterr().err
    assert set(snapshot(run_dir)) >= written
    for name in ("notes.txt", "rows/mine.parquet", "rows/sub/deep.txt", "thesis/chapter.tex", "run.trec.bak"):
        assert (run_dir / name).read_text() == "precious"
    assert snapshot(home / "data") == before


def test_what_a_run_writes_is_what_overwrite_knows(home):
    run_dir = home / "run"
    assert rerank(home, run_dir) == 0
    evaluate = home.parent / "evaluate.yaml"
    evaluate.write_text(f"job: evaluate\nrun_dir: {run_dir}\n")
    assert cli.main(["evaluate", str(evaluate)]) == 0
    files = [str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) > 8 and [name for name in files if not is_written(name, "rerank")] == []


@pytest.mark.parametrize("name", ["run.trec", "run.json", "queries.jsonl", "qrels.tsv", "config.yaml", "manifest.json"])
def test_a_link_of_an_output_s_name_is_replaced_and_its_target_is_not(name, home):
    run_dir, victim = home / "run", home / "precious"
    assert rerank(home, run_dir) == 0
    victim.write_bytes((run_dir / name).read_bytes())
    (run_dir / name).unlink()
    (run_dir / name).symlink_to(victim)
    before = victim.read_bytes(), victim.stat().st_mtime_ns
    flags = [] if name in ("manifest.json",) else ["--overwrite"]
    assert rerank(home, run_dir, *flags, **({"first_stage": {"depth": 2}} if flags else {})) == 0
    assert (victim.read_bytes(), victim.stat().st_mtime_ns) == before
    assert not (run_dir / name).is_symlink()


@pytest.mark.parametrize("name", ["metrics.json", "per_query.parquet", "report.html"])
def test_an_evaluation_writes_through_no_link(name, home):
    run_dir, victim = home / "run", home / "precious"
    assert rerank(home, run_dir) == 0
    victim.write_text("precious")
    (run_dir / name).symlink_to(victim)
    evaluate = home.parent / "evaluate.yaml"
    evaluate.write_text(f"job: evaluate\nrun_dir: {run_dir}\n")
    assert cli.main(["evaluate", str(evaluate)]) == 0
    assert victim.read_text() == "precious" and (run_dir / name).is_file()


@pytest.mark.parametrize("flags", [(), ("--overwrite",)], ids=["", "overwrite"])
@pytest.mark.parametrize("name", ["rows", "failures", "units", "attempts"])
def test_a_folder_of_a_run_that_is_a_link_is_refused(name, flags, home, capsys):
    run_dir = home / "run"
    assert rerank(home, run_dir) == 0
    target = _project(home / "target", "chunk-00000.parquet", "config.json")
    if (run_dir / name).exists():
        (run_dir / name).rename(home / "moved")
    (run_dir / name).symlink_to(target)
    before = snapshot(target)
    assert rerank(home, run_dir, *flags) == 2
    assert f"{name}: a link to another directory" in capsys.readouterr().err
    assert snapshot(target) == before


def test_a_run_directory_that_is_a_link_is_one_as_well(home):
    (home / "disk").mkdir()
    (home / "run").symlink_to(home / "disk")
    assert rerank(home, home / "run") == 0
    assert rerank(home, home / "run", "--overwrite", first_stage={"depth": 2}) == 0
    assert (home / "disk" / "run.trec").is_file() and (home / "run").is_symlink()


@pytest.mark.parametrize("name", [".DS_Store", "lost+found", ".nfs000000", ".directory"])
def test_what_a_file_system_leaves_makes_no_directory_a_person_s(name, home):
    (home / "run").mkdir()
    (home / "run" / name).write_text("")
    assert rerank(home, home / "run") == 0
    assert rerank(home, home / "run", "--overwrite", first_stage={"depth": 2}) == 0
    assert (home / "run" / name).exists()


def test_a_driver_that_was_killed_at_once_can_be_followed(home):
    run_dir = home / "run"
    held = {"token": "t", "host": "elsewhere", "pid": 1, "renewed": 0.0}
    run_dir.mkdir()
    (run_dir / "lock.json").write_text(json.dumps(held))
    os.utime(run_dir / "lock.json", (0, 0))
    (run_dir / (".manifest.json." + "0" * 32)).write_text("{")
    assert rerank(home, run_dir) == 0


def test_a_preview_and_a_dry_run_write_nothing(home, capsys):
    before = snapshot(home)
    assert rerank(home, home / "run", "--dry-run") == 0
    assert snapshot(home) == before


# ---- by itself ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directory", "path", "expected"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a/b", "/a", False),
        ("/a", "/ab", False),
        ("/a/", "/a/b/../c", True),
        ("s3://b", "s3://b/x", True),
        ("s3://b/x", "s3://b/x/model", True),
        ("s3://b/x?endpoint_override=h:1", "s3://b//x/model/", True),
        ("s3://b/x/", "s3://b/x?scheme=http", True),
        ("S3://b/x", "s3a://b/x/y", True),
        ("s3://b/x", "s3://b/xy", False),
        ("s3://b/x/y", "s3://b/x", False),
        ("s3://b/x", "/b/x", False),
        ("/b", "s3://b", False),
    ],
)
def test_what_is_around_what(directory, path, expected):
    assert contains(directory, path) is expected


def test_an_input_in_a_store_is_refused_by_its_key():
    inputs = [("data.path", "s3://b/data"), ("model.id", "s3://b/runs/tuned/model")]
    check_location("s3://b/runs/mine", inputs)
    for run_dir in ("s3://b/runs", "s3://b/runs/tuned?scheme=http", "s3://b/runs/tuned/model"):
        with pytest.raises(UserError, match=r"holds model.id \(s3://b/runs/tuned/model\), which a run must not touch"):
            check_location(run_dir, inputs)


@pytest.mark.parametrize("run_dir", ["", " ", "a\0b"])
def test_what_is_no_path_is_no_run_directory(run_dir):
    with pytest.raises(UserError, match="is no directory; take a directory of its own"):
        check_location(run_dir)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"job": "rerank", "config_hash": "a"}, "is not one of limrank's"),
        ({"job": "rerank", "config_hash": "a", "schema_version": 1, "versions": {}}, "is not one of limrank's"),
        ({"job": "deploy", "config_hash": "a", "versions": {"limrank": "1"}}, "is not one of limrank's"),
        ({"job": ["rerank"], "config_hash": "a", "versions": {"limrank": "1"}}, "is not one of limrank's"),
        ({"job": "rerank", "config_hash": 1, "versions": {"limrank": "1"}}, "is not one of limrank's"),
        ({"job": "rerank", "config_hash": "a", "schema_version": 2, "versions": {"limrank": "9"}}, "another version"),
        ({"job": "rerank", "config_hash": "a", "schema_version": "1", "versions": {"limrank": "9"}}, "another version"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_manifest_that_is_not_known_is_not_touched(manifest, message, overwrite, tmp_path):
    storage = Storage(str(tmp_path / "run"))
    storage.write_text("manifest.json", json.dumps(manifest))
    storage.write_text("rows/chunk-00000.parquet", "precious")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=message), open_run(storage.root, **HASH, overwrite=overwrite):
        pass
    assert snapshot(tmp_path) == before
