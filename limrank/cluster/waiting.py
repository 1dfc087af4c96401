"""Waiting for the resources of a pool of engines: other work may hold them, or an autoscaler has to start nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from limrank.cluster import growth
from limrank.cluster.resources import fitting
from limrank.errors import EngineError
from limrank.progress import Event, Progress

_LIMIT = "engine.startup_timeout_s"
_POLL_S = 1.0
_ANY_OF_ITS_KIND = 0.001
"""Of an accelerator's name, which is a resource, too: it says which nodes are meant."""


def wait_for_resources(
    wanted: Mapping[str, Any], timeout_s: float, replicas: int = 1, *, progress: Progress | None = None
) -> None:
    """Wait until the cluster has free resources for one replica. Other jobs may hold them, or their nodes may be
    started first: see :func:`wait_for_nodes`.

    Args:
        replicas: how many there are going to be.
        progress: says what is waited for, where an autoscaler starts nodes.

    Raises:
        EngineError: they were not free in time.
    """
    if growth.look().autoscaler:
        _wait_for_nodes(wanted, timeout_s, replicas, 1, progress, _LIMIT)
    else:
        _wait_for_others(wanted, timeout_s)


def wait_for_nodes(
    wanted: Mapping[str, Any],
    timeout_s: float,
    replicas: int,
    *,
    progress: Progress | None = None,
    limit: str = _LIMIT,
) -> None:
    """Where an autoscaler starts nodes, wait until the cluster has free resources for all replicas.

    The autoscaler is asked by a placement group. It is given back before the replicas start, since they ask for
    resources themselves.

    Args:
        progress: says what is waited for.
        limit: the key that holds ``timeout_s``, for the message.

    Raises:
        EngineError: they were not free in time.
    """
    if growth.look().autoscaler:
        _wait_for_nodes(wanted, timeout_s, replicas, replicas, progress, limit)


def free(wanted: Mapping[str, Any]) -> int:
    """How many replicas the nodes have free resources for now."""
    from ray._private.state import available_resources_per_node

    return fitting(wanted, list(available_resources_per_node().values()), 0)


def _wait_for_others(wanted: Mapping[str, Any], timeout_s: float) -> None:
    import ray
    from ray.exceptions import GetTimeoutError

    probe = ray.remote(_nothing).options(**wanted).remote()
    try:
        ray.get(probe, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(probe, force=True)
        raise EngineError(
            f"the cluster had no free resources for one worker ({dict(wanted)}) within {timeout_s:g} s "
            f"({_LIMIT}): other work holds it"
        ) from None


def _wait_for_nodes(
    wanted: Mapping[str, Any],
    timeout_s: float,
    replicas: int,
    needed: int,
    progress: Progress | None,
    limit: str,
) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = _bundle(wanted)
    there = free(wanted)
    if not bundle or there >= needed:
        return
    what = f"{replicas} × {{{', '.join(f'{name}: {amount:g}' for name, amount in bundle.items())}}}"
    group = placement_group([bundle] * replicas, strategy="PACK")
    deadline = time.monotonic() + timeout_s
    try:
        while there < needed:
            if time.monotonic() > deadline:
                raise EngineError(
                    f"waited {timeout_s:g} s ({limit}) for {what}, and the cluster has room for {there} of them: "
                    "other work holds it, or the autoscaler could not start the nodes (`ray status` says why)"
                )
            _say(progress, there, replicas, f"waiting for {what}: the autoscaler is starting nodes")
            # A group that is placed holds the resources itself, and they do not count as free.
            there = replicas if group.wait(_POLL_S) else free(wanted)
    finally:
        remove_placement_group(group)
    _say(progress, there, replicas, "")


def _say(progress: Progress | None, there: int, replicas: int, detail: str) -> None:
    if progress:
        there = min(there, replicas)
        progress.update(Event("nodes", there, replicas, "replicas", detail=detail, finished=not detail))


def _bundle(wanted: Mapping[str, Any]) -> dict[str, float]:
    """One replica's resources as those of a placement group's bundle."""
    amounts = {"CPU": wanted["num_cpus"], "GPU": wanted["num_gpus"]}
    bundle = {name: amount for name, amount in amounts.items() if amount}
    if accelerator := wanted.get("accelerator_type"):
        bundle[f"accelerator_type:{accelerator}"] = _ANY_OF_ITS_KIND
    return bundle


def _nothing() -> None:
    return None
