"""The three kinds of failure, told apart by who can do something about them."""

from __future__ import annotations

from limrank.uris import redacted


class LimrankError(Exception):
    """Base of every error that limrank raises on purpose.

    Its message may quote what others said, and is printed and written: credentials are taken
    out of it here.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in arguments))


class UserError(LimrankError):
    """The person's input is at fault: a path, a key, a line, a model name.

    The message names the file, the line or the key and says what to do. The command
    line prints it as one line on stderr and exits with 2.
    """


class UnavailableError(UserError):
    """What the recipe names is not on this machine (yet): a hub out of reach, the output
    of a stage that has not run. A dry run says so and goes on."""


class RowError(LimrankError):
    """One unit of work, or one part of it, could not be done; its neighbours can.

    ``retryable`` says whether the same request may succeed when it is sent again
    (a time-out, a rate limit), as opposed to one that never will (a prompt that is too
    long). Engines try a retryable one again themselves before they raise it;
    ``attempts`` counts their tries.
    """

    def __init__(self, message: str, *, retryable: bool = False, attempts: int = 1) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.attempts = attempts

    def __reduce__(self):
        return _rebuild_row_error, (str(self), self.retryable, self.attempts)


class EngineError(LimrankError):
    """The engine is dead, or was never alive. Nothing more can be asked of it."""


class EndpointError(EngineError):
    """An endpoint is gone, or refuses everything. No unit is to blame, and none is charged
    with it: the job stops, and the same command goes on once the endpoint is back."""


class StorageError(LimrankError, OSError):
    """The run directory could not be written or read: a full disk, a lost bucket, a
    damaged file. The same command goes on once that is mended."""


def _rebuild_row_error(message: str, retryable: bool, attempts: int) -> RowError:
    return RowError(message, retryable=retryable, attempts=attempts)


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, as far as a line of ours has room for it; its
    type where it says nothing."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
