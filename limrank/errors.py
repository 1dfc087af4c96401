"""The kinds of failure, by who can do something about them."""

from __future__ import annotations

from typing import Any

from limrank.uris import redacted


class LimrankError(Exception):
    """Base of every error that limrank raises on purpose.

    A message may quote the text of other programs, and it is printed and stored. Credentials are removed from it here.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in arguments))


class UserError(LimrankError):
    """The user's input is at fault: a path, a key, a line, a model name.

    The message names the file, the line or the key and says what to do. The command line prints it as one line on
    stderr and exits with 2.
    """


class UnavailableError(UserError):
    """What the recipe names is not on this machine yet: a hub out of reach, the output of a stage that has not run.
    A dry run reports it and goes on."""


class RowError(LimrankError):
    """One unit of work, or one part of it, could not be done. Others can.

    Args:
        retryable: the same request may succeed later (a time-out, a rate limit). One that is too long never will.
        attempts: how often it was sent. Engines retry a retryable request themselves before they raise this.
    """

    def __init__(self, message: str, *, retryable: bool = False, attempts: int = 1) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.attempts = attempts

    def __reduce__(self):
        return _rebuild_row_error, (str(self), self.retryable, self.attempts)


class EngineError(LimrankError):
    """The engine has crashed, or did not start. It answers no more requests."""


class EndpointError(EngineError):
    """An endpoint is gone, or refuses every request. No unit is charged for it: the job stops, and the same command
    resumes it once the endpoint is back."""


class ApiStatusError(LimrankError):
    """A server answered a request with an error.

    Args:
        where: the server, for the message.
        status: the HTTP status.
        words: the server's message.
        code: the server's name of the error, such as ``model_not_found``; None where it has none.
        param: the field of the request that is at fault; None where the server names none.
        request_id: the id by which the server knows the request; None where it has none.
        retry_after_s: seconds that the server asks to wait before the next request; None where it asks for none.
    """

    def __init__(
        self,
        where: str,
        status: int,
        words: str,
        *,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{where}: answered {status}: {words}" + (f" (request {request_id})" if request_id else ""))
        self.where = where
        self.status = status
        self.words = redacted(words)
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __reduce__(self):
        return _rebuild_api_status_error, ((self.where, self.status, self.words), self.__dict__)


class StorageError(LimrankError, OSError):
    """The run directory could not be written or read: a full disk, a lost bucket, a damaged file. The same command
    resumes the job once that is fixed."""


class LockLostError(LimrankError):
    """Another driver has taken over the run directory. It goes on with the run, and this one stops."""


def _rebuild_row_error(message: str, retryable: bool, attempts: int) -> RowError:
    return RowError(message, retryable=retryable, attempts=attempts)


def _rebuild_api_status_error(arguments: tuple[str, int, str], state: dict[str, Any]) -> ApiStatusError:
    named = {name: state[name] for name in ("code", "param", "request_id", "retry_after_s")}
    return ApiStatusError(*arguments, **named)


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its type if empty. Credentials are removed."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
