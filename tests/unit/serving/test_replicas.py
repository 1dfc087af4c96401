"""The engine replicas as the API calls them: spread requests, and retries after a replica's death."""

import asyncio
import time

import pytest

from helpers import virtual_time
from limrank.engines.base import Usage
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.errors import ApiError, deadline_exceeded
from limrank.serving.options import AS_RECIPE, ScoreOptions
from limrank.serving.replicas import LostReplicaError, Replicas

QUERY = Query("", "q")


class Fleet:
    """Replicas that score a text by its number after a second. ``losses`` are raised first."""

    def __init__(self, up=3, losses=(), **options):
        self.up = up
        self.calls = []
        self.losses = list(losses)
        self.cancelled = 0
        self.replicas = Replicas(self.send, lambda: self.up, **options)

    async def send(self, query, texts, options):
        self.calls.append(list(texts))
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.losses:
            raise self.losses.pop(0)
        judgments = [Judgment(text, int(text) / 1000, ScoreStatus.DIRECT) for text in texts]
        return judgments, Usage(len(texts), 10 * len(texts), 0, len(texts))

    def score(self, pairs, options=AS_RECIPE):
        return virtual_time.run(self.replicas.score(QUERY, [str(number) for number in range(pairs)], options))


def lost(*replicas):
    return [LostReplicaError(replica) for replica in replicas]


def failure(fleet, pairs=1, options=AS_RECIPE):
    with pytest.raises(ApiError) as caught:
        fleet.score(pairs, options)
    return caught.value.status, caught.value.code


def test_a_small_request_stays_on_one_replica():
    fleet = Fleet(spread_pairs=10)
    judgments, usage = fleet.score(10)
    assert len(fleet.calls) == 1
    assert [judgment.score for judgment in judgments] == [number / 1000 for number in range(10)]
    assert usage == Usage(10, 100, 0, 10)


def test_a_large_request_is_spread_and_comes_back_whole():
    fleet = Fleet(spread_pairs=10)
    judgments, usage = fleet.score(100)
    assert [len(call) for call in fleet.calls] == [33, 33, 34]
    assert [judgment.doc_id for judgment in judgments] == [str(number) for number in range(100)]
    assert usage == Usage(100, 1000, 0, 100)


@pytest.mark.parametrize(
    ("options", "fleet"),
    [
        (ScoreOptions(mode="cascade"), {"spread_pairs": 10}),
        (AS_RECIPE, {"spread_pairs": 10, "mode": "cascade"}),
        (AS_RECIPE, {}),
        (AS_RECIPE, {"spread_pairs": 10, "up": 1}),
        (AS_RECIPE, {"spread_pairs": 10, "up": None}),
    ],
)
def test_what_is_not_spread(options, fleet):
    fleet = Fleet(**fleet)
    fleet.score(100, options)
    assert len(fleet.calls) == 1


def test_a_cascade_that_asks_for_direct_is_spread():
    fleet = Fleet(spread_pairs=10, mode="cascade")
    fleet.score(100, ScoreOptions(mode="direct"))
    assert len(fleet.calls) == 3


def test_a_lost_replica_is_one_retry():
    fleet = Fleet(losses=lost("a"))
    assert len(fleet.score(5)[0]) == 5
    assert len(fleet.calls) == 2


def test_a_request_ends_two_replicas_at_most():
    fleet = Fleet(losses=lost("a", "b", "c"))
    assert failure(fleet) == (503, "engine_unavailable")
    assert len(fleet.calls) == 2


def test_a_replica_that_is_not_reached_is_tried_a_few_times():
    fleet = Fleet(losses=lost(*["a"] * 10))
    assert failure(fleet) == (503, "engine_unavailable")
    assert len(fleet.calls) == 4


def test_two_parts_that_lose_the_same_replica_are_both_sent_again():
    fleet = Fleet(spread_pairs=10, losses=lost("a", "a"))
    assert len(fleet.score(100)[0]) == 100
    assert len(fleet.calls) == 5


def test_two_parts_that_lose_two_replicas_are_not():
    fleet = Fleet(spread_pairs=10, losses=lost("a", "b"))
    assert failure(fleet, 100) == (503, "engine_unavailable")
    assert len(fleet.calls) == 3


def test_a_part_that_fails_ends_the_others():
    fleet = Fleet(spread_pairs=10)
    send = fleet.send

    async def fail_first(query, texts, options):
        if texts[0] == "0":
            raise KeyError("wrong")
        return await send(query, texts, options)

    object.__setattr__(fleet.replicas, "send", fail_first)
    with pytest.raises(KeyError, match="wrong"):
        fleet.score(100)
    assert fleet.cancelled == 2


def test_a_part_that_is_late_leaves_the_scores_of_the_others():
    fleet = Fleet(spread_pairs=10)
    fleet.losses = [deadline_exceeded()]
    judgments, usage = fleet.score(100)
    assert [judgment.status for judgment in judgments] == [ScoreStatus.SKIPPED] * 33 + [ScoreStatus.DIRECT] * 67
    assert usage.requests == 67


def test_a_request_waits_for_a_replacement():
    fleet = Fleet(up=0)

    async def replaced():
        asyncio.get_running_loop().call_later(20, setattr, fleet, "up", 1)
        return await fleet.replicas.score(QUERY, ["1"], AS_RECIPE), asyncio.get_running_loop().time()

    (judgments, _), seconds = virtual_time.run(replaced())
    assert len(judgments) == 1
    assert 21 <= seconds < 21.2


def test_it_waits_a_bounded_time():
    fleet = Fleet(up=0)
    with pytest.raises(ApiError) as caught:
        fleet.score(1)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "5"})
    assert fleet.calls == []


def test_it_waits_no_longer_than_its_deadline():
    past = ScoreOptions(deadline_s=1.0, asked_at=time.time() - 2)
    assert failure(Fleet(up=0), options=past) == (504, "deadline_exceeded")
