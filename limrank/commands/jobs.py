"""``limrank jobs``, and the options of a job that is submitted to a cluster."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

import typer

from limrank.errors import UserError
from limrank.printable import PAGE, printable

app = typer.Typer(help="Jobs that were submitted to a cluster.", no_args_is_help=True)

Dashboard = Annotated[
    str,
    typer.Option(
        "--address", metavar="http://HOST:8265", envvar="RAY_DASHBOARD_ADDRESS", help="The cluster's dashboard."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that submitting printed.", show_default=False)]
Detach = Annotated[bool, typer.Option("--detach", help="Return once the cluster has the job.")]
Retries = Annotated[
    int,
    typer.Option(
        "--retries", metavar="N", min=0, help="Submit a job again that was killed, or whose head was lost: it resumes."
    ),
]
Env = Annotated[
    Literal["image", "pip", "pip-cpu"],
    typer.Option(
        "--env",
        help="image: the nodes have limrank's dependencies. pip, pip-cpu: Ray installs them, with vLLM for GPUs or CPUs.",
    ),
]
Ship = Annotated[
    bool | None,
    typer.Option(
        "--ship-inputs/--cluster-paths",
        help="Local inputs travel with the job, or the recipe's paths are those of the cluster's nodes. "
        "[default: inputs travel, unless the cluster is this machine]",
        show_default=False,
    ),
]
ShipLimit = Annotated[
    float, typer.Option("--ship-limit", metavar="MIB", min=0, max=400, help="The most MiB of inputs that travel.")
]


@dataclass(frozen=True)
class Submission:
    """The options of a submitted job; see :class:`limrank.cluster.Terms`."""

    detach: bool = False
    retries: int = 0
    env: Literal["image", "pip", "pip-cpu"] = "image"
    ship: bool | None = None
    ship_limit: float = 64

    def check(self, address: str) -> None:
        """Raises UserError for options that the address, or each other, makes useless."""
        given = [_NAMES[each.name] for each in fields(self) if getattr(self, each.name) != each.default]
        if given and not address.startswith(("http://", "https://")):
            raise UserError(f"{', '.join(given)}: for a job that is submitted: add --address http://HOST:8265")
        if self.detach and self.retries:
            raise UserError("--retries: needs a command that follows the job, which --detach does not")

    def terms(self) -> Any:
        from limrank.cluster import Terms

        return Terms(**asdict(self))


_OPTIONS = {"detach": Detach, "retries": Retries, "env": Env, "ship": Ship, "ship_limit": ShipLimit}
_NAMES = {
    "detach": "--detach",
    "retries": "--retries",
    "env": "--env",
    "ship": "--ship-inputs/--cluster-paths",
    "ship_limit": "--ship-limit",
}
HERE = Submission()
"""The options of a job that is not submitted."""


def submittable(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of :class:`Submission`, which it gets as one argument, ``submission``."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        submission = Submission(**{name: given.pop(name) for name in _OPTIONS})
        command(**given, submission=submission)

    options = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=_OPTIONS[each.name]
        )
        for each in fields(Submission)
    ]
    own = [each for each in signature.parameters.values() if each.name != "submission"]
    with_options.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    with_options.__annotations__ = {}
    return with_options


@app.command("list")
def list_(address: Dashboard = "http://127.0.0.1:8265") -> None:
    """The cluster's jobs, newest first."""
    from datetime import datetime

    from limrank.cluster import list_jobs

    for job in list_jobs(address):
        started = datetime.fromtimestamp((job.start_time or 0) / 1000).isoformat(" ", "seconds")
        kind = (job.metadata or {}).get("limrank", "-")
        print(printable(f"{job.submission_id}  {job.status:<9}  {started}  {kind}"))


@app.command()
def status(job_id: JobId, address: Dashboard = "http://127.0.0.1:8265") -> None:
    """One job's status and the last message of its driver."""
    from limrank.cluster import job_call

    details = job_call(address, job_id, "get_job_info")
    print(printable(f"{job_id} {details.status}: {details.message}", PAGE, lines=True))


@app.command()
def logs(
    job_id: JobId,
    address: Dashboard = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """A job's output; with -f, its exit code too."""
    from limrank import cluster
    from limrank.progress import JSON_PREFIX

    if follow:
        raise typer.Exit(cluster.follow_job(address, job_id))
    for line in cluster.job_call(address, job_id, "get_job_logs").splitlines():
        if not line.startswith(JSON_PREFIX):
            print(printable(line, PAGE))


@app.command()
def stop(job_id: JobId, address: Dashboard = "http://127.0.0.1:8265") -> None:
    """Stop a job. Its committed rows stay, and the same recipe resumes it."""
    from limrank.cluster import job_call

    stopped = job_call(address, job_id, "stop_job")
    print(f"{printable(job_id)} {'is being stopped' if stopped else 'had ended already'}")


@app.command()
def retry(
    job_id: JobId,
    address: Dashboard = "http://127.0.0.1:8265",
    detach: Detach = False,
    retries: Retries = 0,
) -> None:
    """Submit a job that ended once more, as it was: it resumes. An --overwrite is left out."""
    from limrank import cluster

    submission = Submission(detach=detach, retries=retries)
    submission.check(address)
    raise typer.Exit(cluster.retry(job_id, address, submission.terms()))
