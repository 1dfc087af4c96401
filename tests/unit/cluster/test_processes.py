"""Which processes are a cluster's, and that no other one is ended."""

import os
import subprocess
import sys

import psutil
import pytest

from helpers.processes import alive, below
from limrank.cluster import processes
from limrank.cluster.processes import MARK, Identity, end, of_cluster

SLEEPS = "import time; print('on', flush=True); time.sleep(60)"
WITH_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
IGNORES = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"


@pytest.fixture
def started():
    """Starts a Python process with words after its code, and waits until it runs its last line."""
    those = []

    def start(code, *words, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=os.environ | environment, stdout=subprocess.PIPE
        )
        those.append(process)
        assert process.stdout.readline() == b"on\n"
        return process

    yield start
    for process in those:
        for each in [*below(process.pid), process]:
            each.kill()
        process.wait()


def test_a_recycled_pid_is_another_process(started, tmp_path):
    process = started(SLEEPS)
    real = Identity.of(process.pid)
    recycled = Identity(process.pid, real.started + "1")
    assert real.is_running() and not recycled.is_running()
    assert end(tmp_path, [recycled]) == 0
    assert process.poll() is None


def test_an_ended_process_has_no_identity(started):
    process = started(SLEEPS)
    real = Identity.of(process.pid)
    process.kill()
    psutil.wait_procs([psutil.Process(process.pid)], timeout=10)
    assert Identity.of(process.pid) is None and not real.is_running()


def test_the_known_and_the_marked_end_with_their_descendants(started, tmp_path):
    known, marked = started(WITH_CHILD), started(WITH_CHILD, **{MARK: str(tmp_path)})
    children = [*below(known.pid), *below(marked.pid)]
    assert len(children) == 2
    assert end(tmp_path, [Identity.of(known.pid)]) == 4
    assert not any(map(alive, children))
    assert Identity.of(known.pid) is None and Identity.of(marked.pid) is None


def test_a_reader_of_the_clusters_files_is_none_of_its_processes(started, tmp_path):
    reader, of_another = started(SLEEPS, f"{tmp_path}/log"), started(SLEEPS, **{MARK: f"{tmp_path}2"})
    assert of_cluster(tmp_path) == {}
    assert end(tmp_path) == 0
    assert reader.poll() is None and of_another.poll() is None


def test_a_process_that_ignores_sigterm_is_killed(started, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_TERMINATES_S", 0.2)
    process = started(IGNORES, **{MARK: str(tmp_path)})
    assert end(tmp_path) == 1
    assert Identity.of(process.pid) is None


def test_this_process_is_never_among_them(tmp_path):
    assert of_cluster(tmp_path, [Identity.of(os.getpid())]) == {}
