import asyncio
import json

import pytest

from limrank.batch.budget import Budget, StartGate
from limrank.batch.plan import Chunk, Plan
from limrank.batch.receipts import Receipt
from limrank.storage import Storage

COST = 100


def receipt(chunk, tokens, kept=None, failed=0):
    return Receipt(chunk, 1, 1, failed, 1, tokens, 0, 0, (), kept=kept)


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


@pytest.fixture
def scheduler(storage):
    """Of so many tokens, over ten chunks of cost 100."""

    def made(tokens, committed=(), chunks=10):
        plan = Plan([Chunk(number, 1, COST, 1) for number in range(chunks)])
        done = {each.chunk for each in committed}
        queue = [chunk for chunk in plan.chunks if chunk.number not in done]
        return Budget(tokens=tokens).scheduler(storage, plan, queue, committed)

    return made


@pytest.fixture
def allowance(storage):
    return lambda: json.loads(storage.read_text("allowance.json"))


def test_so_many_begin_as_are_expected_to_fit(scheduler, allowance):
    made = scheduler(250)
    assert allowance() == {"begin": 2, "closed": False}
    made.commit(receipt(0, 25))  # a quarter of what was expected, and one is known: by halves, 225 are enough for four
    assert allowance() == {"begin": 5, "closed": False}
    made.commit(receipt(1, 25))  # by thirds, 200 are enough for six
    assert allowance() == {"begin": 8, "closed": False}
    made.commit(receipt(2, 25))  # by quarters, as they really are, 175 are enough for seven
    assert allowance() == {"begin": 10, "closed": False}


def test_a_chunk_that_spent_nothing_does_not_let_all_begin(scheduler, allowance):
    """An endpoint that refuses at first: what comes later is not free."""
    made = scheduler(300, chunks=50)
    assert allowance()["begin"] == 3
    made.commit(receipt(0, 0))
    assert allowance()["begin"] == 7
    for number in (1, 2):
        made.commit(receipt(number, 100))
    assert allowance()["begin"] == 7  # two of them took 200, and four are at work


def test_what_is_spent_is_never_more_than_the_budget_where_chunks_take_alike(scheduler, allowance):
    made = scheduler(250)
    spent = 0
    for number in range(10):
        if number < allowance()["begin"]:
            spent += 40
            made.commit(receipt(number, 40))
    assert spent == 240 and made.is_exhausted and allowance() == {"begin": 6, "closed": True}


def test_the_first_chunk_begins_whatever_it_costs(scheduler, allowance):
    made = scheduler(5)
    assert allowance() == {"begin": 1, "closed": False} and not made.is_exhausted
    made.commit(receipt(0, 50))
    assert allowance() == {"begin": 1, "closed": True} and made.is_exhausted


def test_what_was_spent_before_counts(scheduler, allowance):
    assert scheduler(100, [receipt(0, 60)]).is_exhausted
    assert allowance() == {"begin": 0, "closed": True}
    assert not scheduler(121, [receipt(0, 60)]).is_exhausted
    assert allowance() == {"begin": 1, "closed": False}


def test_a_chunk_s_retry_counts_once(scheduler):
    made = scheduler(150, [receipt(0, 40)])
    made.commit(receipt(1, 40))
    made.commit(receipt(1, 60))  # 20 more
    made.commit(receipt(2, 40))
    assert made.is_exhausted


def test_a_budget_that_is_large_enough_is_never_spent(scheduler, allowance):
    made = scheduler(10_000)
    assert allowance() == {"begin": 10, "closed": False}
    for number in range(10):
        made.commit(receipt(number, 500))
    assert not made.is_exhausted


def test_a_worker_waits_until_its_chunk_may_start(scheduler, storage):
    async def asked():
        made = scheduler(150)
        gate = StartGate(storage)
        assert await gate.may_start(0)
        second, last = (asyncio.ensure_future(gate.may_start(position)) for position in (1, 9))
        await asyncio.sleep(0.1)
        assert not second.done() and not last.done()
        made.commit(receipt(0, 70))
        assert await second
        made.commit(receipt(1, 70))
        assert not await last

    asyncio.run(asked())


