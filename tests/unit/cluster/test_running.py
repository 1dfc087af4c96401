"""One command on a cluster: its words, its environment, its exit code. The cluster is none here."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from limrank.cluster import running
from limrank.errors import UserError

ASKS = "import os, signal, time; os.kill(os.getppid(), signal.{}); time.sleep(60)"
ENDS_ITSELF = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
import os
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


@pytest.fixture
def run(monkeypatch):
    """Runs a command on what looks like a cluster, and tells whether that ended."""
    ended = []

    @contextmanager
    def cluster(cpus, *, nodes, gpus):
        try:
            yield SimpleNamespace(address="http://h:1", gcs="h:2", environment={"PATH": "/usr/bin:/bin", "GIVEN": "x"})
        finally:
            ended.append((cpus, nodes, gpus))

    def command(*words):
        try:
            return running.run_command(words, 2, 3, 1)
        finally:
            assert ended == [(3, 2, 1)]

    monkeypatch.setattr(running, "local_cluster", cluster)
    return command


def test_the_command_gets_the_addresses_and_gives_its_code(run, capfd):
    assert (
        run("sh", "-c", 'echo "$1 $2 $RAY_ADDRESS $RAY_DASHBOARD_ADDRESS $GIVEN"; exit 7', "", "{address}", "{gcs}")
        == 7
    )
    assert capfd.readouterr().out == "http://h:1 h:2 h:2 http://h:1 x\n"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_request_to_end_is_passed_on(run, name, code):
    assert run(sys.executable, "-c", ASKS.format(name)) == code


def test_the_code_tells_the_request_although_the_command_ends_by_itself(run):
    assert run(sys.executable, "-c", ENDS_ITSELF) == 143


def test_a_command_that_does_not_end_is_killed(run, monkeypatch):
    monkeypatch.setattr(running, "ENDS_S", 0.0)
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + ASKS.format("SIGTERM")
    assert run(sys.executable, "-c", ignores) == 143


def test_a_command_that_a_signal_ended(run):
    assert run("sh", "-c", "kill -9 $$") == 137


def test_an_unknown_program_is_refused_before_anything_starts():
    with pytest.raises(UserError, match="no-such-program: there is no such program"):
        running.run_command(["no-such-program"], 1, 1, None)


def test_a_program_that_cannot_be_run_is_one_line(run, tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x00")
    program.chmod(0o755)
    with pytest.raises(UserError, match="cannot be run: Exec format error"):
        run(str(program))
