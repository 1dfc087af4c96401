"""A cluster for one command, jobs submitted to it over HTTP, and nothing left behind."""

import os
import subprocess
import sys

import psutil
import pytest
import yaml

from helpers.processes import command_line
from limrank.cluster.local import local_cluster


def recipe(folder, **values):
    path = folder / "rerank.yaml"
    data = {"format": "pydocs", "split": "dev", "max_queries": 5}
    base = {"job": "rerank", "run_dir": str(folder / "run"), "data": data, "first_stage": {"depth": 3}}
    path.write_text(yaml.safe_dump(base | {"engine": {"kind": "fake"}} | values))
    return str(path)


@pytest.fixture(scope="module")
def cluster():
    """The dashboard's address and a function that runs `limrank …` against it."""
    with local_cluster(num_cpus=4) as running:

        def limrank(*arguments):
            command = [sys.executable, "-m", "limrank", *arguments, "--address", running.address]
            return subprocess.run(
                command, env=running.environment, capture_output=True, text=True, timeout=180, check=False
            )

        yield limrank


def test_a_submitted_job_runs_is_followed_and_listed(cluster, tmp_path):
    done = cluster("rerank", recipe(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rerank: 15/15 pairs" in done.stdout + done.stderr
    assert "5 queries, 15 pairs, 0 failed" in done.stdout
    assert "@limrank-progress" not in done.stdout
    assert len((tmp_path / "run" / "run.trec").read_text().splitlines()) == 15
    job_id = done.stdout.split()[1]
    listed = cluster("jobs", "list")
    assert f"{job_id}  SUCCEEDED" in listed.stdout and listed.stdout.rstrip().endswith("rerank")
    assert f"{job_id} SUCCEEDED" in cluster("jobs", "status", job_id).stdout
    assert "5 queries, 15 pairs, 0 failed" in cluster("jobs", "logs", job_id).stdout
    assert "had ended already" in cluster("jobs", "stop", job_id).stdout


def test_the_jobs_exit_code_is_ours(cluster, tmp_path):
    failed = cluster("rerank", recipe(tmp_path, engine={"kind": "fake", "fail_rate": 0.5}))
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert "rows failed: see failures/" in failed.stdout
    missing = cluster("rerank", recipe(tmp_path, data={"format": "beir", "path": str(tmp_path / "nowhere")}))
    assert missing.returncode == 2
    assert "nowhere" in missing.stdout


def test_an_unknown_job_is_one_line(cluster):
    unknown = cluster("jobs", "status", "raysubmit_nothing")
    assert unknown.returncode == 2
    assert "knows no job raysubmit_nothing" in unknown.stderr


def test_nothing_is_left_when_the_command_ends():
    command = [sys.executable, "-m", "limrank", "cluster", "run", "--", sys.executable, "-c"]
    code = "import sys; print(sys.argv[1]); sys.exit(7)"
    before = {process.pid for process in psutil.process_iter()}
    done = subprocess.run([*command, code, "{address}"], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 7
    assert done.stdout.startswith("http://127.0.0.1:")
    lines = [command_line(each) for each in psutil.process_iter() if each.pid not in {*before, os.getpid()}]
    assert [line for line in lines if "/lr-" in line] == []


def test_no_cluster_at_the_address_is_one_line(tmp_path):
    command = [sys.executable, "-m", "limrank", "rerank", recipe(tmp_path), "--address", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "http://127.0.0.1:9" in done.stderr
