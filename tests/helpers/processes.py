"""Other processes, looked at without minding that they end meanwhile."""

import contextlib

import psutil


def command_line(process):
    """Of a process that may be a zombie or gone: then it is empty."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def below(pid):
    """All processes that descend from this one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(process):
    # Whoever inherits an orphan may leave it a zombie: dead, with nothing of its own.
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
