"""What can never run is refused in seconds; an engine that does not start ends the job."""

import os
import subprocess
import time

import pytest

from helpers.runs import ACTOR, Run, complaint, named, wait_until

REFUSED_S = 20
GIVEN_UP_S = 10


def on_this_machine(seconds):
    """What a promise in seconds comes to where others use the cores as well."""
    return seconds * max(1.0, os.getloadavg()[0] / os.cpu_count())


def refused(command):
    """The line that a command is refused with, in time."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    took = time.monotonic() - began
    assert done.returncode == 2, done.stdout + done.stderr
    assert took < on_this_machine(REFUSED_S)
    return complaint(done.stderr)


@pytest.mark.parametrize("model", ["nobody/no-such-model", "no-such-model", "/nowhere/model"])
def test_a_missing_model_is_refused(model, work, tmp_path):
    command = work.command(tmp_path / "run", kind="vllm")
    assert f"model {model}: " in refused([*command, "-s", f"model.id={model}"])


def test_what_the_cluster_lacks_is_refused(work, tmp_path):
    command = work.command(tmp_path / "run", workers={"gpus": 8})
    said = refused(command)
    assert "workers.gpus" in said and "8 GPUs" in said


def test_an_engine_that_fails_at_its_start_ends_the_job(work, tmp_path):
    start_s = 2
    command = work.command(tmp_path / "run", start_s=start_s, fail_start=True)
    with Run(command, log=tmp_path / "log") as run:
        wait_until(lambda: run.ended() or any(named(each, ACTOR) for each in run.look()), "the actor")
        began = time.monotonic()
        assert run.wait() == 1
        # It raises so long after it is seen, and later where this machine is busy.
        assert time.monotonic() - began < on_this_machine(start_s + GIVEN_UP_S)
        assert run.left() == []
    assert "the fake engine did not start" in complaint(run.log.read_text())


def test_an_engine_that_does_not_come_up_ends_the_job(work, tmp_path):
    command = work.command(tmp_path / "run", start_s=45, startup_timeout_s=3)
    with Run(command, log=tmp_path / "log") as run:
        wait_until(lambda: run.ended() or any(named(each, ACTOR) for each in run.look()), "the actor")
        began = time.monotonic()
        assert run.wait() == 1
        assert time.monotonic() - began < on_this_machine(3 + GIVEN_UP_S)
        assert run.left() == []
    assert "engine.startup_timeout_s" in complaint(run.log.read_text())
