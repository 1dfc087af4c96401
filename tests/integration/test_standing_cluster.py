"""A cluster of two nodes that stays: up, used, examined, down; and what is beside it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from helpers.processes import below, command_line
from limrank.cluster.local import local_cluster
from limrank.cluster.processes import of_cluster


@pytest.fixture(scope="module")
def foreign():
    """Another Ray cluster on this machine, and its processes."""
    with local_cluster(num_cpus=1) as cluster:
        starter = cluster.nodes[0].process.pid
        yield {
            each.pid: each for each in [psutil.Process(starter), *below(starter)] if "IDLE" not in command_line(each)
        }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def command(home):
    """The command line and environment of `limrank …`, for a user with no other cluster."""
    of_ray = ("RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in of_ray}
    return [sys.executable, "-m", "limrank"], environment | {"XDG_STATE_HOME": str(home)}


@pytest.fixture(scope="module")
def limrank(command):
    def run(*arguments):
        words, environment = command
        return subprocess.run(
            [*words, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
        )

    return run


@pytest.fixture(scope="module")
def state_file(home):
    return home / "limrank" / "clusters" / "default.json"


@pytest.fixture(scope="module")
def standing(foreign, limrank, state_file):
    """What `up` printed, and the cluster's state."""
    done = limrank("cluster", "up", "--nodes", "2", "--cpus", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    state = json.loads(state_file.read_text())
    yield done.stdout, state
    limrank("cluster", "down")
    assert of_cluster(Path(state["folder"])) == {}


def recipe(folder):
    path = folder / "rerank.yaml"
    data = {"format": "pydocs", "split": "dev", "max_queries": 5}
    values = {"job": "rerank", "run_dir": str(folder / "run"), "data": data, "first_stage": {"depth": 3}}
    path.write_text(yaml.safe_dump(values | {"engine": {"kind": "fake"}}))
    return str(path)


def test_it_says_where_it_is_and_a_second_one_is_refused(standing, limrank, state_file):
    printed, state = standing
    assert f"--address {state['address']}" in printed and f"RAY_ADDRESS={state['gcs']}" in printed
    token = Path(state["folder"]) / "auth_token"
    assert f"RAY_AUTH_TOKEN_PATH={token}" in printed
    assert {stat.S_IMODE(each.stat().st_mode) for each in (token, state_file)} == {0o600}
    assert {each["what"] for each in state["members"]} >= {"ray start", "raylet", "gcs_server", "dashboard"}
    again = limrank("cluster", "up")
    assert again.returncode == 2
    assert f"cluster default is up already, at {state['address']}" in again.stderr
    status = limrank("cluster", "status")
    assert status.returncode == 0, status.stdout
    assert [line.split()[:4] for line in status.stdout.splitlines() if "CPUs" in line] == [
        ["head", "alive", "2", "CPUs"],
        ["node-1", "alive", "2", "CPUs"],
    ]


def test_a_job_is_submitted_to_it(standing, limrank, tmp_path):
    done = limrank("rerank", recipe(tmp_path), "--address", standing[1]["address"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 queries, 15 pairs, 0 failed" in done.stdout
    status = limrank("cluster", "status").stdout
    assert "jobs: 1 succeeded" in status


def findings(done):
    """Each finding's mark, by name, and the whole text."""
    marks = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()}
    return marks, done.stdout + done.stderr


def test_doctor_looks_at_both_nodes(standing, limrank, tmp_path):
    _, state = standing
    marks, text = findings(limrank("doctor", "--address", state["address"], "--storage", str(tmp_path)))
    assert "2 answer: head, node-1" in text
    # Memory and disk are the machine's own matter.
    wanted = (
        "nodes",
        "python",
        "ray",
        "torch",
        "transformers",
        "pyarrow",
        "model",
        "storage",
        "gpus",
        "clock",
        "ports",
    )
    assert {marks[name] for name in (*wanted, "dashboard")} == {"ok"}, text
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_a_storage_that_no_node_can_write(standing, limrank, tmp_path):
    (tmp_path / "file").write_text("no directory")
    done = limrank("doctor", "--address", "auto", "--storage", str(tmp_path / "file"))
    marks, text = findings(done)
    assert done.returncode == 1
    assert marks["storage"] == "failed" and "head, node-1 cannot write: there is no such directory" in text
    assert marks["nodes"] == marks["dashboard"] == "ok", text


def test_what_died_is_told(standing, limrank):
    _, state = standing
    raylet = next(each for each in state["members"] if (each["node"], each["what"]) == ("node-1", "raylet"))
    os.kill(raylet["identity"]["pid"], signal.SIGKILL)
    status = limrank("cluster", "status")
    assert status.returncode == 1
    assert f"died: raylet of node-1 (process {raylet['identity']['pid']})" in status.stdout
    refused = limrank("cluster", "up")
    assert refused.returncode == 2 and "`limrank cluster down` ends the rest" in refused.stderr


def test_down_ends_it_and_nothing_else(standing, limrank, foreign, state_file):
    _, state = standing
    folder = Path(state["folder"])
    assert of_cluster(folder)
    assert "cluster default is down" in limrank("cluster", "down").stdout
    assert of_cluster(folder) == {} and not folder.exists() and not state_file.exists()
    assert limrank("cluster", "down").stdout == "not running\n"
    status = limrank("cluster", "status")
    assert (status.returncode, status.stdout) == (1, "not running\n")
    assert foreign and all(each.is_running() for each in foreign.values())


def test_an_interrupted_up_leaves_nothing(command, state_file):
    words, environment = command
    starting = subprocess.Popen(
        [*words, "cluster", "up"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline and starting.poll() is None
        with_state = state_file.exists() and Path(json.loads(state_file.read_text())["folder"])
        if with_state and any(each.name() == "gcs_server" for each in of_cluster(with_state).values()):
            break
        time.sleep(0.1)
    starting.send_signal(signal.SIGINT)
    assert starting.wait(60) == 130, starting.stdout.read()
    assert of_cluster(with_state) == {}
    assert not with_state.exists() and not state_file.exists()
