"""The command line as a person meets it: exit codes, and one line on stderr."""

import json

import pytest

import limrank
from helpers.beir import QRELS, write_beir
from helpers.units import write_recipe
from limrank import cluster
from limrank.cli import main
from limrank.config import JOBS, RerankJob, known_fields
from limrank.errors import EngineError
from limrank.result import JobResult


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def recipe(home):
    """A recipe on a tiny BEIR folder that needs neither Ray nor a model."""
    write_beir(home / "data")

    def write(**sections):
        values = {
            "job": "rerank",
            "run_dir": "run",
            "data": {"format": "beir", "path": "data"},
            "engine": {"kind": "fake"},
            "scoring": {"mode": "none"},
        }
        write_recipe(home / "r.yaml", **(values | sections))
        return "r.yaml"

    return write


@pytest.fixture
def refused(capsys):
    """Runs a command that exits with 2 and gives its one line on stderr."""

    def run(*arguments):
        assert main(list(arguments)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("limrank: ") and err.endswith("\n") and err.count("\n") == 1
        return err[len("limrank: ") : -1]

    return run


# ---- the person's input --------------------------------------------------------------


def test_missing_recipe(home, refused):
    assert refused("rerank", "none.yaml") == "none.yaml: no such recipe"


def test_unknown_key(recipe, refused):
    message = refused("rerank", recipe(), "-s", "first_stage.deph=3")
    assert message == "r.yaml: first_stage.deph: unknown key; did you mean first_stage.depth?"


def test_depth_zero(recipe, refused):
    message = refused("rerank", recipe(), "-s", "first_stage.depth=0")
    assert message == "r.yaml: first_stage.depth: input should be greater than 0 (got 0)"


def test_another_job_s_recipe(recipe, refused):
    message = refused("train", recipe())
    assert message == "r.yaml: job: this recipe is for `limrank rerank`, not `limrank train`"


def test_unknown_model(recipe, refused):
    name = recipe(engine={"kind": "vllm"}, scoring={"mode": "direct"}, model={"id": "smollm"})
    message = refused("rerank", name)
    assert message.startswith("model smollm: no such directory, and not a packaged model (smollm2-135m-instruct, ")


def test_a_directory_that_is_no_model(recipe, refused, home):
    (home / "tuned").mkdir()
    name = recipe(engine={"kind": "vllm"}, scoring={"mode": "direct"}, model={"id": "tuned"})
    assert refused("rerank", name) == f"model {home}/tuned: the directory holds no config.json, so it is not a model"


def test_unknown_prompt(recipe, refused):
    name = recipe(scoring={"mode": "direct", "prompt": "relevence"})
    message = refused("rerank", name, "--dry-run")
    assert message.startswith("prompt relevence: no such file, and not one of bright, bright_aops, ")


def test_missing_folder(recipe, refused, home):
    message = refused("rerank", recipe(data={"format": "beir", "path": "nowhere"}))
    assert message.startswith(f"{home}/nowhere: no such folder")


def test_empty_corpus(recipe, refused, home):
    name = recipe()
    (home / "data" / "corpus.jsonl").write_text("\n")
    assert refused("rerank", name) == f"{home}/data/corpus.jsonl: the corpus is empty"


def test_duplicate_ids(recipe, refused, home):
    name = recipe()
    (home / "data" / "corpus.jsonl").write_text('{"_id": "d", "text": "a"}\n{"_id": "d", "text": "b"}\n')
    assert refused("rerank", name) == f"{home}/data/corpus.jsonl:2: _id 'd' is there twice: first on line 1"


def test_a_line_that_is_not_json(recipe, refused, home):
    name = recipe()
    with (home / "data" / "queries.jsonl").open("a") as file:
        file.write("{oops\n")
    assert refused("rerank", name).startswith(f"{home}/data/queries.jsonl:3: not JSON: ")


def test_a_run_that_names_other_documents(recipe, refused, home):
    (home / "first.trec").write_text("q1 Q0 d9 1 1.0 x\nq1 Q0 d1 2 0.5 x\n")
    name = recipe(first_stage={"kind": "run", "path": "first.trec"})
    assert refused("rerank", name) == (
        f"{home}/first.trec: the corpus lacks 1 of the 2 documents that it ranks, such as 'd9' of query 'q1'"
    )


def test_another_config_s_run_dir(recipe, refused, capsys, home):
    name = recipe()
    assert main(["rerank", name]) == 0
    capsys.readouterr()
    message = refused("rerank", name, "-s", "first_stage.depth=1")
    assert message.startswith(f"run_dir {home}/run: holds a rerank run of another config ")
    assert message.endswith("take another run_dir, or --overwrite")
    assert main(["rerank", name, "-s", "first_stage.depth=1", "--overwrite"]) == 0


def test_a_run_dir_that_is_a_file(recipe, refused, home):
    (home / "file").write_text("")
    assert refused("rerank", recipe(run_dir="file")) == f"run_dir {home}/file: cannot be written: File exists"


def test_an_address_that_is_none(recipe, refused):
    message = refused("rerank", recipe(), "--address", "ray://head:10001")
    assert message == "--address ray://head:10001: is none of local, auto, http://HOST:8265"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["rerank"], "Missing argument 'RECIPE.yaml'"),
        (["rerank", "r.yaml", "--nope"], "No such option: --nope"),
        (["jobs", "status"], "Missing argument 'JOB'"),
        (["rerank", "r.yaml", "-s"], "Option '-s' requires an argument"),
    ],
)
def test_usage_errors(home, refused, arguments, message):
    assert refused(*arguments) == f"{message}; see `limrank --help`"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--dry-run"], "--dry-run"),
        (["--overwrite"], "--overwrite"),
        (["--address", "auto"], "--address auto"),
        (
            ["--address", "http://nowhere:1", "--dry-run", "--overwrite"],
            "--dry-run, --overwrite, --address http://nowhere:1",
        ),
    ],
)
def test_a_preview_refuses_what_it_would_ignore(home, refused, options, named):
    message = refused("synthesize", "r.yaml", "--preview", "1", *options)
    assert message == f"{named}: not with --preview, which runs seeds on this machine and writes nothing"


