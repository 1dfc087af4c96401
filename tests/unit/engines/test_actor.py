import asyncio

import pytest

from limrank.config import EngineConfig, ModelConfig
from limrank.engines import EngineSpec
from limrank.engines import actor as served


def test_a_host_whose_engine_did_not_open_ends_at_its_first_request(monkeypatch):
    """Ray started it again, and nobody asks whether it is ready: were it to live on and fail
    every request at once, it would always be the one with the fewest."""

    def ended(code):
        raise SystemExit(code)

    monkeypatch.setattr(served.os, "_exit", ended)
    host = served.EngineHost(EngineSpec(ModelConfig(id="fake"), EngineConfig(kind="fake", fail_start=True)))
    with pytest.raises(SystemExit):
        asyncio.run(host.generate("prompt", {"max_tokens": 1}))
    with pytest.raises(SystemExit):
        asyncio.run(host.label_logprobs("prompt", [" true", " false"]))
