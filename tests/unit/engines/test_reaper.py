"""Real processes, really killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest


def parent_of(children, then=""):
    """A Python process that starts ``sleep`` children under the reaper; gives it and their ids."""
    program = f"""
        import subprocess, sys, time
        from limrank.engines.reaper import reap_with_parent

        with reap_with_parent():
            children = [subprocess.Popen(["sleep", "60"]) for _ in range({children})]
            time.sleep(1)  # as an engine starts: its processes first, ready much later
            print(*(child.pid for child in children), flush=True)
            {then or "pass"}
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(seconds, pids):
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.fixture
def started():
    processes = []

    def start(children, then=""):
        parent, pids = parent_of(children, then)
        processes.append((parent, pids))
        return parent, pids

    yield start
    for parent, pids in processes:
        parent.kill()
        parent.wait()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


def test_children_are_killed_with_their_parent(started):
    parent, children = started(2)
    assert len(children) == 2
    parent.kill()
    assert gone_within(5, children)


def test_children_live_as_long_as_their_parent(started):
    parent, children = started(1)
    time.sleep(1.5)
    assert parent.poll() is None
    assert all(map(alive, children))


def test_children_are_killed_though_the_engine_was_still_starting(started):
    parent, children = started(1, then="time.sleep(60)")
    parent.kill()
    assert gone_within(5, children)


def test_a_parent_that_ends_by_itself_leaves_nothing(started):
    parent, children = started(1, then="sys.exit(3)")
    assert parent.wait(timeout=10) == 3
    assert gone_within(5, children)


def test_an_earlier_child_is_not_killed():
    program = """
        import subprocess, sys
        from limrank.engines.reaper import reap_with_parent

        before = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
        with reap_with_parent():
            inside = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
        print(before.pid, inside.pid, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, timeout=30
    )
    before, inside = map(int, done.stdout.split())
    try:
        assert gone_within(5, [inside])
        assert alive(before)
    finally:
        os.kill(before, signal.SIGKILL)