# ---- what works ----------------------------------------------------------------------


def test_a_run_prints_what_it_did(recipe, capsys, home):
    assert main(["rerank", recipe()]) == 0
    out, err = capsys.readouterr()
    assert out == f"2 queries, 4 pairs, 0 failed\nrun: {home}/run/run.trec\n"
    assert err == ""


def test_judgements_of_unknown_queries_are_a_warning_with_their_count(recipe, capsys, home):
    name = recipe()
    write_beir(home / "data", qrels=QRELS | {"x1": {"d1": 1}, "x2": {"d2": 1}})
    assert main(["rerank", name]) == 0
    out, err = capsys.readouterr()
    assert err == "warning: data/test: the judgements of 2 queries that the collection lacks are left out\n"
    assert out.startswith("2 queries, 4 pairs")


def test_no_judgements_are_a_warning(recipe, capsys, home):
    name = recipe()
    (home / "data" / "qrels" / "test.tsv").unlink()
    assert main(["rerank", name]) == 0
    assert capsys.readouterr().err.startswith("warning: ")


@pytest.mark.parametrize("mode", ["none", "direct"])
def test_a_dry_run_starts_and_writes_nothing(recipe, capsys, home, monkeypatch, mode):
    monkeypatch.setattr(cluster, "connect", lambda *arguments, **options: pytest.fail("a cluster was started"))
    name = recipe(scoring={"mode": mode})
    before = sorted(path.name for path in home.iterdir())
    assert main(["rerank", name, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"job: rerank\nrun_dir: {home}/run\n")
    assert "#   units: 2 queries, 4 pairs\n" in out
    assert ("# first prompt\nDetermine if" in out) == (mode == "direct")
    assert sorted(path.name for path in home.iterdir()) == before


@pytest.mark.parametrize("options", [[], ["--address", "local"]])
def test_a_preview_runs_here_whatever_cluster_there_is(home, capsys, monkeypatch, options):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (home / "seeds.jsonl").write_text('{"id": "s1", "query": "merge lists", "passage": "heapq.merge merges lists"}\n')
    write_recipe(
        home / "r.yaml",
        job="synthesize",
        run_dir="run",
        engine={"kind": "fake"},
        synthesis={"seeds": "seeds.jsonl", "judge_tokens": 16},
    )
    assert main(["synthesize", "r.yaml", "--preview", "1", *options]) == 0
    assert capsys.readouterr().out.startswith("# seed s1\n\nquery: merge lists\n")
    assert not (home / "run").exists()


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("synthesize", "train", "rerank", "evaluate", "serve", "pipeline", "jobs", "doctor", "models"):
        assert command in out


def test_without_arguments_the_help_and_no_complaint(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "rerank" in out + err
    assert "limrank: " not in err


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{limrank.__version__}\n"


# ---- exit codes of what a job hands back ---------------------------------------------


def outcome(monkeypatch, result):
    def run(config, **options):
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr("limrank.reranking.job.run", run)


def test_rows_that_failed_are_exit_3_unless_allowed(recipe, capsys, home, monkeypatch):
    outcome(monkeypatch, JobResult(failed=2, warnings=["careful"], messages=["done [bold]"]))
    assert main(["rerank", recipe()]) == 3
    out, err = capsys.readouterr()
    assert out == "done [bold]\n"
    assert err == f"warning: careful\n2 rows failed: see failures/, explained by `limrank failures {home}/run`\n"
    assert main(["rerank", recipe(allow_failures=True)]) == 0


def test_a_job_that_failed_is_exit_1(recipe, capsys, monkeypatch):
    outcome(monkeypatch, EngineError("it did not come up"))
    assert main(["rerank", recipe()]) == 1
    assert capsys.readouterr().err == "limrank: EngineError: it did not come up\n"


@pytest.mark.parametrize(("rate", "code"), [(1.0, 3), (0.0, 0)])
def test_a_preview_of_which_steps_failed_says_so(rate, code, home, capsys):
    (home / "r.yaml").write_text(
        f"job: synthesize\nrun_dir: run\nengine: {{kind: fake, fail_rate: {rate}}}\nsynthesis: {{max_seeds: 1}}\n"
    )
    assert main(["synthesize", "r.yaml", "--preview", "1"]) == code
    assert ("steps failed: see above" in capsys.readouterr().err) == bool(code)
    assert main(["synthesize", "r.yaml", "--preview", "1", "-s", "allow_failures=true"]) == 0


def test_ctrl_c_is_exit_130(recipe, monkeypatch):
    outcome(monkeypatch, KeyboardInterrupt())
    assert main(["rerank", recipe()]) == 130


def test_a_bug_keeps_its_traceback(recipe, monkeypatch):
    outcome(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        main(["rerank", recipe()])


def test_a_job_is_submitted_as_its_resolved_recipe(recipe, monkeypatch, home):
    sent = []
    monkeypatch.setattr(cluster, "submit", lambda *arguments, **options: sent.append((arguments, options)) or 3)
    assert main(["rerank", recipe(), "--address", "http://head:8265", "--overwrite"]) == 3
    (((name, config, address), options),) = sent
    assert (name, address) == ("rerank", "http://head:8265")
    assert options == {"flags": ["--overwrite"], "terms": cluster.Terms()}
    assert config.run_dir == f"{home}/run"


def test_a_job_is_submitted_on_the_terms_of_its_options(recipe, monkeypatch):
    sent = []
    monkeypatch.setattr(cluster, "submit", lambda *arguments, **options: sent.append(options["terms"]) or 0)
    submit = ["rerank", recipe(), "--address", "http://head:8265"]
    assert main([*submit, "--retries", "2", "--env", "pip", "--cluster-paths"]) == 0
    assert main([*submit, "--detach", "--ship-inputs", "--ship-limit", "5"]) == 0
    assert sent == [
        cluster.Terms(retries=2, env="pip", ship=False),
        cluster.Terms(detach=True, ship=True, ship_limit=5),
    ]


@pytest.mark.parametrize("address", [[], ["--address", "auto"]])
def test_the_terms_of_a_submitted_job_are_refused_where_none_is(recipe, refused, address):
    message = refused("rerank", recipe(), *address, "--detach", "--retries", "1")
    assert message == "--detach, --retries: for a job that is submitted: add --address http://HOST:8265"


def test_retries_need_somebody_who_follows(recipe, refused):
    message = refused("rerank", recipe(), "--address", "http://head:8265", "--detach", "--retries", "1")
    assert message == "--retries: needs a command that follows the job, which --detach does not"


def test_the_address_is_the_cluster_s_own_inside_a_job(recipe, monkeypatch):
    addresses = []
    monkeypatch.setattr(
        "limrank.reranking.job.run", lambda config, *, address, **_: addresses.append(address) or JobResult()
    )
    for variable, expected in ((None, "local"), ("10.0.0.1:6379", "auto")):
        if variable:
            monkeypatch.setenv("RAY_ADDRESS", variable)
        assert main(["rerank", recipe()]) == 0
        assert addresses[-1] == expected


def test_config_prints_every_key_of_a_job_once(capsys):
    assert main(["config", "rerank"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scoring.mode  (none, direct, think, budget or cascade; default direct)  " in "\n".join(lines)
    names = [line.partition("  ")[0] for line in lines]
    assert names == [name for name, _ in known_fields(RerankJob)]


def test_config_prints_the_defaults_of_the_job(capsys):
    assert main(["config", "synthesize"]) == 0
    printed = capsys.readouterr().out
    assert "scoring.mode  (none, direct, think, budget or cascade; default budget)" in printed
    assert "\njudge  (keys of model, or null; default null)" in printed


def test_config_prints_a_json_schema(capsys):
    assert main(["config", "serve", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["required"] == ["run_dir"] and schema["additionalProperties"] is False


def test_config_of_no_job_is_refused(capsys):
    assert main(["config", "rank"]) == 2
    assert capsys.readouterr().err == "limrank: config rank: is none of " + ", ".join(JOBS) + "\n"
