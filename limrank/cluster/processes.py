"""Processes of a cluster: which they are, for certain, and their end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MARK = "LIMRANK_CLUSTER_FOLDER"
"""The environment variable that a cluster's processes have, and its clients do not: the cluster's directory."""

_TERMINATES_S = 5.0
"""How long a process has between SIGTERM and SIGKILL."""

_ROUNDS = 3
"""A process may start another one while it ends."""

_START_TIME = 19
"""Place of the start time among the fields after a command's name in ``/proc/PID/stat`` (proc(5), field 22)."""


@dataclass(frozen=True)
class Identity:
    """One process. A later process that got the same id has another ``started``."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a process; None: it has ended."""
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else cls(pid, _started(process))
        except psutil.NoSuchProcess:
            return None

    def is_running(self) -> bool:
        return Identity.of(self.pid) == self

    def process(self) -> psutil.Process | None:
        """It, for signals; None: it has ended."""
        import psutil

        try:
            found = psutil.Process(self.pid)  # before it is compared: the object knows its process by the start
        except psutil.NoSuchProcess:
            return None
        return found if self.is_running() else None


def boot_id() -> str:
    """What tells this machine's boot from every other; empty where the system does not say it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _started(process: psutil.Process) -> str:
    """In clock ticks since the boot, where the system tells: a change of the clock does not move them."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"{boot_id()}/{fields[_START_TIME]}"
    return f"{process.create_time():.2f}"


def of_cluster(folder: Path, known: Iterable[Identity] = ()) -> dict[int, psutil.Process]:
    """The processes of the cluster with this directory: those ``known`` that still run, those with its :data:`MARK`,
    and the descendants of both. This process is never among them."""
    import psutil

    roots = [process for process in (each.process() for each in known) if process is not None]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder):
                roots.append(process)
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            found |= {each.pid: each for each in (root, *root.children(recursive=True))}
    found.pop(os.getpid(), None)
    return {pid: each for pid, each in found.items() if Identity.of(pid) is not None}


def end(folder: Path, known: Iterable[Identity] = ()) -> int:
    """End a cluster's processes, by SIGTERM and after five seconds by SIGKILL. Returns how many there were."""
    import psutil

    known, ended = list(known), set()
    for _ in range(_ROUNDS):
        # A process object compares the start time before it signals.
        processes = of_cluster(folder, known)
        if not processes:
            break
        ended |= set(processes)
        for process in processes.values():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, alive = psutil.wait_procs(list(processes.values()), timeout=_TERMINATES_S)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=_TERMINATES_S)
    return len(ended)
