"""SIGINT and SIGTERM at any moment of a job: it ends as interrupted, in one line, and leaves nothing."""

import json
import os
import random
import signal
import stat
import sys

import psutil
import pytest

from helpers.killing import SEED
from helpers.processes import below
from helpers.runs import Run, committed, complaint, scores, wait_until

CODES = {"SIGINT": 130, "SIGTERM": 143}
MOMENTS = 10
LOOPBACK = ("127.", "::1", "::ffff:127.")
LONGEST_START_S = 8.0


def listening(pid):
    """Addresses on which a process and those below it accept connections."""
    found = set()
    for process in [psutil.Process(pid), *below(pid)]:
        try:
            found |= {each.laddr.ip for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def status(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["status"]


def interrupt(run, name):
    run.look()
    os.kill(run.process.pid, getattr(signal, name))
    assert run.wait() == CODES[name], run.log.read_text()[-3000:]
    said = run.log.read_text()
    assert "***" not in said  # the head of a stack dump
    assert complaint(said) == f"limrank: stopped by {name}"
    assert run.left() == []


@pytest.mark.parametrize("name", CODES)
def test_a_signal_amid_the_work_ends_it_and_the_command_goes_on(name, work, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    with Run(work.command(run_dir), log=tmp_path / "run.log") as run:
        wait_until(lambda: run.ended() or committed(run_dir), "a first chunk")
        assert listening(run.process.pid) and all(each.startswith(LOOPBACK) for each in listening(run.process.pid))
        interrupt(run, name)
    assert status(run_dir) == "interrupted"
    kept = committed(run_dir)
    assert kept
    with Run(work.command(run_dir), log=tmp_path / "again.log") as again:
        assert again.wait() == 0, again.log.read_text()[-3000:]
    assert kept.items() <= committed(run_dir).items()
    assert scores(work, run_dir) == undisturbed[1]


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.faults) for n in range(1, MOMENTS))])
def test_a_signal_while_a_job_starts(name, number, work, tmp_path):
    """From the moment it holds its run directory to its first rows."""
    rng = random.Random(f"{SEED} {name} {number}")
    run_dir, delay_s = tmp_path / "run", rng.uniform(0, LONGEST_START_S)
    print(f"LIMRANK_FAULT_SEED={SEED}: {name} {delay_s:.2f} s after the start of {run_dir}")
    with Run(work.command(run_dir, latency_ms=2000), log=tmp_path / "run.log") as run:
        wait_until(lambda: run.ended() or (run_dir / "manifest.json").is_file(), "the run directory")
        with pytest.raises(AssertionError, match="waited"):
            wait_until(run.ended, "nothing", patience_s=delay_s)
        interrupt(run, name)
    assert status(run_dir) == "interrupted"


def test_a_local_ray_s_token_is_nobody_else_s(work, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home)}
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    run_dir = tmp_path / "run"
    with Run(work.command(run_dir, latency_ms=0), log=tmp_path / "run.log", environment=environment) as run:
        assert run.wait() == 0, run.log.read_text()[-3000:]
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", CODES)
def test_a_server_that_is_stopped_says_so_and_nothing_else(name, tmp_path):
    """All that it starts listens on loopback, what its replicas ask each other through too."""
    recipe = tmp_path / "serve.yaml"
    recipe.write_text(f"job: serve\nrun_dir: {tmp_path}/run\nengine: {{kind: fake}}\nserving: {{port: 0}}\n")
    command = [sys.executable, "-m", "limrank", "serve", str(recipe), "--address", "local"]
    with Run(command, log=tmp_path / "serve.log") as run:
        wait_until(lambda: run.ended() or "serving " in run.log.read_text(), "the server")
        assert listening(run.process.pid) and all(each.startswith(LOOPBACK) for each in listening(run.process.pid))
        os.kill(run.process.pid, getattr(signal, name))
        assert run.wait() == 0, run.log.read_text()[-3000:]
        assert run.left() == []
    first, last = run.log.read_text().splitlines()
    assert first.startswith("serving smollm2-135m-rerank at http://127.0.0.1:")
    assert last == "smollm2-135m-rerank is no longer served"
