"""A Ray cluster on this machine that stays when the command that started it ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from limrank import signals
from limrank.cluster import state
from limrank.cluster.local import FOLDER_PREFIX, LocalCluster, ask, token_file
from limrank.cluster.processes import Identity, end, of_cluster
from limrank.cluster.state import Member, Standing
from limrank.errors import EngineError, UserError


def up(name: str, nodes: int, cpus: int, gpus: int | None) -> Standing:
    """Start a cluster of raylets with these logical CPUs and GPUs each. It has no process and no file if this fails
    or is interrupted.

    Raises:
        UserError: it is there already, or the machine has fewer GPUs.
        EngineError: a node did not come up.
    """
    with state.locked():
        _make_room(name)
        with signals.deferred():
            cluster = LocalCluster.create(nodes, gpus)
        try:
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            standing = Standing(name, cluster.folder, cluster.address, cluster.gcs, nodes, started)
            state.write(standing)
            cluster.start(nodes, cpus)
            standing = replace(standing, is_up=True, members=tuple(_members(cluster)))
            state.write(standing)
        except BaseException:
            cluster.end()
            state.remove(name)
            raise
    return standing


def _make_room(name: str) -> None:
    """Remove what is left of a cluster of this name that ended without ``down``, by a reboot for example."""
    there = state.read(name)
    if there is None:
        return
    _check_here(there)
    if of_cluster(there.folder, _identities(there)):
        if not there.is_up or there.lost():
            raise UserError(f"cluster {name} is there in part: `{_command('down', name)}` ends the rest of it")
        raise UserError(f"cluster {name} is up already, at {there.address}: `{_command('status', name)}` shows it")
    _forget(there)


def _members(cluster: LocalCluster) -> Iterable[Member]:
    """The cluster's processes that have to run: each node's ``ray start`` and its children, without workers."""
    import psutil

    for node in cluster.nodes:
        if node.process.poll() is not None:
            continue  # a try that failed
        starter = psutil.Process(node.process.pid)
        for process, what in [(starter, "ray start"), *((each, _what(each)) for each in starter.children())]:
            if (identity := Identity.of(process.pid)) is not None:
                yield Member(node.name, what, identity)


def _what(process: Any) -> str:
    """What a process of Ray is called."""
    if not process.name().startswith("python"):
        return process.name()
    scripts = [word for word in process.cmdline()[1:] if word.endswith(".py") or word.startswith("ray.")]
    return Path(scripts[0]).stem if scripts else process.name()


def down(name: str) -> int | None:
    """End a cluster and remove its directory. Returns how many processes ended; None: there is none of this name.

    Raises:
        UserError: it is on another machine.
    """
    with state.locked():
        there = state.read(name)
        if there is None:
            return None
        _check_here(there)
        with signals.deferred():
            ended = end(there.folder, _identities(there))
            left = of_cluster(there.folder, _identities(there))
            if left:
                raise EngineError(f"cluster {name}: processes do not end: {', '.join(map(str, left))}")
            _forget(there)
        return ended


@dataclass(frozen=True)
class Report:
    """How a standing cluster is.

    Attributes:
        nodes: of each node its name, state and resources, as the dashboard lists them.
        jobs: the submitted jobs, as the dashboard lists them.
        silent: why the dashboard says nothing; empty: it answers.
    """

    standing: Standing
    nodes: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    silent: str = ""

    @property
    def is_well(self) -> bool:
        return self.standing.is_up and not self.standing.lost() and not self.silent


def status(name: str) -> Report | None:
    """None: there is no cluster of this name.

    Raises:
        UserError: it is on another machine.
    """
    there = state.read(name)
    if there is None:
        return None
    _check_here(there)
    token = token_file(there.folder)
    try:
        listed = ask(there.address, "/api/v0/nodes", token)["data"]["result"]["result"]
        jobs = [each for each in ask(there.address, "/api/jobs/", token) if each["submission_id"]]
        return Report(there, sorted(listed, key=lambda node: node["node_name"]), jobs)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Report(there, [], [], f"the dashboard does not answer: {error}")


def _check_here(there: Standing) -> None:
    if there.is_elsewhere():
        raise UserError(f"cluster {there.name} is on machine {there.host}: go there, or take another --name")


def _forget(there: Standing) -> None:
    if there.folder.name.startswith(FOLDER_PREFIX):
        shutil.rmtree(there.folder, ignore_errors=True)
    state.remove(there.name)


def _identities(there: Standing) -> list[Identity]:
    return [each.identity for each in there.members]


def _command(verb: str, name: str) -> str:
    return f"limrank cluster {verb}" + ("" if name == state.DEFAULT_NAME else f" --name {name}")
