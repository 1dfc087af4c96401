"""The node types of a cluster that grows: what Ray's autoscaler may start, and the nodes that a cluster can become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limrank.errors import UserError
from limrank.files import opened
from limrank.parsing import LARGEST_YAML, brief, parse_yaml

DEFAULT_MAX_WORKERS = 2
"""Ray's own, for a file that does not say ``max_workers``."""

MOST_NODES = 2_000
"""Nodes that are looked at. A type without a maximum counts as this many."""


@dataclass(frozen=True)
class NodeType:
    """A kind of node, as Ray's autoscaler knows it.

    Attributes:
        resources: what a node of it has, as Ray names it (``CPU``, ``GPU``, ``memory`` in bytes,
            ``accelerator_type:H100``); None where only the cloud knows.
        min_workers: workers that are always there.
        max_workers: the most workers.
        head: the head is of this type, one node besides the workers.
    """

    name: str
    resources: Mapping[str, float] | None
    min_workers: int
    max_workers: int
    head: bool = False


def from_cluster_file(file: str | Path | Mapping[str, Any]) -> list[NodeType]:
    """The node types of Ray's cluster-launcher YAML, or of an autoscaling config, which has the same form.

    A type has at most the workers that the whole file allows. ``resources: {}`` beside a ``node_config`` is left to
    the cloud, and so is unknown.

    Raises:
        UserError: it cannot be read, or has no ``available_node_types``.
    """
    values, where = _read(file)
    types, head = values.get("available_node_types"), values.get("head_node_type")
    if not isinstance(types, dict) or not types or not all(isinstance(each, dict) for each in types.values()):
        raise UserError(f"{where}: has no available_node_types, so its nodes are not known")
    if head not in types:
        raise UserError(f"{where}: head_node_type {brief(head)} is not one of {sorted(types)}")
    most = _max_workers(values, where)
    return [_node_type(name, given, where, most, name == head) for name, given in types.items()]


def max_workers_of(file: str | Path | Mapping[str, Any]) -> int:
    """The most workers of all types together, the head not counted.

    Raises:
        UserError: the file cannot be read, or the number is none.
    """
    return _max_workers(*_read(file))


def most_nodes(
    types: Iterable[NodeType], max_workers: int, fits: Callable[[Mapping[str, float]], float] | None = None
) -> list[dict[str, float]]:
    """The resources of the nodes that a cluster can become: the head, the workers that are always there, and the
    others, as many as ``max_workers`` allows and at most :data:`MOST_NODES`.

    Nodes of unknown resources are left out: see :func:`unknown`.

    Args:
        max_workers: the most workers of all types together.
        fits: the types that it gives the most are started first; None: those with the most GPUs, then CPUs.
    """
    known = [(each, each.resources) for each in types if each.resources is not None]
    nodes = [dict(resources) for each, resources in known if each.head]
    nodes += [dict(resources) for each, resources in known for _ in range(min(each.min_workers, MOST_NODES))]
    left = max_workers - sum(each.min_workers for each, _ in known)
    for each, resources in sorted(known, key=lambda pair: _size(pair[1], fits), reverse=True):
        count = max(0, min(each.max_workers - each.min_workers, left, MOST_NODES - len(nodes)))
        nodes += [dict(resources) for _ in range(count)]
        left -= count
    return nodes


def unknown(types: Iterable[NodeType]) -> list[str]:
    """The names of the types that the cluster may have and whose resources only the cloud knows."""
    return [each.name for each in types if each.resources is None and (each.head or each.max_workers > 0)]


def describe(types: Sequence[NodeType], max_workers: int) -> str:
    """``head 2 CPUs 0 GPUs, 0 to 4 × gpu 8 CPUs 1 GPUs, at most 4 workers``"""
    parts = [f"head {_named(each)}" for each in types if each.head]
    parts += [f"{each.min_workers} to {each.max_workers} × {_named(each)}" for each in types if each.max_workers > 0]
    return ", ".join([*parts, f"at most {max_workers} workers"])


def _named(each: NodeType) -> str:
    if each.resources is None:
        return f"{each.name} (unknown resources)"
    return f"{each.name} {each.resources.get('CPU', 0):g} CPUs {each.resources.get('GPU', 0):g} GPUs"


def _size(resources: Mapping[str, float], fits: Callable[[Mapping[str, float]], float] | None) -> tuple[float, ...]:
    own = tuple(resources.get(kind, 0.0) for kind in ("GPU", "CPU", "memory"))
    return (fits(resources), *own) if fits else own


def _read(file: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The values, and their source for messages."""
    if isinstance(file, Mapping):
        return file, "the autoscaling config"
    with opened(file, what="cluster file") as stream:
        return parse_yaml(stream.read(LARGEST_YAML + 1), str(file), expect=dict), str(file)


def _node_type(name: str, given: Mapping[str, Any], where: str, most: int, head: bool) -> NodeType:
    resources = given.get("resources") or {}
    if not isinstance(resources, dict) or not all(_is_number(value) for value in resources.values()):
        raise UserError(f"{where}: available_node_types.{name}.resources {brief(resources)}: not numbers by name")
    known = bool(resources) or not given.get("node_config")
    fewest = _count(given.get("min_workers"), 0, f"{where}: available_node_types.{name}.min_workers")
    own = _count(given.get("max_workers"), 0 if head else most, f"{where}: available_node_types.{name}.max_workers")
    whole = {kind: float(value) for kind, value in resources.items()} if known else None
    return NodeType(name, whole, fewest, min(own, most), head)


def _max_workers(values: Mapping[str, Any], where: str) -> int:
    return _count(values.get("max_workers"), DEFAULT_MAX_WORKERS, f"{where}: max_workers")


def _count(value: Any, otherwise: int, what: str) -> int:
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{what} {brief(value)}: not a number of nodes")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
