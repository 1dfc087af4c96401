"""A large request in parts."""

import asyncio

import pytest

from helpers import virtual_time
from limrank.serving.spreading import parts, together


@pytest.mark.parametrize(
    ("pairs", "most", "replicas", "lengths"),
    [
        (100, 100, 4, [100]),
        (101, 100, 4, [50, 51]),
        (1000, 100, 4, [250] * 4),
        (1000, 100, 20, [100] * 10),
        (10, 3, 3, [3, 3, 4]),
        (1000, None, 4, [1000]),
        (1000, 100, 1, [1000]),
        (1000, 100, 0, [1000]),
        (1000, 100, None, [1000]),
        (3, 1, 8, [1, 1, 1]),
        (0, 1, 8, [0]),
    ],
)
def test_parts(pairs, most, replicas, lengths):
    found = parts(pairs, most, replicas)
    assert [each.stop - each.start for each in found] == lengths
    assert [number for each in found for number in range(pairs)[each]] == list(range(pairs))


def test_results_keep_the_order_of_the_calls():
    async def after(seconds):
        await asyncio.sleep(seconds)
        return seconds

    assert virtual_time.run(together([after(3), after(1), after(2)])) == [3, 1, 2]


def test_the_first_failure_ends_the_others():
    ended = []

    async def fail():
        await asyncio.sleep(1)
        raise KeyError("first")

    async def wait():
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            ended.append(asyncio.get_running_loop().time())
            raise

    with pytest.raises(KeyError, match="first"):
        virtual_time.run(together([wait(), fail(), wait()]))
    assert ended == [1, 1]


def test_a_cancelled_caller_ends_all():
    ended = []

    async def wait():
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(True)

    async def main():
        task = asyncio.create_task(together([wait(), wait()]))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtual_time.run(main())
    assert ended == [True, True]
