"""A Ray cluster for a job: one of its own, a running one, or one that the job is submitted to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import limrank
from limrank import signals
from limrank.cluster.addresses import CALL_S, check_dashboard, check_ray, within
from limrank.config import is_uri
from limrank.errors import EngineError, UserError, first_line
from limrank.printable import PAGE, printable
from limrank.progress import open_progress, parse_json_line
from limrank.uris import without_credentials

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

MIN_LOGICAL_CPUS = 4
"""Logical CPUs may exceed the cores: an engine takes what it needs of the cores itself,
and Ray Data's own small tasks must find a slot beside it."""


_STDERR = 2
"""The file descriptor that a process writes its errors to."""

_NO_ANSWER = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)
"""What Ray's job client raises where a dashboard refuses, breaks off, or answers something else."""

_THREAD_ENDS_S = 10.0
"""How long an execution of Ray Data may take to end."""


def default_address() -> str:
    named = without_credentials(os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS") or ""
    return "local" if named.strip() in ("", "local") else "auto"


def prepare_environment(address: str = "auto") -> None:
    """Settings that Ray reads when it is imported; a person's own are kept.

    A cluster that asks for a token (Ray's default since 2.60) refuses clients that do not
    say so themselves; the token lies where ``ray start`` wrote it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread that asks Ray for something after its end must not start another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if address == "local":
        # By this switch, named for the systems that it is the default on, a node's address is
        # 127.0.0.1, and all its servers listen there; else they do on every interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        _keep_token_private()
    # Ray Data's actors make Ray's core log an alarm about itself at every start; its
    # errors come as exceptions anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if _token_file().is_file() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _keep_token_private() -> None:
    """Make the token that Ray would make, readable by nobody else; Ray's own is by everybody."""
    path = _token_file()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    with contextlib.suppress(OSError):  # a home that cannot be written has no token, and Ray says so
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            path.chmod(0o600)
        else:
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))


@contextmanager
def connect(address: str, *, paths: Iterable[str] = ()) -> Iterator[None]:
    """Be connected to a Ray cluster inside; where a job of this process is already, stay so.

    Args:
        address: ``local`` starts a cluster in this process's care; ``auto`` attaches.
        paths: local paths that every node has to see.

    Raises:
        UserError: there is no cluster to attach to, or a node does not see a path.
    """
    prepare_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        # Interrupted half-way, a Ray of ours would leave processes behind.
        with signals.deferred() if address == "local" else contextlib.nullcontext():
            _initialise(address)
        check_paths(paths)
        yield
    finally:
        with signals.deferred():
            _end_data_threads()
            ray.shutdown()


def _initialise(address: str) -> None:
    import ray
    from ray._private import utils

    own, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        if address == "local":
            cpus = max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
            with _quiet_processes():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="warning",
                )
        else:
            check_ray()  # Ray itself waits for ever
            ray.init(address="auto", log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise UserError(
            "--address auto: no running Ray cluster found; `ray start --head` starts one, `--address local` needs none"
        ) from error
    finally:
        utils.set_sigterm_handler = own
        # Ray's core has put a handler of its own below Python's, which dumps the stack and aborts.
        signals.take_over()


@contextlib.contextmanager
def _quiet_processes() -> Iterator[None]:
    """Processes that are started inside have no stderr. Ray's write to it until they have a log of
    their own: a stack dump, where they are ended as early as that."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)


def _end_data_threads() -> None:
    """End Ray Data's executions. One that was interrupted before its first block goes on in a thread,
    and a thread that asks Ray for something while Ray ends crashes the process."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.shutdown(force=True)
            thread.join(_THREAD_ENDS_S)


def check_paths(paths: Iterable[str]) -> None:
    """Raises UserError where a node of the cluster does not see a local path as this one does."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = [path for path in paths if not is_uri(path)]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not local or len(nodes) < 2:
        return
    for path in local:
        folder = Path(path)
        if not folder.is_dir():
            continue
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            for node in nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                sees = ray.remote(os.path.exists).options(num_cpus=0, scheduling_strategy=there)
                if not ray.get(sees.remote(str(mark))):
                    raise UserError(
                        f"{path}: node {node['NodeManagerAddress']} does not see it; "
                        "with several nodes take a shared path or an s3:// one"
                    )
        finally:
            mark.unlink()


# ---- the Ray Jobs API ----------------------------------------------------------------


def submit(command: str, recipe: str, address: str, *, flags: Iterable[str] = ()) -> int:
    """Run ``jobs/<command>.py`` on a cluster, follow its log and give its exit code.

    The package travels with the job, so that the cluster needs its dependencies only.

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
                "py_modules": [str(Path(limrank.__file__).parent)],
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
    """Print a job's log, its progress as bars, until it ends; its exit code."""
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
            _show(line, progress)
    if rest:
        _show(rest, progress)


def _show(line: str, progress: Any) -> None:
    event = parse_json_line(line)
    if event is not None:
        progress.update(event)
    else:
        print(printable(line, PAGE), flush=True)


def job_client(address: str) -> JobSubmissionClient:
    """Raises UserError where no Ray dashboard answers at the address."""
    without_credentials(address, "--address")
    check_dashboard(address)
    prepare_environment()
    from ray.job_submission import JobSubmissionClient

    # Uploads and closed sockets are not news.
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
        EngineError: it does not list them.
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
    package = Path(limrank.__file__).parent
    for folder in (package.parent / "jobs", package / "_jobs"):
        if (folder / f"{command}.py").is_file():
            return folder / f"{command}.py"
    raise UserError(f"jobs/{command}.py is neither beside the limrank package nor in it; install limrank again")
