import asyncio
import json

import pytest

from limrank.batch.budget import Allowance, Bounds
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
def budget(storage):
    """Of so many tokens, over ten chunks of cost 100."""

    def made(tokens, committed=(), chunks=10):
        plan = Plan([Chunk(number, 1, COST, 1) for number in range(chunks)])
        done = {each.chunk for each in committed}
        queue = [chunk for chunk in plan.chunks if chunk.number not in done]
        return Bounds(tokens=tokens).budget(storage, plan, queue, committed)

    return made


@pytest.fixture
def allowance(storage):
    return lambda: json.loads(storage.read_text("allowance.json"))


def test_so_many_begin_as_are_expected_to_fit(budget, allowance):
    made = budget(250)
    assert allowance() == {"begin": 2, "closed": False}
    made.take(receipt(0, 25))  # a quarter of what was expected, and one is known: by halves, 225 are room for four
    assert allowance() == {"begin": 5, "closed": False}
    made.take(receipt(1, 25))  # by thirds, 200 are room for six
    assert allowance() == {"begin": 8, "closed": False}
    made.take(receipt(2, 25))  # by quarters, as they really are, 175 are room for seven
    assert allowance() == {"begin": 10, "closed": False}


def test_a_chunk_that_spent_nothing_does_not_let_all_begin(budget, allowance):
    """An endpoint that refuses at first: what comes later is not free."""
    made = budget(300, chunks=50)
    assert allowance()["begin"] == 3
    made.take(receipt(0, 0))
    assert allowance()["begin"] == 7
    for number in (1, 2):
        made.take(receipt(number, 100))
    assert allowance()["begin"] == 7  # two of them took 200, and four are at work


def test_what_is_spent_is_never_more_than_the_budget_where_chunks_take_alike(budget, allowance):
    made = budget(250)
    spent = 0
    for number in range(10):
        if number < allowance()["begin"]:
            spent += 40
            made.take(receipt(number, 40))
    assert spent == 240 and made.is_spent and allowance() == {"begin": 6, "closed": True}


def test_the_first_chunk_begins_whatever_it_costs(budget, allowance):
    made = budget(5)
    assert allowance() == {"begin": 1, "closed": False} and not made.is_spent
    made.take(receipt(0, 50))
    assert allowance() == {"begin": 1, "closed": True} and made.is_spent


def test_what_was_spent_before_counts(budget, allowance):
    assert budget(100, [receipt(0, 60)]).is_spent
    assert allowance() == {"begin": 0, "closed": True}
    assert not budget(121, [receipt(0, 60)]).is_spent
    assert allowance() == {"begin": 1, "closed": False}


def test_a_chunk_s_second_try_counts_once(budget):
    made = budget(150, [receipt(0, 40)])
    made.take(receipt(1, 40))
    made.take(receipt(1, 60))  # 20 more
    made.take(receipt(2, 40))
    assert made.is_spent


def test_a_budget_that_is_large_enough_is_never_spent(budget, allowance):
    made = budget(10_000)
    assert allowance() == {"begin": 10, "closed": False}
    for number in range(10):
        made.take(receipt(number, 500))
    assert not made.is_spent


def test_a_worker_waits_until_its_chunk_may_begin(budget, storage):
    async def asked():
        made = budget(150)
        allowance = Allowance(storage)
        assert await allowance.may_begin(0)
        second, last = (asyncio.ensure_future(allowance.may_begin(place)) for place in (1, 9))
        await asyncio.sleep(0.1)
        assert not second.done() and not last.done()
        made.take(receipt(0, 70))
        assert await second
        made.take(receipt(1, 70))
        assert not await last

    asyncio.run(asked())


def test_many_chunks_are_planned_for_at_once(storage):
    plan = Plan([Chunk(number, 1, COST, 1) for number in range(100_000)])
    made = Bounds(tokens=10**9, kept=10**9).budget(storage, plan, plan.chunks, [])
    for number in range(1000):
        made.take(receipt(number, 100))
    assert not made.is_spent


