"""The engine that counts: what it says it read is what a real engine would have read."""

import asyncio

import pytest

from limrank.engines.base import meter, spent_on
from limrank.engines.fake import ByteTokenizer
from limrank.errors import RowError
from limrank.sizing.counting import CountingEngine


def used(engine, *calls):
    """The usage of calls, one after the other."""

    async def run():
        with meter() as usage:
            for call in calls:
                await call(engine)
        return usage

    return asyncio.run(run())


def asks(text, **options):
    return lambda engine: engine.generate(list(text.encode()), **({"max_tokens": 1} | options))


def test_a_prefix_that_was_read_is_cached_in_whole_blocks():
    engine = CountingEngine(ByteTokenizer(), 1000, block=8)
    usage = used(engine, asks("a" * 20 + "first"), asks("a" * 20 + "second"), asks("b" * 30))
    # 20 characters in common are two blocks of eight.
    assert (usage.requests, usage.prompt, usage.cached_prompt) == (3, 25 + 26 + 30, 16)


def test_the_last_token_of_a_prompt_is_always_computed():
    engine = CountingEngine(ByteTokenizer(), 1000, block=8)
    assert used(engine, asks("a" * 16), asks("a" * 16)).cached_prompt == 8


def test_a_chain_is_as_long_as_it_may_be_unless_its_length_is_known():
    options = {"max_tokens": 50, "stop": ["</think>"]}
    assert used(CountingEngine(ByteTokenizer(), 1000, block=8), asks("a", **options)).generated == 50
    engine = CountingEngine(ByteTokenizer(), 1000, block=8, written={"chain": 0.4})
    assert used(engine, asks("a", **options)).generated == 20
    engine = CountingEngine(ByteTokenizer(), 1000, block=8, written={"chain_tokens": 30})
    # Of two lengths that are allowed, it is the same number of tokens, and never more than is allowed.
    assert used(engine, asks("a", **options)).generated == 30
    assert used(engine, asks("a", max_tokens=10, stop=["</think>"])).generated == 10


def test_a_known_length_is_of_its_step():
    engine = CountingEngine(ByteTokenizer(), 1000, block=8, written={"passage/answer": 0.1})

    async def run():
        with meter() as usage:
            with spent_on("passage"):
                await engine.generate([1, 2], max_tokens=100)
            with spent_on("query"):
                await engine.generate([1, 2], max_tokens=100)
        return usage

    steps = asyncio.run(run()).steps
    assert (steps["passage"].generated, steps["query"].generated) == (10, 100)


def test_a_chain_with_a_known_length_closes():
    engine = CountingEngine(ByteTokenizer(), 1000, block=8, written={"chain": 0.5})
    answer = asyncio.run(engine.generate([1], max_tokens=10, stop=["</think>"]))
    assert (answer.finish_reason, answer.stop) == ("stop", "</think>")
    assert (
        asyncio.run(CountingEngine(ByteTokenizer(), 1000, block=8).generate([1], max_tokens=10)).finish_reason
        == "length"
    )


def test_a_prompt_that_does_not_fit_fails_as_in_a_run():
    with pytest.raises(RowError, match="exceed the context of 10"):
        asyncio.run(CountingEngine(ByteTokenizer(), 10, block=8).generate([1] * 10, max_tokens=1))
