"""``limrank doctor --address``: whether every node of a cluster can do its part, and what to type where it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.cluster import connect, job_client
from limrank.cluster.addresses import CALL_S, check_dashboard, within
from limrank.cluster.dashboard import NO_ANSWER
from limrank.config import RERANKER, is_uri
from limrank.diagnostics.doctor import Finding
from limrank.diagnostics.probe import MARK, PACKAGES, examine_nodes
from limrank.errors import EngineError, UserError, first_line
from limrank.parsing import without_credentials
from limrank.uris import credentials_in, redacted

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PACKAGE = Path(__file__).parents[1]

_JOB_S = 600.0
"""Time limit of the job that looks at the nodes."""

_SKEW_S = 2.0
"""Most that clocks may differ by: times in logs and receipts are compared in seconds."""

_LEAST_MEMORY, _LEAST_DISK = 4 << 30, 2 << 30

_FULLEST_DISK = 0.95
"""Ray starts nothing on a node whose disk is fuller (``RAY_local_fs_capacity_threshold``)."""

_NAMED = 3
"""Most nodes that a line names."""

_GIB = 2**30

Nodes = Mapping[str, Mapping[str, Any]]


def examine_cluster(address: str, storage: str | None) -> list[Finding]:
    """Every check of every node.

    Args:
        address: ``auto``, ``HOST:PORT`` of the head, or ``http://HOST:8265``. With the last one a job on the cluster
            looks, else this process does, which has to be on a node.
        storage: a directory or URI for run directories, tried from every node; None: none is.

    Raises:
        UserError: no cluster is there, or the storage holds credentials.
        EngineError: the job did not run.
    """
    without_credentials(address, "--address")
    if address == "local":
        raise UserError("--address local: `limrank doctor` without it looks at this machine")
    if storage and (secret := credentials_in(storage)):
        raise UserError(f"--storage: holds credentials ({secret}); put them into the environment of the nodes")
    if storage and not is_uri(storage):
        storage = os.path.abspath(storage)
    if address.startswith(("http://", "https://")):
        found = _by_job(job_client(address), address, storage)
        dashboard = Finding("dashboard", f"it answers at {address}")
    else:
        with connect(address):
            found = examine_nodes(storage)
        dashboard = _dashboard(found["dashboard"])
    return [*judge(found["nodes"], storage), dashboard]


def _by_job(client: JobSubmissionClient, address: str, storage: str | None) -> dict[str, Any]:
    """What a job on the cluster finds. It brings the package."""
    words = ["python", "-m", "limrank.diagnostics.probe", *([storage] if storage else [])]
    package = {"py_modules": [str(_PACKAGE)]}
    job = f"doctor-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    details = {"entrypoint": shlex.join(words), "runtime_env": package, "metadata": {"limrank": "doctor"}}
    try:
        within(_JOB_S, lambda: client.submit_job(submission_id=job, **details))
    except NO_ANSWER as error:
        raise EngineError(f"the cluster takes no job: {first_line(error)}") from error
    try:
        _wait(client, job, address)
        log = within(CALL_S, lambda: client.get_job_logs(job)).splitlines()
        message = within(CALL_S, lambda: client.get_job_info(job)).message
    except NO_ANSWER as error:
        raise EngineError(f"job {job}: the dashboard does not answer any more: {first_line(error)}") from error
    for line in log:
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    last = next((line for line in reversed(log) if line.strip()), "") or message
    raise EngineError(f"job {job} did not look at the nodes: {last}")


def _wait(client: JobSubmissionClient, job: str, address: str) -> None:
    """Wait for the job's end. It is stopped where that does not come."""
    deadline = time.monotonic() + _JOB_S
    try:
        while not within(CALL_S, lambda: client.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                logs = f"`limrank jobs logs {job} --address {address}` shows why"
                raise EngineError(f"job {job} has not ended within {_JOB_S:g} s: {logs}")
            time.sleep(0.5)
    except BaseException:
        with contextlib.suppress(*NO_ANSWER):
            within(CALL_S, lambda: client.stop_job(job))
        raise


def _dashboard(place: str) -> Finding:
    fix = "`ray start --head` with the extra ray[default] starts it; without it no job can be submitted"
    if not place:
        return Finding("dashboard", "there is none", True, fix)
    try:
        check_dashboard(f"http://{place}")
    except UserError as error:
        return Finding("dashboard", str(error).removeprefix("--address "), True, fix, mark="failed")
    return Finding("dashboard", f"it answers at http://{place}")


def judge(found: Nodes, storage: str | None) -> list[Finding]:
    """The findings of what the nodes say (:func:`limrank.diagnostics.probe.examine_nodes`), in the order in which to
    fix them."""
    silent = {name: node["error"] for name, node in found.items() if "error" in node}
    nodes = {name: node for name, node in found.items() if name not in silent}
    findings = [_answers(nodes, silent)]
    if not nodes:
        return findings
    findings += [_versions(name, nodes) for name in ("python", *PACKAGES)]
    findings.append(_model(nodes))
    if storage is not None:
        findings.append(_storage(nodes, redacted(storage)))
    return [*findings, _gpus(nodes), _clock(nodes), _ports(nodes), _memory(nodes), _disk(nodes)]


def _answers(nodes: Nodes, silent: Mapping[str, str]) -> Finding:
    if not silent:
        return Finding("nodes", f"{len(nodes)} answer: {_names(nodes)}")
    reasons = "; ".join(f"{name}: {silent[name]}" for name in list(silent)[:_NAMED])
    fix = "read the raylet's log there (/tmp/ray/session_latest/logs), and start the node again"
    return _failed("nodes", f"{len(silent)} of {len(silent) + len(nodes)} do not answer: {reasons}", fix)


def _versions(package: str, nodes: Nodes) -> Finding:
    groups = _grouped(nodes, lambda node: node["versions"][package])
    if len(groups) > 1:
        state = ", ".join(f"{version or 'none'} ({_names(names)})" for version, names in groups.items())
        return _failed(package, f"differs: {state}", "install the same version on every node")
    if None in groups:
        return Finding(package, "not installed", True, "on every node: pip install 'limrank[cuda]', or [cpu]")
    return Finding(package, f"{next(iter(groups))} on all nodes")


def _model(nodes: Nodes) -> Finding:
    groups = _grouped(nodes, lambda node: node["model"])
    if broken := {reason: names for reason, names in groups.items() if reason not in ("fetched", "not fetched")}:
        reason, names = next(iter(broken.items()))
        return _failed("model", f"{_names(names)}: {reason}", "on every node: pip install limrank and its extras")
    if missing := groups.get("not fetched"):
        fix = f"there: limrank models fetch {RERANKER}; or the first job fetches it, or model.id is a path that all see"
        return Finding("model", f"{RERANKER} is not fetched on {_names(missing)}", fix=fix)
    return Finding("model", f"{RERANKER} is fetched on all nodes")


def _storage(nodes: Nodes, storage: str) -> Finding:
    if unwritable := _grouped(nodes, lambda node: node["unwritable"]).keys() - {""}:
        reason = sorted(unwritable)[0]
        names = [name for name, node in nodes.items() if node["unwritable"] == reason]
        fix = "make it on a disk that all nodes mount, or take s3:// and give the nodes its credentials"
        return _failed("storage", f"{storage}: {_names(names)} cannot write: {reason}", fix)
    if blind := {name: node["unseen"] for name, node in nodes.items() if node["unseen"]}:
        name, others = next(iter(blind.items()))
        fix = "take a directory that all nodes mount, or s3://"
        return _failed("storage", f"{storage}: {name} does not see what {_names(others)} wrote", fix)
    return Finding("storage", f"{storage}: all nodes write, and see what the others wrote")


def _gpus(nodes: Nodes) -> Finding:
    for name, node in nodes.items():
        seen, counted = node["torch_gpus"], node["ray_gpus"]
        if isinstance(seen, str) or seen != counted:
            fix = "check nvidia-smi and torch's CUDA build there, and start the node with the right --num-gpus"
            return _failed("gpus", f"{name}: Ray counts {counted:g}, torch sees {seen}", fix)
    whole = sum(node["ray_gpus"] for node in nodes.values())
    return Finding("gpus", f"{whole:g}; Ray and torch agree on all nodes" if whole else "none: the CPU path is used")


def _clock(nodes: Nodes) -> Finding:
    clocks = {name: node["clock"] for name, node in nodes.items() if node["clock"]}
    if not clocks:
        return _failed("clock", "no node told its time", "read the nodes' logs")
    behind, ahead = min(clocks, key=lambda name: clocks[name][0]), max(clocks, key=lambda name: clocks[name][0])
    apart = clocks[ahead][0] - clocks[behind][0]
    within_s = clocks[ahead][1] + clocks[behind][1]
    state = f"they differ by {apart:.3f} s at most (measured within {within_s:.3f} s)"
    if apart - within_s > _SKEW_S:
        return _failed("clock", f"{state}: {ahead} is ahead of {behind}", "run chrony or ntpd on every node")
    return Finding("clock", state)


def _ports(nodes: Nodes) -> Finding:
    if shut := {name: node["unreachable"] for name, node in nodes.items() if node["unreachable"]}:
        name, places = next(iter(shut.items()))
        fix = "let the nodes reach each other on all ports, or fix Ray's ports (`ray start --node-manager-port …`)"
        return _failed("ports", f"{name} does not reach {places[0]}", fix)
    return Finding("ports", "every node reaches the head and each other's raylet")


def _memory(nodes: Nodes) -> Finding:
    free = {name: node["memory"] for name, node in nodes.items() if node["memory"] is not None}
    if not free:
        return _failed("memory", "psutil is not installed", "on every node: pip install limrank and its extras")
    least = min(free, key=lambda name: free[name])
    state = f"{free[least] / _GIB:.0f} GiB free, the least of the nodes ({least})"
    if free[least] < _LEAST_MEMORY:
        return _failed("memory", state, "a node needs 4 GiB for the packaged model")
    return Finding("memory", state)


def _disk(nodes: Nodes) -> Finding:
    least = min(nodes, key=lambda name: nodes[name]["disk"]["free"])
    fullest = max(nodes, key=lambda name: _used(nodes[name]["disk"]))
    state = f"{nodes[least]['disk']['free'] / _GIB:.0f} GiB free for Ray's files, the least of the nodes ({least})"
    if _used(nodes[fullest]["disk"]) >= _FULLEST_DISK:
        state = f"{fullest} is {_used(nodes[fullest]['disk']):.0%} full, and Ray starts nothing there"
        return _failed("disk", state, "make room, or start the node with --temp-dir on another disk")
    if nodes[least]["disk"]["free"] < _LEAST_DISK:
        return _failed("disk", state, "make room, or start the node with --temp-dir on another disk")
    return Finding("disk", state)


def _used(disk: Mapping[str, int]) -> float:
    """Share of a disk that is taken."""
    return 1 - disk["free"] / disk["total"]


def _grouped(nodes: Nodes, value: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[str]]:
    """The names of the nodes by what they say."""
    groups: dict[Any, list[str]] = {}
    for name, node in nodes.items():
        groups.setdefault(value(node), []).append(name)
    return groups


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _failed(name: str, state: str, fix: str) -> Finding:
    return Finding(name, state, True, fix, mark="failed")
