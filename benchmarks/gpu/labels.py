"""Scores of the packaged small model through limrank's engine against transformers', in one dtype.

python -m gpu.labels float32|bfloat16 --out FOLDER [--dry-run]
"""

from __future__ import annotations

import asyncio
import statistics

import torch
from gpu.pairs import drawn_pairs
from gpu.report import arguments, section
from transformers import AutoModelForCausalLM

from limrank import models
from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import open_engine
from limrank.engines.base import label_token_ids
from limrank.scoring import CLOSE, LABELS, encode_pair, encode_template, prompt_template, score_query

MODEL, CONTEXT = "smollm2-135m-instruct", 2048
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


async def engine_scores(dtype: str, found) -> tuple[list[float], list[list[int]], list[int]]:
    """The scores, the token ids after which each label is asked for, and the labels' tokens."""
    scoring = ScoringConfig(mode="direct")
    chosen = ModelConfig(id=MODEL, dtype=dtype, max_model_len=CONTEXT)
    engine = open_engine(chosen, EngineConfig(kv_cache_gib=1, gpu_memory_utilization=0.4))
    try:
        judged = await asyncio.gather(*(score_query(*each, engine, scoring) for each in found))
        tokenizer, template = engine.tokenizer, prompt_template(scoring)
        close = encode_template(tokenizer, CLOSE)
        asked = [
            encode_pair(tokenizer, template, query, each.text, max_tokens=CONTEXT - len(close) - 1).ids + close
            for query, candidates in found
            for each in candidates
        ]
        labels = label_token_ids(tokenizer, LABELS)
    finally:
        await engine.aclose()
    return [each.score for judgments in judged for each in judgments], asked, labels


@torch.inference_mode()
def transformers_scores(dtype: str, asked: list[list[int]], labels: list[int]) -> list[float]:
    """p(true) / (p(true) + p(false)), one prompt at a time, with transformers' own attention."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(models.resolve(MODEL), dtype=getattr(torch, dtype)).to(device).eval()
    found = []
    for ids in asked:
        logits = model(torch.tensor([ids], device=device), logits_to_keep=1).logits[0, -1, labels]
        found.append(logits.double().softmax(-1)[0].item())
    return found


def main() -> None:
    given = arguments("dtype")
    (dtype,) = given.words
    with section(f"labels-{dtype}", given.out) as line:
        found = drawn_pairs(*((1, 4) if given.dry_run else (4, 32)))
        scores, asked, labels = asyncio.run(engine_scores(dtype, found))
        expected = transformers_scores(dtype, asked, labels)
        differences = [abs(one - other) for one, other in zip(scores, expected, strict=True)]
        line |= {
            "model": MODEL,
            "pairs": len(scores),
            "score_lowest": round(min(scores), 5),
            "score_highest": round(max(scores), 5),
            "difference_largest": float(f"{max(differences):.3g}"),
            "difference_mean": float(f"{statistics.mean(differences):.3g}"),
            "tolerance": TOLERANCE[dtype],
            # Were all scores the same, parity would say little.
            "ok": max(differences) <= TOLERANCE[dtype] and max(scores) > min(scores),
        }


if __name__ == "__main__":
    main()
