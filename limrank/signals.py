"""How a job is stopped: SIGINT (Ctrl-C) and SIGTERM both raise one KeyboardInterrupt.

Ray's waits raise KeyboardInterrupt whatever a handler raises, so no other exception would do. Code that must not
end halfway (the start or end of Ray, a manifest) runs in :func:`deferred`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM)
_DEFERRAL_LIMIT_S = 10.0
"""After this time in deferred code, one more signal ends the process at once."""

EXIT_BASE = 128
"""A shell's exit code for a process that a signal ended is this plus the signal's number."""


class _Received:
    """The first signal that was received, and whether it still has to be raised. One for the process, as signals are."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self.stopping = 0
        self.deferring = 0
        self.pending = False


_received = _Received()


@contextmanager
def stopping() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt while the ``with`` block runs. Signals go to the main thread only:
    in any other thread this does nothing."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    if not _received.stopping:
        _received.number, _received.pending = None, False
    _received.stopping += 1
    take_over()
    try:
        yield
    finally:
        _received.stopping -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def take_over() -> None:
    """Restore the handlers of :func:`stopping`. Ray replaces the one of SIGTERM, below Python too, by one that dumps
    its stack and aborts."""
    if _received.stopping and _in_main_thread():
        for number in STOPPING:
            signal.signal(number, _handle)


def received() -> str | None:
    """The name of the signal received since :func:`stopping` began, such as ``SIGTERM``; None for none."""
    return signal.Signals(_received.number).name if _received.number else None


def exit_code() -> int:
    """The exit code of a process that a signal stopped: 130 for SIGINT, 143 for SIGTERM."""
    return EXIT_BASE + (_received.number or signal.SIGINT)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside :func:`stopping`, raise a signal received in the ``with`` block at the block's end. A second signal, ten
    seconds or more after the first, ends the process at once."""
    ours = bool(_received.stopping) and _in_main_thread()
    _received.deferring += ours
    try:
        yield
    finally:
        _received.deferring -= ours
        if ours and _received.pending and not _received.deferring:
            _received.pending = False
            raise KeyboardInterrupt


def _handle(number: int, frame: Any) -> None:
    if _received.number is None:
        _received.number, _received.at = number, time.monotonic()
    elif _received.deferring and time.monotonic() - _received.at > _DEFERRAL_LIMIT_S:
        end_now(EXIT_BASE + number)
    if _received.deferring:
        _received.pending = True
    else:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def end_now(code: int) -> NoReturn:
    """End the process without Python's finalization, in which Ray's threads crash now and then."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe
            continue
    os._exit(code)
