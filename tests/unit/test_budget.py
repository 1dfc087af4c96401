import asyncio
import json

import pytest

from limrank.budget import Allowance, Budget
from limrank.plan import Chunk, Plan
from limrank.receipts import Receipt
from limrank.storage import Storage

COST = 100


def receipt(chunk, tokens):
    return Receipt(chunk, 1, 1, 0, 1, tokens, 0, 0, ())


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
        return Budget(tokens, storage, plan, queue, committed)

    return made


@pytest.fixture
def told(storage):
    return lambda: json.loads(storage.read_text("allowance.json"))


def test_so_many_begin_as_are_expected_to_fit(budget, told):
    made = budget(250)
    assert told() == {"begin": 2, "closed": False}
    made.take(receipt(0, 25))  # a quarter of what was expected, and one is known: by halves, 225 are room for four
    assert told() == {"begin": 5, "closed": False}
    made.take(receipt(1, 25))  # by thirds, 200 are room for six
    assert told() == {"begin": 8, "closed": False}
    made.take(receipt(2, 25))  # by quarters, as they really are, 175 are room for seven
    assert told() == {"begin": 10, "closed": False}


def test_a_chunk_that_spent_nothing_does_not_let_all_begin(budget, told):
    """An endpoint that refuses at first: what comes later is not free."""
    made = budget(300, chunks=50)
    assert told()["begin"] == 3
    made.take(receipt(0, 0))
    assert told()["begin"] == 7
    for number in (1, 2):
        made.take(receipt(number, 100))
    assert told()["begin"] == 7  # two of them took 200, and four are at work


def test_what_is_spent_is_never_more_than_the_budget_where_chunks_take_alike(budget, told):
    made = budget(250)
    spent = 0
    for number in range(10):
        if number < told()["begin"]:
            spent += 40
            made.take(receipt(number, 40))
    assert spent == 240 and made.is_spent and told() == {"begin": 6, "closed": True}


def test_the_first_chunk_begins_whatever_it_costs(budget, told):
    made = budget(5)
    assert told() == {"begin": 1, "closed": False} and not made.is_spent
    made.take(receipt(0, 50))
    assert told() == {"begin": 1, "closed": True} and made.is_spent


def test_what_was_spent_before_counts(budget, told):
    assert budget(100, [receipt(0, 60)]).is_spent
    assert told() == {"begin": 0, "closed": True}
    assert not budget(121, [receipt(0, 60)]).is_spent
    assert told() == {"begin": 1, "closed": False}


def test_a_chunk_s_second_try_counts_once(budget):
    made = budget(150, [receipt(0, 40)])
    made.take(receipt(1, 40))
    made.take(receipt(1, 60))  # 20 more
    made.take(receipt(2, 40))
    assert made.is_spent


def test_a_budget_that_is_large_enough_is_never_spent(budget, told):
    made = budget(10_000)
    assert told() == {"begin": 10, "closed": False}
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
    made = Budget(10**9, storage, plan, plan.chunks, [])
    for number in range(1000):
        made.take(receipt(number, 100))
    assert not made.is_spent
