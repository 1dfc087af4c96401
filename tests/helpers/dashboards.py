"""Ray's job client on a dashboard that answers as it is told to."""

import asyncio
from enum import StrEnum
from types import SimpleNamespace


class Status(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    def is_terminal(self):
        return self.value not in ("PENDING", "RUNNING")


class Dashboard:
    """Each call takes the next answer; the last one stays.

    Args:
        logs: for each time that a log is read, its text or its pieces: an error ends it, None blocks it for ever.
        answers: for each time that a job is looked at, its status or an error.
        text: the whole log.
        exit_code: the driver's.
        submitted: for each time that a job is submitted, an error or None.
    """

    def __init__(self, *, logs=(), answers=(), text="", exit_code=None, submitted=()):
        self._logs = [[each] if isinstance(each, str) else each for each in logs]
        self._answers = list(answers)
        self._text = text
        self._exit_code = exit_code
        self._submitted = list(submitted)
        self.jobs = []
        self.stopped = []

    def get_address(self):
        return "http://head:8265"

    def submit_job(self, **job):
        error = self._submitted.pop(0) if self._submitted else None
        if error:
            raise error
        self.jobs.append(job)
        return job["submission_id"]

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True

    def get_job_info(self, job_id):
        answer = _next(self._answers)
        if isinstance(answer, BaseException):
            raise answer
        status, exit_code = answer if isinstance(answer, tuple) else (answer, self._exit_code)
        return SimpleNamespace(status=Status(status), driver_exit_code=exit_code, message="", metadata={})

    def get_job_logs(self, job_id):
        return self._text

    async def tail_job_logs(self, job_id):
        for piece in _next(self._logs):
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                await asyncio.sleep(3600)
            yield piece


def _next(answers):
    return answers.pop(0) if len(answers) > 1 else answers[0]
