"""A cluster for one command, jobs submitted to it over HTTP, and nothing left behind."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading

import psutil
import pytest
import yaml

from helpers.beir import write_beir, write_common
from helpers.processes import command_line
from helpers.runs import Run, Work, committed, scores, wait_until
from limrank.cluster.local import local_cluster


def recipe(folder, **values):
    path = folder / "rerank.yaml"
    data = {"format": "pydocs", "split": "dev", "max_queries": 5}
    base = {"job": "rerank", "run_dir": str(folder / "run"), "data": data, "first_stage": {"depth": 3}}
    path.write_text(yaml.safe_dump(base | {"engine": {"kind": "fake"}} | values))
    return str(path)


@pytest.fixture(scope="module")
def head():
    with local_cluster(num_cpus=4) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(head):
    """Runs `limrank …` against the cluster."""

    def limrank(*arguments, **options):
        command = [sys.executable, "-m", "limrank", *arguments, "--address", head.address]
        options = {"env": head.environment, "timeout": 180} | options
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return limrank


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


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """512 pairs, some four seconds of the fake engine's time."""
    beir = write_common(tmp_path_factory.mktemp("data") / "beir", queries=256, documents=4)
    return Work(beir, queries=256, depth=2, engine={"kind": "fake", "latency_ms": 60, "max_in_flight": 8})


@pytest.fixture(scope="module")
def submitted_twice(cluster, head, work, tmp_path_factory):
    """(run directory, the two jobs' ids, their exit codes and logs) of one recipe that was submitted twice at once."""
    folder = tmp_path_factory.mktemp("twice")
    command = [*work.command(folder / "run", address=head.address), "--detach"]
    ids = [subprocess.run(command, env=head.environment, capture_output=True, text=True).stdout for _ in range(2)]
    ids = [printed.split()[1] for printed in ids]
    return folder / "run", ids, [cluster("jobs", "logs", "-f", job_id) for job_id in ids]


def test_a_job_that_is_submitted_twice_is_one_run(submitted_twice, work):
    run_dir, _, logs = submitted_twice
    done, refused = sorted(logs, key=lambda log: log.returncode)
    assert (done.returncode, refused.returncode) == (0, 2), done.stdout + refused.stdout
    assert "512 pairs, 0 failed" in done.stdout
    assert f"run_dir {run_dir}: process " in refused.stdout
    assert len(scores(work, run_dir)) == 512


def test_a_job_that_ended_is_submitted_again_as_it_was(submitted_twice, cluster):
    _, ids, logs = submitted_twice
    done = next(job_id for job_id, log in zip(ids, logs, strict=True) if log.returncode == 0)
    again = cluster("jobs", "retry", done)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.startswith(f"submitted {done}-2 to ")
    assert "512 pairs, 0 failed" in again.stdout


def test_a_killed_driver_s_job_is_submitted_again_and_resumes(submitted_twice, head, work, tmp_path):
    command = [*work.command(tmp_path / "run", address=head.address), "--retries", "1"]
    with Run(command, log=tmp_path / "log", environment=head.environment, cluster=head) as run:
        wait_until(lambda: run.ended() or len(committed(tmp_path / "run")) >= 1, "a chunk")
        before = committed(tmp_path / "run")
        os.kill(json.loads((tmp_path / "run" / "lock.json").read_text())["pid"], signal.SIGKILL)
        assert run.wait() == 0, run.log.read_text()
    printed = run.log.read_text()
    job_id = printed.split()[1]
    assert "submitting it again (1 of 1)" in printed and f"submitted {job_id}-2 to " in printed
    assert scores(work, tmp_path / "run") == scores(work, submitted_twice[0])
    assert before.items() <= committed(tmp_path / "run").items()


def test_ctrl_c_at_a_terminal_asks_and_stops_the_job(head, cluster, work, tmp_path):
    ours, theirs = pty.openpty()
    screen = bytearray()

    def read():
        with contextlib.suppress(OSError):  # the terminal's other end is closed
            while piece := os.read(ours, 4096):
                screen.extend(piece)

    command = work.command(tmp_path / "run", address=head.address, latency_ms=5000)
    with subprocess.Popen(command, env=head.environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: b"Running entrypoint" in screen, "the job's start", patience_s=60)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: b"[s]top it?" in screen, "the question", patience_s=30)
        os.write(ours, b"s\n")
        assert process.wait(60) == 130, screen.decode()
        reader.join()
    os.close(ours)
    job_id = screen.decode().split()[1]
    assert f"{job_id} is being stopped" in screen.decode()
    assert f"{job_id} STOPPED" in cluster("jobs", "status", job_id).stdout


def test_inputs_travel_with_a_job(cluster, tmp_path):
    write_beir(tmp_path / "beir")
    recipe(tmp_path, data={"format": "beir", "path": "beir"}, run_dir="run")
    large = cluster("rerank", "rerank.yaml", "--ship-inputs", "--ship-limit", "0.0001", cwd=tmp_path)
    assert large.returncode == 2
    assert large.stderr.startswith(f"limrank: data.path {tmp_path}/beir: 1 KiB of 1 KiB of inputs")
    sent = cluster("rerank", "rerank.yaml", "--ship-inputs", "--detach", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    shutil.rmtree(tmp_path / "beir")
    log = cluster("jobs", "logs", "-f", sent.stdout.split()[1])
    assert log.returncode == 0, log.stdout
    assert "2 queries, 4 pairs, 0 failed" in log.stdout
    assert (tmp_path / "run" / "run.trec").is_file()


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
