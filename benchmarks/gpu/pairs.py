"""The pairs and the engine that the sections with vLLM share."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu.shapes import qwen_shape, shape_name, write_model
from rerank_throughput import Work

from limrank.config import EngineConfig, ModelConfig
from limrank.data import pydocs
from limrank.records import Candidate, Query

DUMMY = {"load_format": "dummy"}
"""An argument of vLLM: random weights."""


@dataclass(frozen=True)
class Load:
    """How much is asked. ``think`` has fewer queries than ``direct``, as each pair takes longer."""

    direct_queries: int
    think_queries: int
    depth: int
    think_tokens: int
    context: int
    characters: int
    """The fewest of a document."""
    prefill: tuple[int, int]
    """Prompts, and tokens of each, that share nothing."""
    decode: tuple[int, int]
    """Texts, and tokens of each, that are written at the same time."""


FULL = Load(16, 4, 100, 256, 4096, 800, (64, 1024), (256, 256))
DRY = Load(2, 1, 4, 16, 1024, 0, (2, 64), (4, 16))


def load(dry_run: bool) -> Load:
    return DRY if dry_run else FULL


def work(given: Load, queries: int) -> Work:
    """Queries of pydocs, with documents drawn at random: their order is not measured."""
    found = drawn_pairs(queries, given.depth, given.characters)
    return Work("pydocs", "", queries, given.depth, given.think_tokens, found, given.context)


def drawn_pairs(queries: int, depth: int, characters: int = 0) -> list[tuple[Query, list[Candidate]]]:
    draw, benchmark = random.Random(1), pydocs.benchmark("dev")
    documents = [each for each in benchmark.documents if len(each.contents) >= characters]
    return [
        (
            query,
            [
                Candidate(document.doc_id, document.contents, rank, 0.0)
                for rank, document in enumerate(draw.sample(documents, depth), 1)
            ],
        )
        for query in benchmark.queries[:queries]
    ]


def model_and_engine(out: Path, given: Load, dry_run: bool) -> tuple[str, ModelConfig, EngineConfig]:
    """The shape's name, and the sections of a recipe."""
    config = qwen_shape(dry_run)
    folder = write_model(out / "shape", config)
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = ModelConfig(id=str(folder), dtype=dtype, max_model_len=given.context)
    return shape_name(config), model, EngineConfig(kv_cache_gib=1)


def rates(seconds: float, pairs: int, prompt: int, cached: int, generated: int) -> dict[str, float]:
    """A line's figures. Prompt tokens are counted with those that came from the prefix cache."""
    return {
        "pairs": pairs,
        "prompt_tokens": prompt,
        "seconds": round(seconds, 6),
        "pairs_per_s": round(pairs / seconds, 3),
        "prompt_tokens_per_s": round(prompt / seconds, 1),
        "cached_share": round(cached / prompt, 4),
        "generated_tokens_per_s": round(generated / seconds, 1),
        "generated_tokens_per_pair": round(generated / pairs, 2),
    }