# ---- enough --------------------------------------------------------------------------


@pytest.fixture
def enough(storage):
    """Until so many are kept, over fifty chunks of four units that may have four each."""

    def made(kept, committed=(), tokens=None, again=()):
        plan = Plan([Chunk(number, 4, COST, 4) for number in range(50)])
        done = {each.chunk for each in committed} - set(again)
        queue = [chunk for chunk in plan.chunks if chunk.number not in done]
        return Bounds(tokens, kept, kept_a_unit=4).budget(storage, plan, queue, committed)

    return made


def test_so_many_begin_as_are_expected_to_be_needed(enough, allowance):
    made = enough(40)
    assert allowance() == {"begin": 3, "closed": False}  # if all were kept: 16, 32, 48
    made.take(receipt(0, 0, kept=4))  # a quarter of them; one is known, so by halves: 4 and 8 each, up to 44
    assert allowance() == {"begin": 6, "closed": False}
    made.take(receipt(1, 0, kept=4))  # by thirds of 16, 8 and six at work
    assert allowance() == {"begin": 8, "closed": False}
    for number in range(2, 8):
        made.take(receipt(number, 0, kept=4))
    assert allowance() == {"begin": 10, "closed": False}  # by quarters, as they really are: 32 and two at work
    for number in range(8, 10):
        made.take(receipt(number, 0, kept=4))
    assert allowance() == {"begin": 10, "closed": True} and made.is_spent


def test_chunks_that_keep_nothing_do_not_let_all_begin_at_once(enough, allowance):
    made = enough(40)
    for number in range(3):
        made.take(receipt(number, 0, kept=0))
    assert allowance()["begin"] == 13  # at least a fourth of 16 is expected of each


def test_what_was_kept_before_counts_and_a_larger_number_goes_on(enough, allowance):
    before = [receipt(number, 0, kept=8) for number in range(5)]
    assert enough(40, before).is_spent
    assert allowance() == {"begin": 0, "closed": True}
    assert not enough(48, before).is_spent
    assert allowance() == {"begin": 1, "closed": False}


def test_what_failed_is_tried_again_however_much_is_kept(enough, allowance):
    before = [receipt(0, 0, kept=40, failed=1), receipt(1, 0, kept=8)]
    made = enough(40, before, again=[0])
    assert allowance() == {"begin": 1, "closed": False}
    made.take(receipt(0, 0, kept=41))
    assert made.is_spent


def test_of_two_bounds_the_nearer_one_holds(enough, allowance):
    enough(400, tokens=3 * COST)
    assert allowance()["begin"] == 3
    enough(16, tokens=30 * COST)
    assert allowance()["begin"] == 1


def test_the_costly_chunks_are_not_the_only_ones_that_are_written_for():
    plan = Plan([Chunk(number, 1, 1000 - number, 1) for number in range(100)])
    by_cost = Bounds().order(plan.chunks[::-1], plan, [])
    assert by_cost == plan.chunks
    drawn = Bounds(kept=10, seed=1).order(plan.chunks, plan, [])
    assert sorted(chunk.number for chunk in drawn) == list(range(100)) and drawn != plan.chunks
    assert drawn == Bounds(kept=10, seed=1).order(plan.chunks[::-1], plan, [])
    assert drawn != Bounds(kept=10, seed=2).order(plan.chunks, plan, [])
    # Of the ten that begin first some are of either half.
    assert 2 <= sum(chunk.number < 50 for chunk in drawn[:10]) <= 8
    # A later session has the same order, behind what is tried again.
    again = [receipt(drawn[5].number, 0, kept=0, failed=1)]
    assert Bounds(kept=10, seed=1).order(drawn[3:], plan, again) == [drawn[5], *drawn[3:5], *drawn[6:]]
