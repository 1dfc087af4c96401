"""One line of JSON for each request, on the logger ``limrank.access``.

A line holds no query string, query, document, prompt, header or key.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from limrank.errors import UserError

if TYPE_CHECKING:
    from limrank.serving.request_records import RequestRecord

LOGGER = logging.getLogger("limrank.access")

_LONGEST_PATH = 256
"""Characters of a request's path that are logged."""

_WARN_AGAIN_S = 60.0


class AccessLog:
    """Writes the log. It is an observer of :class:`~limrank.serving.request_records.Recorder`.

    Args:
        path: the file that lines are appended to. It is opened again after a rotation. None: no file; handlers
            that a program gave the logger get the lines.
    """

    def __init__(self, path: str | None) -> None:
        if path is not None:
            for handler in LOGGER.handlers:
                handler.close()
            LOGGER.handlers = [_File(path)]
            LOGGER.propagate = False
            LOGGER.setLevel(logging.INFO)

    def __call__(self, record: RequestRecord) -> None:
        if LOGGER.isEnabledFor(logging.INFO):
            LOGGER.info(json.dumps(line(record)))


def line(record: RequestRecord) -> dict[str, str | int | float | None]:
    """What is logged of a request. ``time`` is when it came in; ``milliseconds`` end with the last byte of the answer."""
    came = datetime.fromtimestamp(record.started_ns / 1e9, UTC)
    return {
        "time": came.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": record.request_id,
        "key": record.key,
        "client": record.client,
        "method": record.method,
        "path": record.path[:_LONGEST_PATH],
        "status": record.status,
        "error": record.error,
        "mode": record.mode,
        "pairs": record.pairs,
        "prompt_tokens": record.usage.prompt,
        "cached_tokens": record.usage.cached_prompt,
        "generated_tokens": record.usage.generated,
        "milliseconds": round(record.seconds * 1000, 1),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
    }


def check_path(path: str) -> None:
    """Whether lines can be appended to a file, which need not be there yet.

    Raises:
        UserError: they cannot.
    """
    key = f"serving.access_log {path}"
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        folder = Path(path).parent
        if not folder.is_dir():
            raise UserError(f"{key}: {folder} is not a directory that is there") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{key}: {folder} cannot be written to") from None
        return
    except OSError as error:
        raise UserError(f"{key}: {error.strerror}") from error
    # Opening a pipe would wait for its reader.
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        raise UserError(f"{key}: is not a file")
    if not os.access(path, os.W_OK):
        raise UserError(f"{key}: cannot be written to")


class _File(WatchedFileHandler):
    """Loses a line that cannot be written, and tries again with the next one."""

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self._warned = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
                self._statstream()
            # One write for each line, so that replicas can share a file.
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            with contextlib.suppress(OSError):  # closing writes the rest again
                stream.close()
        if time.monotonic() - self._warned > _WARN_AGAIN_S:
            self._warned = time.monotonic()
            logging.getLogger("ray.serve").warning("the access log cannot be written: %s", error)
