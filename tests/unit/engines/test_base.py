"""The sampling options, which every engine takes as keyword arguments."""

import asyncio
import dataclasses
import json

import pytest

from limrank import EngineConfig
from limrank.config import ModelConfig
from limrank.engines import open_engine
from limrank.engines.base import Sampling, SamplingOptions

SCHEMA = {"type": "object", "properties": {"relevant": {"type": "boolean"}}}


def test_the_record_has_every_option_that_a_call_may_have():
    fields = {field.name: field.default for field in dataclasses.fields(Sampling)}
    assert list(fields) == list(SamplingOptions.__annotations__)
    assert {name for name, default in fields.items() if default is dataclasses.MISSING} == {"max_tokens"}


def test_an_option_that_is_misspelt_is_refused_and_so_is_a_call_without_max_tokens():
    engine = open_engine(ModelConfig(id="any"), EngineConfig(kind="fake"))
    with pytest.raises(TypeError, match="max_token'"):
        asyncio.run(engine.generate("x", max_token=1))
    with pytest.raises(TypeError, match="max_tokens"):
        asyncio.run(engine.generate("x"))


def test_a_stream_takes_all_options_too():
    engine = open_engine(ModelConfig(id="any"), EngineConfig(kind="fake"))

    async def both():
        options = {"max_tokens": 50, "temperature": 1.0, "seed": 3, "schema": SCHEMA}
        whole = await engine.generate("x", **options)
        return whole.text, "".join([piece async for piece in engine.stream("x", **options)])

    whole, streamed = asyncio.run(both())
    assert streamed == whole
    assert list(json.loads(whole)) == ["relevant"]
