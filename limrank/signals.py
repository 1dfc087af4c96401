"""How a job is stopped: SIGINT (Ctrl-C) and SIGTERM mean the same, and come as one KeyboardInterrupt.

It has to be KeyboardInterrupt: Ray's waits raise that, whatever a handler raises. What must
not be left half done (a Ray that starts, one that ends, a manifest) runs in :func:`deferred`.
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
_PATIENCE_S = 10.0
"""How long what is deferred may take before one more signal ends the process at once."""

_ENDED_AT_ONCE = 128
"""A shell's exit code for a process that a signal ended is this and the signal's number."""


class _Received:
    """The first signal that came, and whether it still has to be acted on. One a process, as
    signals are."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self.stopping = 0
        self.deferring = 0
        self.waits = False


_received = _Received()


@contextmanager
def stopping() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt while the ``with`` block runs. Outside the
    main thread, which signals go to, nothing changes."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    if not _received.stopping:
        _received.number, _received.waits = None, False
    _received.stopping += 1
    take_over()
    try:
        yield
    finally:
        _received.stopping -= 1
        for number, handler in before.items():
            signal.signal(number, handler)


def take_over() -> None:
    """Inside of :func:`stopping`, set its handlers again. Ray replaces that of SIGTERM, below Python
    too, by one that dumps its stack and aborts."""
    if _received.stopping and _in_main_thread():
        for number in STOPPING:
            signal.signal(number, _handle)


def received() -> str | None:
    """The signal that came since :func:`stopping` began, as in ``SIGTERM``."""
    return signal.Signals(_received.number).name if _received.number else None


def exit_code() -> int:
    """What a process ends with that a signal has stopped: 130 for SIGINT, 143 for SIGTERM."""
    return _ENDED_AT_ONCE + (_received.number or signal.SIGINT)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside of :func:`stopping`: a signal that comes in the ``with`` block is acted on at its end.
    A second one, ten seconds after the first, ends the process there and then."""
    ours = bool(_received.stopping) and _in_main_thread()
    _received.deferring += ours
    try:
        yield
    finally:
        _received.deferring -= ours
        if ours and _received.waits and not _received.deferring:
            _received.waits = False
            raise KeyboardInterrupt


def _handle(number: int, frame: Any) -> None:
    if _received.number is None:
        _received.number, _received.at = number, time.monotonic()
    elif _received.deferring and time.monotonic() - _received.at > _PATIENCE_S:
        end_now(_ENDED_AT_ONCE + number)
    if _received.deferring:
        _received.waits = True
    else:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def end_now(code: int) -> NoReturn:
    """End the process without Python's own end: a thread of Ray's that runs into that one
    crashes now and then."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a closed pipe has nobody to tell
            continue
    os._exit(code)
