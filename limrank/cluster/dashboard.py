"""Ray's job client: opened at a dashboard's address, and its single calls, with errors for a person."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from limrank.cluster.addresses import CALL_S, check_dashboard, within
from limrank.cluster.connection import prepare_environment
from limrank.errors import EngineError, UserError, first_line
from limrank.parsing import without_credentials

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

NO_ANSWER = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of Ray's job client where a dashboard refuses, breaks off, or answers something else."""


def job_client(address: str) -> JobSubmissionClient:
    """Raises UserError where no Ray dashboard answers at the address."""
    without_credentials(address, "--address")
    check_dashboard(address)
    prepare_environment(address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Hide the messages about uploads and closed sockets.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super()._do_request(*arguments, **options)
            except AuthenticationError as error:  # later on too: the head's successor may have another token
                raise RuntimeError(first_line(error)) from error

    try:
        return within(CALL_S, lambda: Client(address))
    except NO_ANSWER as error:
        raise UserError(f"--address {address}: {first_line(error)}") from error


def list_jobs(address: str) -> list[JobDetails]:
    """The cluster's submitted jobs, newest first.

    Raises:
        UserError: no dashboard answers at the address.
        EngineError: the dashboard does not list them.
    """
    try:
        client = job_client(address)
        submitted = [job for job in within(CALL_S, client.list_jobs) if job.submission_id]
    except NO_ANSWER as error:
        raise EngineError(f"{address}: {first_line(error)}") from error
    return sorted(submitted, key=lambda job: job.start_time or 0, reverse=True)


def job_call(address: str, job_id: str, method: str) -> Any:
    """One call of the job client about one job.

    Raises:
        UserError: the cluster knows no such job.
    """
    try:
        client = job_client(address)
        return within(CALL_S, lambda: getattr(client, method)(job_id))
    except NO_ANSWER as error:
        if "status code 404" in str(error) or is_unknown(error):
            raise UserError(
                f"{address} knows no job {job_id}; `limrank jobs list --address {address}` shows them"
            ) from error
        raise EngineError(f"{address}: {first_line(error)}") from error


def is_unknown(error: BaseException) -> bool:
    """Whether a dashboard answered that there is no such job. A proxy before a dashboard that is gone may answer 404,
    too, in words of its own."""
    return "does not exist" in str(error)
