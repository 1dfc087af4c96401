"""Ends an engine's processes when the process that started them ends, whatever ends it.

vLLM runs its engine in a child process. When the parent is killed (``kill -9``, an
out-of-memory kill, a lost node) the child does not notice, and would keep the accelerator.
A watcher process holds the reading end of a pipe, and only the parent holds its writing
end. When the pipe closes, the watcher kills the processes that the parent had started.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache

_POLL_S = 0.3

_WATCHER = """
import os, signal, sys
for pair in sys.stdin.read().split():
    pid, _, started = pair.partition(":")
    try:
        # A later process may have the same id, but not the same start time.
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rsplit(")", 1)[1].split()[19] == started:
                os.kill(int(pid), signal.SIGKILL)
    except (OSError, IndexError):
        pass
"""


@contextlib.contextmanager
def reap_with_parent() -> Iterator[None]:
    """Child processes that start inside are killed when this process ends."""
    known = set(_descendants())
    done = threading.Event()

    def report() -> None:
        # An engine takes a minute to start, and its parent may be killed meanwhile.
        last = False
        while not last:
            last = done.wait(_POLL_S)
            started = [child for child in _descendants() if child not in known]
            if started:
                known.update(started)
                _send_to_watcher(started)

    reporter = threading.Thread(target=report, name="limrank-reaper", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def _send_to_watcher(children: list[tuple[int, str]]) -> None:
    pipe = _watcher(os.getpid()).stdin
    pipe.write("".join(f"{pid}:{started}\n" for pid, started in children).encode())
    pipe.flush()


@lru_cache
def _watcher(parent: int) -> subprocess.Popen:
    """This process's watcher. The writing end of its pipe stays open until this process ends. The
    watcher has a session of its own, so that signals to this process do not reach it."""
    return subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _descendants() -> list[tuple[int, str]]:
    """(process id, start time) of this process's descendants, without the watcher."""
    import psutil

    found = [(child.pid, _start_time(child.pid)) for child in psutil.Process().children(recursive=True)]
    watcher = _watcher(os.getpid()).pid
    return [(pid, started) for pid, started in found if started and pid != watcher]


def _start_time(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None