def test_many_chunks_are_planned_for_at_once(storage):
    plan = Plan([Chunk(number, 1, COST, 1) for number in range(100_000)])
    made = Budget(tokens=10**9, kept=10**9).scheduler(storage, plan, plan.chunks, [])
    for number in range(1000):
        made.commit(receipt(number, 100))
    assert not made.is_exhausted


# ---- enough --------------------------------------------------------------------------


@pytest.fixture
def enough(storage):
    """Until so many are kept, over fifty chunks of four units that may have four each."""

    def made(kept, committed=(), tokens=None, retried=()):
        plan = Plan([Chunk(number, 4, COST, 4) for number in range(50)])
        done = {each.chunk for each in committed} - set(retried)
        queue = [chunk for chunk in plan.chunks if chunk.number not in done]
        return Budget(tokens, kept, kept_a_unit=4).scheduler(storage, plan, queue, committed)

    return made


def test_so_many_begin_as_are_expected_to_be_needed(enough, allowance):
    made = enough(40)
    assert allowance() == {"begin": 3, "closed": False}  # if all were kept: 16, 32, 48
    made.commit(receipt(0, 0, kept=4))  # a quarter of them; one is known, so by halves: 4 and 8 each, up to 44
    assert allowance() == {"begin": 6, "closed": False}
    made.commit(receipt(1, 0, kept=4))  # by thirds of 16, 8 and six at work
    assert allowance() == {"begin": 8, "closed": False}
    for number in range(2, 8):
        made.commit(receipt(number, 0, kept=4))
    assert allowance() == {"begin": 10, "closed": False}  # by quarters, as they really are: 32 and two at work
    for number in range(8, 10):
        made.commit(receipt(number, 0, kept=4))
    assert allowance() == {"begin": 10, "closed": True} and made.is_exhausted


def test_chunks_that_keep_nothing_do_not_let_all_begin_at_once(enough, allowance):
    made = enough(40)
    for number in range(3):
        made.commit(receipt(number, 0, kept=0))
    assert allowance()["begin"] == 13  # at least a fourth of 16 is expected of each


def test_what_was_kept_before_counts_and_a_larger_number_goes_on(enough, allowance):
    before = [receipt(number, 0, kept=8) for number in range(5)]
    assert enough(40, before).is_exhausted
    assert allowance() == {"begin": 0, "closed": True}
    assert not enough(48, before).is_exhausted
    assert allowance() == {"begin": 1, "closed": False}


def test_what_failed_is_retried_however_much_is_kept(enough, allowance):
    before = [receipt(0, 0, kept=40, failed=1), receipt(1, 0, kept=8)]
    made = enough(40, before, retried=[0])
    assert allowance() == {"begin": 1, "closed": False}
    made.commit(receipt(0, 0, kept=41))
    assert made.is_exhausted


def test_of_two_limits_the_nearer_one_holds(enough, allowance):
    enough(400, tokens=3 * COST)
    assert allowance()["begin"] == 3
    enough(16, tokens=30 * COST)
    assert allowance()["begin"] == 1


def test_the_costly_chunks_are_not_the_only_ones_that_are_written_for():
    plan = Plan([Chunk(number, 1, 1000 - number, 1) for number in range(100)])
    by_cost = Budget().order(plan.chunks[::-1], plan, [])
    assert by_cost == plan.chunks
    drawn = Budget(kept=10, seed=1).order(plan.chunks, plan, [])
    assert sorted(chunk.number for chunk in drawn) == list(range(100)) and drawn != plan.chunks
    assert drawn == Budget(kept=10, seed=1).order(plan.chunks[::-1], plan, [])
    assert drawn != Budget(kept=10, seed=2).order(plan.chunks, plan, [])
    # Of the ten that begin first some are of either half.
    assert 2 <= sum(chunk.number < 50 for chunk in drawn[:10]) <= 8
    # A later session has the same order, behind what is retried.
    retried = [receipt(drawn[5].number, 0, kept=0, failed=1)]
    assert Budget(kept=10, seed=1).order(drawn[3:], plan, retried) == [drawn[5], *drawn[3:5], *drawn[6:]]
