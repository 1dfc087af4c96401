"""A server's backend without a cluster."""

import asyncio
from contextlib import aclosing

from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import open_engine
from limrank.serving.errors import engine_unavailable
from limrank.serving.options import AS_RECIPE, score_request, stream_request


class EngineBackend:
    """The fake engine, without a cluster. ``gate`` holds requests back, ``dead`` fails them."""

    recipe = ScoringConfig()

    def __init__(self, **engine):
        self.engine = open_engine(ModelConfig(), EngineConfig(kind="fake", **engine))
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.dead = False

    async def score(self, query, texts, options=AS_RECIPE):
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.dead:
            raise engine_unavailable()
        return await score_request(query, texts, options, self.engine, self.recipe)

    async def stream(self, query, texts, options=AS_RECIPE):
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.dead:
            raise engine_unavailable()
        async with aclosing(stream_request(query, texts, options, self.engine, self.recipe)) as updates:
            async for update in updates:
                yield update

    async def healthy(self):
        return not self.dead
