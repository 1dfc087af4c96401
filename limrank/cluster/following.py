"""Following a submitted job: its log without a gap, and how it ended, through breaks of the connection."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank import signals
from limrank.cluster.addresses import CALL_S, within
from limrank.cluster.dashboard import NO_ANSWER, is_unknown
from limrank.errors import EngineError, first_line
from limrank.printable import PAGE, printable
from limrank.progress import Progress, open_progress, parse_json_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PATIENCE_S = 900.0
"""How long a dashboard may be gone. The head of a cluster in the cloud takes minutes to be replaced."""

POLL_S = 5.0
"""Silence of a log after which the job is looked at."""

STOPS_S = 120.0
"""How long a job has to end once it is stopped."""

LOST = "LOST"
"""The status of a job that its cluster no longer knows: the head was replaced."""

_NEVER_RETRIED = (0, 2, 3)
"""The exit codes of a job that is done, whose input is at fault, and that has failed rows."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: Ray's SUCCEEDED, FAILED or STOPPED, or LOST.
        driver_exit_code: negative where a signal ended the driver; None where Ray does not know it.
        message: Ray's, for a person.
        began: whether its driver ran: it has an exit code, or has printed something.
    """

    status: str
    driver_exit_code: int | None
    message: str
    began: bool = True

    @property
    def exit_code(self) -> int:
        """As a shell gives it."""
        if self.driver_exit_code is None:
            return 0 if self.status == "SUCCEEDED" else 1
        return self.driver_exit_code if self.driver_exit_code >= 0 else signals.EXIT_BASE - self.driver_exit_code

    @property
    def may_be_retried(self) -> bool:
        """Whether the same job may come further: not where its input is at fault, or it was stopped by a person."""
        return self.status in ("FAILED", LOST) and self.driver_exit_code not in _NEVER_RETRIED

    @property
    def reason(self) -> str:
        """``was killed by signal 9``"""
        code = self.driver_exit_code
        if self.status == LOST:
            return "is not known to the cluster any more"
        if code is None:
            return f"ended without an exit code ({printable(self.message)})"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def follow(client: JobSubmissionClient, job_id: str, *, patience_s: float = PATIENCE_S) -> Outcome:
    """Print a job's log until the job ends, with its progress as bars.

    A log that breaks off is read again, and what was printed is left out.

    Raises:
        EngineError: the dashboard has not answered for ``patience_s``.
    """
    progress = open_progress()
    log = _Log(progress)
    wait = _Patience(job_id, client.get_address(), patience_s)
    try:
        while True:
            whole = _print_log(client, job_id, log)
            try:
                details = within(CALL_S, lambda: client.get_job_info(job_id))
            except NO_ANSWER as error:
                if is_unknown(error):
                    return Outcome(LOST, None, first_line(error), log.is_printed)
                wait.or_raise(error)
                continue
            wait.answered()
            if details.status.is_terminal():
                if not whole:
                    _print_rest(client, job_id, log)
                code = details.driver_exit_code
                return Outcome(str(details.status), code, details.message or "", code is not None or log.is_printed)
            time.sleep(1)
    finally:
        log.end()
        progress.close()


def wait_for_end(client: JobSubmissionClient, job_id: str) -> None:
    """Wait until a job that is being stopped has ended, without its log.

    Raises:
        TimeoutError: it has not ended within :data:`STOPS_S`.
    """
    give_up = time.monotonic() + STOPS_S
    while not within(CALL_S, lambda: client.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > give_up:
            raise TimeoutError(f"it has not ended within {STOPS_S:g} s")
        time.sleep(1)


class _Patience:
    """Waits while a dashboard does not answer, and says so once."""

    def __init__(self, job_id: str, address: str, patience_s: float) -> None:
        self._job_id = job_id
        self._address = address
        self._patience_s = patience_s
        self._since: float | None = None
        self._next_s = 1.0

    def answered(self) -> None:
        self._since, self._next_s = None, 1.0

    def or_raise(self, error: BaseException) -> None:
        """Wait a while. Raises EngineError where nothing has answered for too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            text = f"limrank: the dashboard does not answer ({first_line(error)}); trying for {self._patience_s:g} s"
            print(printable(text), file=sys.stderr, flush=True)
        if now - self._since >= self._patience_s:
            raise EngineError(
                f"{self._job_id}: the dashboard has not answered for {self._patience_s:g} s: {first_line(error)}; the job "
                f"may go on: `limrank jobs logs -f {self._job_id} --address {self._address}` follows it again"
            )
        time.sleep(self._next_s)
        self._next_s = min(2 * self._next_s, 15.0)


class _Log:
    """A log's text as it comes. Every time it is read, it is read from its start."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._printed = 0
        self._read = 0
        self._rest = ""

    @property
    def is_printed(self) -> bool:
        return self._printed > 0

    def start_again(self) -> None:
        self._read = 0

    def add(self, piece: str) -> None:
        new = piece[max(0, self._printed - self._read) :]
        self._read += len(piece)
        self._printed = max(self._printed, self._read)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._print(line)

    def end(self) -> None:
        if self._rest:
            self._print(self._rest)
            self._rest = ""

    def _print(self, line: str) -> None:
        event = parse_json_line(line)
        if event is not None:
            self._progress.update(event)
        else:
            print(printable(line, PAGE), flush=True)


def _print_log(client: JobSubmissionClient, job_id: str, log: _Log) -> bool:
    """Print a job's log until it ends or breaks off. Whether it came to its end."""
    log.start_again()
    for piece in _pieces(client, job_id):
        if isinstance(piece, str):
            log.add(piece)
        elif isinstance(piece, BaseException):
            return False  # Ray's client raises aiohttp's errors here, whose reason the next call finds out
        else:
            try:
                details = within(CALL_S, lambda: client.get_job_info(job_id))
            except NO_ANSWER:
                return False
            if details.status.is_terminal():
                return False
    return True


def _print_rest(client: JobSubmissionClient, job_id: str, log: _Log) -> None:
    try:
        text = within(CALL_S, lambda: client.get_job_logs(job_id))
    except NO_ANSWER as error:
        print(printable(f"limrank: the end of the log is missing: {first_line(error)}"), file=sys.stderr, flush=True)
        return
    log.start_again()
    log.add(text)


def _pieces(client: JobSubmissionClient, job_id: str) -> Iterator[str | BaseException | None]:
    """The pieces of a job's log as they come; None after a while of silence; at last, the error that broke it.

    A thread reads them: a connection that was cut without a word would block the reader for ever.
    """
    pieces: queue.Queue[Any] = queue.Queue()
    end = object()

    async def read() -> None:
        async for piece in client.tail_job_logs(job_id):
            pieces.put(piece)

    def work() -> None:
        try:
            asyncio.run(read())
            pieces.put(end)
        except Exception as error:  # given to the waiting thread
            pieces.put(error)

    threading.Thread(target=work, daemon=True, name="job-log").start()
    while True:
        try:
            piece = pieces.get(timeout=POLL_S)
        except queue.Empty:
            piece = None
        if piece is end:
            return
        yield piece
