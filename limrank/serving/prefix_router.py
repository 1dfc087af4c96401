"""Ray Serve's request router for engine replicas, see :mod:`limrank.serving.routing`.

Serve pickles this module by value, so it must hold no state: that is in ``routing.ROUTING``. Serve's own
``ConsistentHashRouter`` was not enough: it leaves a replica only when that refuses a request, so a hot query would queue
on one replica while others are idle, and it counts requests where we need pairs.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any
from weakref import WeakKeyDictionary

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from limrank.serving import routing


class PrefixRouter(RequestRouter):
    """Routes a request by its ``session_id``, which is a :func:`~limrank.serving.routing.prefix_key`, and by the number
    of its texts, its second argument."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._routed: WeakKeyDictionary[asyncio.Task[Any], PendingRequest] = WeakKeyDictionary()
        self._promised: dict[int, tuple[str, int]] = {}
        self._sent: defaultdict[tuple[str, str], list[int]] = defaultdict(list)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._publish()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._publish()

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_unavailable(replica_id)
        routing.ROUTING.suspect(replica_id.unique_id)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        self._routed[asyncio.current_task()] = pending_request
        pending_request.routing_context.should_backoff = True  # after all have refused
        self._take_back(pending_request)
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        order = routing.ROUTING.order(pending_request.metadata.session_id, _pairs(pending_request))
        # Another handle of this process may know other replicas.
        names = [*(name for name in order if name in by_id), *(name for name in by_id if name not in order)]
        if names:
            self._promise(pending_request, names[0])
        return [[by_id[name]] for name in names]

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Gives the replica to the request that it was chosen for. Serve would look for it by the id of the HTTP
        request, which all parts of a spread request share."""
        pending = self._routed.get(asyncio.current_task())
        if pending is None or pending.future.done():
            return
        name = replica.replica_id.unique_id
        self._take_back(pending)
        self._promise(pending, name)
        self._sent[name, pending.metadata.internal_request_id].append(self._promised.pop(id(pending))[1])
        self._record_queue_wait_time(pending)
        pending.future.set_result(replica)
        self._remove_pending_request_from_indices(pending)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        try:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except asyncio.CancelledError:
            self._take_back(pending_request)
            future = pending_request.future
            if future.done() and not future.cancelled():  # it had a replica, and is not sent to it
                self.on_request_completed(future.result().replica_id, pending_request.metadata.internal_request_id)
            raise

    def _promise(self, pending: PendingRequest, name: str) -> None:
        """Counts a request for a replica at once: Serve may ask the replica for its queue first, and other requests
        are routed meanwhile."""
        self._promised[id(pending)] = name, _pairs(pending)
        routing.ROUTING.sent(name, pending.metadata.session_id, _pairs(pending))

    def _take_back(self, pending: PendingRequest) -> None:
        if promised := self._promised.pop(id(pending), None):
            routing.ROUTING.finished(*promised)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        key = (replica_id.unique_id, internal_request_id)
        sent = self._sent.get(key)
        if not sent:
            return
        routing.ROUTING.finished(replica_id.unique_id, sent.pop())
        if not sent:
            del self._sent[key]

    def _publish(self) -> None:
        routing.ROUTING.update([replica_id.unique_id for replica_id in self._replica_id_set])


def _pairs(pending: PendingRequest) -> int:
    """The pairs of a request; 0 for a call that scores nothing."""
    return len(pending.args[1]) if len(pending.args) > 1 else 0
