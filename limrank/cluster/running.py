"""A Ray cluster on this machine for as long as one command runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from limrank import signals
from limrank.cluster.local import local_cluster, program_path
from limrank.errors import UserError

ENDS_S = 30.0
"""How long the command has to end after SIGTERM, before it is killed."""


def run_command(command: Sequence[str], nodes: int, cpus: int, gpus: int | None) -> int:
    """Run a command against a cluster of raylets with these logical CPUs and GPUs each, and end the cluster with it.

    In the command's words ``{address}`` stands for the dashboard's address and ``{gcs}`` for what RAY_ADDRESS takes;
    its environment has RAY_ADDRESS and the token. Ctrl-C is the command's, which ends by itself. SIGTERM and SIGHUP
    are passed on to it.

    Returns:
        The command's exit code; 128 + n where signal n ended the command, or asked for the end.

    Raises:
        UserError: the command cannot be run, or the machine has fewer GPUs.
        EngineError: a node did not come up.
    """
    if shutil.which(command[0], path=program_path()) is None:
        raise UserError(f"{command[0]}: there is no such program")
    with local_cluster(cpus, nodes=nodes, gpus=gpus) as cluster:
        words = [word.replace("{address}", cluster.address).replace("{gcs}", cluster.gcs) for word in command]
        own = {"RAY_ADDRESS": cluster.gcs, "RAY_DASHBOARD_ADDRESS": cluster.address}
        return _Command(words, cluster.environment | own).run()


class _Command:
    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._words = words
        self._environment = environment
        self._process: subprocess.Popen | None = None
        self._asked: int | None = None
        self._deadline = float("inf")

    def run(self) -> int:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
            numbers.remove(signal.SIGHUP)
        before = {number: signal.signal(number, self._pass_on) for number in numbers}
        try:
            self._process = subprocess.Popen(self._words, env=self._environment)
            if self._asked is not None:  # while it started
                self._process.send_signal(self._asked)
            code = self._wait(self._process)
        except OSError as error:
            raise UserError(f"{self._words[0]}: cannot be run: {error.strerror}") from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._asked is not None:
            return signals.EXIT_BASE + self._asked
        return code if code >= 0 else signals.EXIT_BASE - code

    def _wait(self, process: subprocess.Popen) -> int:
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._deadline:
                    process.kill()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT and self._asked is None:
            self._asked, self._deadline = number, time.monotonic() + ENDS_S
        # The terminal sends its SIGINT to the command, too.
        if self._process is not None and (number != signal.SIGINT or not _in_foreground()):
            self._process.send_signal(number)


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to this process and its children."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
