"""A rerank job on a running server, beside the same job with an engine of its own.

    python benchmarks/serve_batch.py [--data BEIR_FOLDER] [--queries 8] [--depth 50] [--mode direct] [--rounds 3]
               [--engine vllm|fake] [--model smollm2-135m-rerank] [--out FILE]

Each round runs ``limrank rerank`` twice, in turn first and second: with ``engine.kind: serve`` on a server that was
just started, and with the engine in its worker. One engine runs at a time, and each begins with an empty prefix cache.
Pairs a second are the manifest's: while chunks were worked on, without the start of an engine. The scores of both are
compared in every round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from serving_load import Report
from serving_processes import header, limrank_server

from limrank import signals

RATIO, SAME = 0.9, 1e-4


def job(
    options: argparse.Namespace, folder: Path, engine: dict[str, Any]
) -> tuple[float, dict[tuple[str, str], float]]:
    """Pairs a second of a rerank job, and its scores by query and document."""
    data = (
        {"format": "pydocs", "split": "test"} if options.data == "pydocs" else {"format": "beir", "path": options.data}
    )
    recipe = {
        "job": "rerank",
        "run_dir": str(folder / "run"),
        "data": data | {"max_queries": options.queries},
        "first_stage": {"depth": options.depth},
        **shared(options),
        "engine": engine,
    }
    path = folder / "rerank.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "limrank", "rerank", str(path), "--address", "local"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"RAY_worker_niceness": "0", **os.environ}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"limrank rerank ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    rows = [
        row
        for file in (folder / "run" / "rows").glob("*.parquet")
        for row in pyarrow.parquet.read_table(file).to_pylist()
    ]
    return manifest["rates"]["pairs_per_second"], {(row["query_id"], row["doc_id"]): row["score"] for row in rows}


def shared(options: argparse.Namespace) -> dict[str, Any]:
    """The sections that the job and the server have in common."""
    model = {"id": options.model, "max_model_len": 2048} | ({"dtype": options.dtype} if options.dtype else {})
    scoring = {"mode": options.mode} | ({} if options.mode == "direct" else {"max_think_tokens": options.think_tokens})
    return {"model": model, "scoring": scoring}


def engine_of(options: argparse.Namespace) -> dict[str, Any]:
    if options.engine == "vllm":
        return {"kind": "vllm"}
    return {"kind": "fake", "fault": {"latency_ms": options.latency_ms}, "max_in_flight": options.in_flight}


def measure(options: argparse.Namespace, report: Report) -> None:
    seen: dict[str, list[float]] = {"serve": [], "own": []}
    furthest = 0.0
    for turn in range(options.rounds):
        scores = {}
        for name in ("serve", "own") if turn % 2 == 0 else ("own", "serve"):
            with tempfile.TemporaryDirectory() as folder:
                if name == "serve":
                    with limrank_server({**shared(options), "engine": engine_of(options)}) as server:
                        engine = {"kind": "serve", "base_url": server.url}
                        rate, scores[name] = job(options, Path(folder), engine)
                else:
                    rate, scores[name] = job(options, Path(folder), engine_of(options))
            seen[name].append(rate)
            report(f"  round {turn + 1}: engine {name:<6} {rate:8.2f} pairs/s of {len(scores[name])} pairs")
        assert scores["serve"].keys() == scores["own"].keys(), "the jobs scored different pairs"
        furthest = max(furthest, *(abs(score - scores["own"][pair]) for pair, score in scores["serve"].items()))
    for name, rates in seen.items():
        report(
            f"engine {name:<6} {statistics.median(rates):8.2f} pairs/s (of {', '.join(f'{rate:.2f}' for rate in rates)})"
        )
    ratio = statistics.median(serve / own for serve, own in zip(seen["serve"], seen["own"], strict=True))
    report.bar(f"served / own, at least {RATIO:g}", f"{ratio:.3f}", ratio >= RATIO)
    report.bar(f"furthest score, at most {SAME:g}", f"{furthest:.1e}", furthest <= SAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", metavar="BEIR_FOLDER", help="pydocs, or a BEIR folder")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--mode", default="direct", choices=("direct", "think", "budget", "cascade"))
    parser.add_argument("--think-tokens", type=int, default=32)
    parser.add_argument("--engine", default="vllm", choices=("vllm", "fake"))
    parser.add_argument("--latency-ms", type=float, default=40.0, help="of the fake engine")
    parser.add_argument("--in-flight", type=int, default=4, help="of the fake engine")
    parser.add_argument("--model", default="smollm2-135m-rerank")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    if options.data != "pydocs":
        options.data = str(Path(options.data).resolve())
    report = Report(options.out)
    report(header())
    with signals.stopping():  # a server must not outlive this process
        measure(options, report)


if __name__ == "__main__":
    main()
