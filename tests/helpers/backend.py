"""A server's backend without a cluster."""

import asyncio

from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import open_engine
from limrank.scoring import score_query
from limrank.serving.errors import engine_unavailable
from limrank.serving.types import to_candidates


class EngineBackend:
    """The fake engine, without a cluster. ``gate`` holds requests back, ``dead`` fails them."""

    def __init__(self, **engine):
        self.engine = open_engine(ModelConfig(), EngineConfig(kind="fake", **engine))
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.dead = False

    async def score(self, query, texts):
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.dead:
            raise engine_unavailable()
        return await score_query(query, to_candidates(texts), self.engine, ScoringConfig())

    async def healthy(self):
        return not self.dead
