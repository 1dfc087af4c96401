"""The first stage against the field's BM25: words as they stand, and as Lucene's English analyzer cuts them.

    python benchmarks/first_stage.py > benchmarks/first_stage.txt

Depth 100, k1 0.9, b 0.4. Beside BM25 over DL19's pool of documents (the union of six retrievers'
top 100, 14,581 of 8.8 million) stands the run of Lucene's BM25 over all of them.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

from limrank.config import DataConfig, FirstStageConfig
from limrank.data import benchmarks
from limrank.data.trec import read_qrels, read_run
from limrank.evaluation.metrics import evaluate
from limrank.retrieval import candidates

MEASURES = ["nDCG@10", "R@100"]
COLLECTIONS = ("scifact", "cranfield", "msmarco_dl19_pool", "bright_pony_tutorial")
VARIANTS = {"no stemmer (as it was)": {"stemmer": "none"}, "English": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data", help="the folder that the collections lie in")
    data = Path(parser.parse_args().data)
    print("python benchmarks/first_stage.py")
    versions = ", ".join(f"{name} {version(name)}" for name in ("bm25s", "PyStemmer", "ir_measures"))
    print(f"{_processor()}, Python {platform.python_version()}, {versions}\n")
    print(f"{'collection':<22}{'words':<28}" + "".join(f"{name:>9}" for name in MEASURES) + f"{'seconds':>9}")
    sources = {name: DataConfig(format="beir", path=str(data / name)) for name in COLLECTIONS}
    for name, source in (sources | {"pydocs (test)": DataConfig(format="pydocs")}).items():
        benchmark = benchmarks.load(source)
        for words, first_stage in VARIANTS.items():
            started = time.perf_counter()
            ranked = list(candidates(benchmark, FirstStageConfig(depth=100, **first_stage)))
            seconds = time.perf_counter() - started
            run = {query.query_id: {each.doc_id: -each.rank for each in found} for query, found in ranked}
            _line(name, words, evaluate(benchmark.qrels, run, MEASURES).mean, f"{seconds:9.1f}")
    pool = data / "msmarco_dl19_pool"
    run = read_run(pool / "run.bm25.top100.trec")
    for judged in ("test", "test_full"):  # the second is what published figures are by
        mean = evaluate(read_qrels(pool / "qrels" / f"{judged}.tsv"), run, MEASURES).mean
        _line("msmarco_dl19_pool", f"Lucene's run, {judged}.tsv", mean, f"{'-':>9}")


def _line(name: str, words: str, mean: dict[str, float], last: str) -> None:
    print(f"{name:<22}{words:<28}" + "".join(f"{mean[measure]:9.4f}" for measure in MEASURES) + last)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
