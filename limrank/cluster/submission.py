"""Jobs on a cluster, through the Ray Jobs API: submitted, followed, listed, stopped."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.cluster.addresses import CALL_S, check_dashboard, within
from limrank.cluster.connection import prepare_environment
from limrank.errors import EngineError, UserError, first_line
from limrank.parsing import without_credentials
from limrank.printable import PAGE, printable
from limrank.progress import open_progress, parse_json_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_PACKAGE = Path(__file__).parents[1]

_NO_ANSWER = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of Ray's job client where a dashboard refuses, breaks off, or answers something else."""


def submit(command: str, recipe: str, address: str, *, flags: Iterable[str] = ()) -> int:
    """Run ``jobs/<command>.py`` on a cluster, follow its log and return its exit code.

    The job includes the package, so the cluster needs only its dependencies.

    Args:
        recipe: the resolved recipe, as YAML.

    Raises:
        UserError: there is no cluster at the address.
    """
    client = job_client(address)
    with tempfile.TemporaryDirectory(prefix="limrank-job-") as folder:
        working = Path(folder)
        (working / "jobs").mkdir()
        shutil.copy(_entry_point(command), working / "jobs")
        (working / "recipe.yaml").write_text(recipe, encoding="utf-8")
        job_id = client.submit_job(
            entrypoint=shlex.join(["python", f"jobs/{command}.py", "recipe.yaml", *flags]),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(_PACKAGE)],
                "env_vars": {"LIMRANK_PROGRESS": "json"},
            },
            metadata={"limrank": command},
        )
    print(printable(f"submitted {job_id} to {address}"), flush=True)
    try:
        return follow(client, job_id)
    except KeyboardInterrupt:
        print(f"\n{job_id} goes on; `limrank jobs stop {job_id} --address {address}` stops it", flush=True)
        raise


def follow(client: JobSubmissionClient, job_id: str) -> int:
    """Print a job's log until it ends, with its progress as bars. Returns its exit code."""
    progress = open_progress()
    try:
        asyncio.run(_print_log(client, job_id, progress))
        # The log's stream may break while the job goes on.
        while not (details := client.get_job_info(job_id)).status.is_terminal():
            time.sleep(1)
    finally:
        progress.close()
    if details.driver_exit_code is not None:
        return details.driver_exit_code
    if str(details.status) == "SUCCEEDED":
        return 0
    print(printable(f"{job_id} {details.status}: {details.message}", PAGE, lines=True), flush=True)
    return 1


async def _print_log(client: JobSubmissionClient, job_id: str, progress: Any) -> None:
    rest = ""
    async for piece in client.tail_job_logs(job_id):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            _print_line(line, progress)
    if rest:
        _print_line(rest, progress)


def _print_line(line: str, progress: Any) -> None:
    event = parse_json_line(line)
    if event is not None:
        progress.update(event)
    else:
        print(printable(line, PAGE), flush=True)


def job_client(address: str) -> JobSubmissionClient:
    """Raises UserError where no Ray dashboard answers at the address."""
    without_credentials(address, "--address")
    check_dashboard(address)
    prepare_environment(address)
    from ray.job_submission import JobSubmissionClient

    # Hide the messages about uploads and closed sockets.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return within(CALL_S, lambda: JobSubmissionClient(address))
    except _NO_ANSWER as error:
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
    except _NO_ANSWER as error:
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
    except _NO_ANSWER as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise UserError(f"{address} knows no job {job_id}; `limrank jobs list` shows them") from error
        raise EngineError(f"{address}: {first_line(error)}") from error


def _entry_point(command: str) -> Path:
    for folder in (_PACKAGE.parent / "jobs", _PACKAGE / "_jobs"):
        if (folder / f"{command}.py").is_file():
            return folder / f"{command}.py"
    raise UserError(f"jobs/{command}.py is neither next to the limrank package nor in it; reinstall limrank")
