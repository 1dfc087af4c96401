"""An engine's processes end with the process that started them, however it ends.

vLLM runs its engine in a child process. When the parent is killed (``kill -9``, an
out-of-memory kill, a lost node) nobody tells the child, and it would keep the
accelerator. A watcher process holds the reading end of a pipe whose writing end only
the parent has; when the pipe closes, it kills what the parent had started.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

_WATCHER = """
import os, signal, sys
sys.stdin.buffer.read()
for pair in sys.argv[1:]:
    pid, _, started = pair.partition(":")
    try:
        # The start time tells the process from a later one that was given the same id.
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rsplit(")", 1)[1].split()[19] == started:
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""


@contextlib.contextmanager
def reap_with_parent() -> Iterator[None]:
    """Child processes started inside are killed when this process is gone."""
    before = set(_descendants(os.getpid()))
    try:
        yield
    finally:
        started = [pid for pid in _descendants(os.getpid()) if pid not in before]
        if started:
            _watch(started)


# The writing ends of the watchers' pipes: open as long as this process lives.
_watchers: list[subprocess.Popen] = []


def _watch(pids: list[int]) -> None:
    arguments = [f"{pid}:{start}" for pid in pids if (start := _start_time(pid))]
    # Nothing is ever written; a session of its own keeps signals for us away from it.
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCHER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _watchers.append(watcher)


def _descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _start_time(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None
