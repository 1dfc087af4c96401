"""Which engine replica gets a request: the one whose KV cache has the beginning of its prompts, unless it has too much
to do.

All prompts of a query begin with the same text, so an engine that has scored a query has that prefix cached. A new query
goes to the replica with the least to do. A query that was seen before goes where it was scored last, within the bound of
consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016, arXiv:1608.01350): a replica may have
:data:`BALANCE` times the mean load. Load is counted in pairs.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Collection

from limrank.records import Query

BALANCE = 1.25

_REMEMBERED = 10_000
"""Queries whose replicas are remembered. A KV cache holds fewer."""

_KEY = os.urandom(16)


def prefix_key(query: Query) -> str:
    """A hash of what the prompts of a query have in common. The key of the hash is the process's own, so nobody can
    tell from a logged hash which query it was."""
    shared = "\0".join((query.text, query.instruction, query.template))
    return hashlib.blake2b(shared.encode(errors="replace"), key=_KEY, digest_size=16).hexdigest()


class Routing:
    """The load of each replica, and the queries that each has seen. Replicas are known by their ids.

    Attributes:
        up: replicas that take requests; None: nobody has said yet.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self.up: int | None = None
        self._loads: dict[str, int] = {}
        self._replicas: frozenset[str] = frozenset()
        self._suspected: set[str] = set()
        self._seen: OrderedDict[str, list[str]] = OrderedDict()
        self._remembered = remembered

    def update(self, replicas: Collection[str]) -> None:
        """Takes the replicas that are up."""
        self._replicas = frozenset(replicas)
        self._suspected.clear()
        self.up = len(self._replicas)

    def suspect(self, replica: str) -> None:
        """A replica does not answer: others come first until the next :meth:`update`."""
        self._suspected.add(replica)

    def order(self, prefix: str, pairs: int) -> list[str]:
        """The replicas for a request, best first. ``prefix`` is empty where it has none."""
        by_load = sorted(
            self._replicas, key=lambda each: (each in self._suspected, self.load(each), _tie(prefix, each))
        )
        for replica in self._seen.get(prefix, ()):
            if replica in self._replicas and replica not in self._suspected and self._has_room(replica, pairs):
                return [replica, *(each for each in by_load if each != replica)]
        return by_load

    def load(self, replica: str) -> int:
        """Pairs that a replica has, of the requests sent from here."""
        return self._loads.get(replica, 0)

    def sent(self, replica: str, prefix: str, pairs: int) -> None:
        """Counts a request that a replica gets."""
        self._loads[replica] = self.load(replica) + pairs
        if not prefix:
            return
        others = [each for each in self._seen.pop(prefix, ()) if each != replica and each in self._replicas]
        self._seen[prefix] = [replica, *others]
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)

    def finished(self, replica: str, pairs: int) -> None:
        """Takes a request off again, whatever became of it."""
        left = self.load(replica) - pairs
        if left > 0:
            self._loads[replica] = left
        else:
            self._loads.pop(replica, None)

    def _has_room(self, replica: str, pairs: int) -> bool:
        load = self.load(replica)
        if not load:
            return True
        total = sum(self.load(each) for each in self._replicas)
        return load + pairs <= BALANCE * (total + pairs) / len(self._replicas)


def _tie(prefix: str, replica: str) -> bytes:
    """Orders replicas of the same load differently for each prefix, and always so for one."""
    return hashlib.blake2b(f"{prefix}\0{replica}".encode(), digest_size=8).digest()


ROUTING = Routing()
"""The engine replicas as this process sees them. Every handle of the process adds to it."""
