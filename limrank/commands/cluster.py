"""``limrank cluster``: Ray clusters on this machine."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from limrank.printable import printable

if TYPE_CHECKING:
    from limrank.cluster.standing import Report
    from limrank.cluster.state import Standing

NOT_WELL = 1

_GIB = 2**30

app = typer.Typer(help="Ray clusters on this machine: real nodes, a job API, a token.", no_args_is_help=True)

Nodes = Annotated[int, typer.Option("--nodes", min=1, help="Nodes, the head included.")]
Cpus = Annotated[
    int | None,
    typer.Option("--cpus", min=1, help="Logical CPUs of each node; by default this machine's, at least 4."),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", min=0, help="GPUs of each node, logical on a machine without any; by default all are the head's."
    ),
]
Name = Annotated[str, typer.Option("--name", help="Which cluster, where there are several.")]


@app.command("up")
def cluster_up(nodes: Nodes = 1, cpus: Cpus = None, gpus: Gpus = None, name: Name = "default") -> None:
    """Start a cluster that stays until `limrank cluster down`."""
    from limrank.cluster import standing
    from limrank.cluster.local import default_cpus

    with _ends_with_terminal():
        there = standing.up(name, nodes, cpus or default_cpus(), gpus)
    print(f"cluster {name} is up: {nodes} node{'s' if nodes > 1 else ''}")
    _print_addresses(there)
    print("next:")
    print(f"  limrank rerank RECIPE.yaml --address {there.address}    # submits it, and follows its log")
    print("  limrank rerank RECIPE.yaml --address auto    # the driver runs here")
    print(f"  limrank cluster status{_name(name)}; limrank cluster down{_name(name)}")


@app.command("status")
def cluster_status(name: Name = "default") -> None:
    """Nodes, resources, jobs and addresses, or what died. Exits with 1 where there is no cluster, or part of it died."""
    from limrank.cluster import standing, state

    report = standing.status(name)
    if report is None:
        others = [each for each in state.names() if each != name]
        print("not running" + (f"; there are --name {', '.join(others)}" if others else ""))
        raise typer.Exit(NOT_WELL)
    _print_report(report)
    if not report.is_well:
        raise typer.Exit(NOT_WELL)


@app.command("down")
def cluster_down(name: Name = "default") -> None:
    """End the cluster's processes and remove its directory."""
    from limrank.cluster import standing

    ended = standing.down(name)
    print("not running" if ended is None else f"cluster {name} is down: {ended} processes ended")


@app.command("run", context_settings={"allow_interspersed_args": False})
def cluster_run(
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="COMMAND …",
            help="What to run. {address} becomes http://127.0.0.1:PORT, {gcs} what RAY_ADDRESS takes; "
            "RAY_ADDRESS is set.",
            show_default=False,
        ),
    ],
    nodes: Nodes = 1,
    cpus: Cpus = None,
    gpus: Gpus = None,
) -> None:
    """A cluster for as long as one command runs: `limrank cluster run --nodes 2 -- COMMAND …`. Exits with its code."""
    from limrank.cluster.local import default_cpus
    from limrank.cluster.running import run_command

    with _ends_with_terminal():
        raise typer.Exit(run_command(command, nodes, cpus or default_cpus(), gpus))


def _print_report(report: Report) -> None:
    there = report.standing
    state = "up" if there.is_up else "half started: its `limrank cluster up` was killed"
    print(printable(f"cluster {there.name}: {state}, started {there.started_at}"))
    for node in report.nodes:
        has = node.get("resources_total") or {}
        memory = has.get("memory", 0) / _GIB
        print(
            printable(
                f"  {node['node_name']:<8} {node['state'].lower():<6} {has.get('CPU', 0):g} CPUs  "
                f"{has.get('GPU', 0):g} GPUs  {memory:.1f} GiB"
            )
        )
    if report.jobs:
        states = Counter(job["status"].lower() for job in report.jobs)
        counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        print(printable(f"jobs: {counted}; `limrank jobs list --address {there.address}` lists them"))
    else:
        print("jobs: none")
    _print_addresses(there)
    for member in there.lost():
        print(printable(f"died: {member.what} of {member.node} (process {member.identity.pid})"))
    if report.silent:
        print(printable(report.silent))
    if not report.is_well:
        print(printable(f"`limrank cluster down{_name(there.name)}` ends the rest; logs are in {there.folder}/ray"))


def _print_addresses(there: Standing) -> None:
    from limrank.cluster.local import token_file

    print(f"  jobs and dashboard  --address {there.address}")
    print(f"  drivers             RAY_ADDRESS={there.gcs}")
    print(f"  other programs      RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_file(there.folder)}")


def _name(name: str) -> str:
    return "" if name == "default" else f" --name {name}"


@contextlib.contextmanager
def _ends_with_terminal() -> Iterator[None]:
    """A closed terminal (SIGHUP) is a request to end, as SIGTERM is, except under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
