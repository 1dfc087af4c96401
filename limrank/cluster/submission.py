"""Jobs on a cluster, through the Ray Jobs API: packed, submitted, submitted again, listed, stopped."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from limrank import signals
from limrank.cluster.addresses import CALL_S, within
from limrank.cluster.dashboard import NO_ANSWER, job_call, job_client, list_jobs
from limrank.cluster.following import PATIENCE_S, Outcome, follow, wait_for_end
from limrank.cluster.packages import Package, Terms, kept_package, packed
from limrank.config import Job
from limrank.errors import EngineError, UserError, first_line
from limrank.printable import PAGE, printable

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_UPLOAD_S = 1800.0
"""Time limit for sending a job and its package."""

_LOCK_S = 25.0
"""After this time the lock of a driver that is gone is free (see :mod:`limrank.batch.lock`). On the driver's own
host it is free at once."""


def submit(command: str, config: Job, address: str, *, flags: Iterable[str] = (), terms: Terms | None = None) -> int:
    """Run ``jobs/<command>.py`` on a cluster, follow its log and return its exit code; 0 once it is submitted, with
    ``terms.detach``.

    The job includes the package, so the cluster needs only its dependencies.

    Raises:
        UserError: there is no cluster at the address, or the job cannot have a local path there.
        EngineError: the dashboard does not take the job, or no longer answers.
    """
    terms = terms or Terms()
    client = job_client(address)
    with packed(client, command, config, address, list(flags), terms) as package:
        job_id = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        _send(client, package, job_id)
        _say(f"submitted {job_id} to {address} ({package.sizes})")
        return _attend(client, package, job_id, address, terms)


def retry(job_id: str, address: str, terms: Terms) -> int:
    """Submit a job once more, with the package, the recipe and the flags of the first time, except ``--overwrite``.

    Returns:
        As :func:`submit`.

    Raises:
        UserError: the job is unknown, still runs or is not limrank's; or Ray has dropped its package, and what it was
            made from is not here, or has changed.
        EngineError: as :func:`submit`.
    """
    details = job_call(address, job_id, "get_job_info")
    if not details.status.is_terminal():
        raise UserError(f"{job_id} is {details.status}; `limrank jobs stop {job_id} --address {address}` ends it first")
    client = job_client(address)
    with kept_package(client, job_id, details) as package:
        taken = {job.submission_id for job in list_jobs(address)}
        first = (details.metadata or {}).get("limrank_first", job_id)
        name = next(name for number in range(2, len(taken) + 3) if (name := f"{first}-{number}") not in taken)
        _send(client, package, name)
        _say(f"submitted {name} to {address}: {job_id} again")
        return _attend(client, package, name, address, terms)


def _attend(client: JobSubmissionClient, package: Package, job_id: str, address: str, terms: Terms) -> int:
    """Follow a job to its end, and submit it again where it was killed. Returns the exit code of the last attempt."""
    if terms.detach:
        _say(f"`limrank jobs logs -f {job_id} --address {address}` follows it")
        return 0
    first, attempt = job_id, 1
    while True:
        try:
            outcome = follow(client, job_id)
        except KeyboardInterrupt:
            _detach_or_stop(client, job_id, address)
            raise
        if attempt > terms.retries or not outcome.may_be_retried:
            return _report(job_id, outcome)
        _say(f"{job_id} {outcome.reason}: submitting it again ({attempt} of {terms.retries})")
        if outcome.driver_exit_code is None:
            time.sleep(_LOCK_S)
        package = package.again(first, resumes=outcome.began)
        attempt += 1
        job_id = f"{first}-{attempt}"
        _send(client, package, job_id, patience_s=PATIENCE_S)
        _say(f"submitted {job_id} to {address}")


def _detach_or_stop(client: JobSubmissionClient, job_id: str, address: str) -> None:
    """Ask a person at a terminal whether a job goes on or is stopped. Without one, and after a second Ctrl-C, it goes
    on."""
    try:
        if _asks() and _answer(f"{job_id}: [d]etach, so that it goes on, or [s]top it? [d] ") in ("s", "stop"):
            within(CALL_S, lambda: client.stop_job(job_id))
            _say(f"{job_id} is being stopped; its committed rows stay")
            with contextlib.suppress(KeyboardInterrupt):
                wait_for_end(client, job_id)
            return
    except (KeyboardInterrupt, EOFError):
        pass
    except NO_ANSWER as error:
        print(printable(f"limrank: {job_id} may go on: {first_line(error)}"), file=sys.stderr, flush=True)
    print()
    _say(f"{job_id} goes on; `limrank jobs stop {job_id} --address {address}` stops it")


def _answer(question: str) -> str:
    return input(f"\n{printable(question)}").strip().lower()


def _say(text: str) -> None:
    print(printable(text), flush=True)


def _asks() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and signals.received() != "SIGTERM"


def follow_job(address: str, job_id: str) -> int:
    """Print a job's log until it ends. Returns its exit code.

    Raises:
        UserError: the cluster knows no such job.
        EngineError: the dashboard no longer answers.
    """
    job_call(address, job_id, "get_job_info")
    return _report(job_id, follow(job_client(address), job_id))


def _report(job_id: str, outcome: Outcome) -> int:
    if outcome.driver_exit_code is None and outcome.exit_code:
        print(printable(f"{job_id} {outcome.status}: {outcome.message}", PAGE, lines=True), flush=True)
    return outcome.exit_code


def _send(client: JobSubmissionClient, package: Package, job_id: str, *, patience_s: float = 0.0) -> None:
    """Submit a package under an id. Where the answer was lost, the next try finds the job there.

    Raises:
        EngineError: the dashboard has not taken it for ``patience_s``.
    """
    give_up = time.monotonic() + patience_s
    while True:
        try:
            within(
                _UPLOAD_S,
                lambda: client.submit_job(
                    entrypoint=package.entrypoint,
                    runtime_env=package.runtime_env,
                    metadata=dict(package.metadata),
                    submission_id=job_id,
                ),
            )
            return
        except NO_ANSWER as error:
            if _is_there(client, job_id):
                return
            if time.monotonic() >= give_up:
                raise EngineError(f"{job_id} was not submitted: {first_line(error)}") from error
        time.sleep(2)


def _is_there(client: JobSubmissionClient, job_id: str) -> bool:
    try:
        within(CALL_S, lambda: client.get_job_info(job_id))
    except NO_ANSWER:
        return False
    return True
