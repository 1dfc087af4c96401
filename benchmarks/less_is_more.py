"""What written queries teach a small reranker, one factor at a time, by the product's own commands.

    python benchmarks/less_is_more.py OUT [--data ../shared/data] [--sources real tuned trip teacher lists …]
        [--queries 125 250 500] [--seeds 1 2 3] [--collections dl19@20 dl19@100 scifact@20 …] [--only-data]
    python benchmarks/less_is_more.py OUT --plot less_is_more.png

Passages are those of DL19's pool, queries those of a writer that was tuned on the MS MARCO seeds. From prompted to
teacher, each source is the one before it with one thing more; lists has another objective, too, and one pass in place
of three:

    real        queries of the seeds, a negative of each among BM25's first 20
    prompted    queries of the packaged model, asked by prompt; a drawn candidate as the negative
    tuned       queries of the tuned writer
    trip        … that find their passage among BM25's first ten
    teacher     … with which the packaged embedder agrees, and whose negatives it puts a standard deviation below
    lists       … eight passages with the embedder's scores, learned by listnet
    graded      1,000 queries that found their passage, the grades of a large language model for eight passages each
    fields      500 of these lists, and 500 that were written in the same way for four other collections' passages
    courses     490 of these lists, and 490 of queries that a large model wrote for the packaged reranker

The graded lists were made once by `limrank synthesize` (the tuned writer; round_trip, mine_depth 50, list_size 8) and are
put together from the grades, which name query and passages.

Every cell (source, queries, seed, collection) is a line of OUT/results.jsonl: nDCG@10 of the first stage, of the model,
and of both fused at --weight, with 95 % intervals. What is there is not done again. BM25's candidates are the first
stage; of a large collection 60 queries are taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from less_is_more_data import BASE, GRADES, LIST_SIZE, LISTS, PAIRS, SOURCES, TRAINING, WITH_LISTS, Sources, limrank

from limrank.data.trec import read_qrels
from limrank.evaluation.metrics import evaluate
from limrank.evaluation.significance import bootstrap_interval
from limrank.scoring.fusion import fused_order

MEASURE = "nDCG@10"


class Study:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.data: Path = given.data
        self.sources = Sources(given.out, given.data, given.passages, given.grades)

    # ---- models ----------------------------------------------------------------------

    def model(self, source: str, queries: int, seed: int) -> tuple[str, float]:
        """The model of a cell, and the seconds of its training."""
        if source == "none":
            return BASE, 0.0
        folder = self.out / "models" / f"{source}-{queries}-{seed}"
        took = folder.with_suffix(".seconds")
        if not (folder / "model" / "config.json").exists():
            shape, size = (LISTS, LIST_SIZE) if source in WITH_LISTS else (PAIRS, 2)
            training = TRAINING | shape | {"train_file": str(self.sources.file(source)), "max_examples": queries * size}
            recipe = {"seed": seed, "model": {"id": BASE}, "training": training}
            took.write_text(str(limrank("train", recipe, folder)))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return str(folder / "model"), float(took.read_text()) if took.exists() else 0.0

    def examples(self, source: str, queries: int, seed: int) -> int:
        """The passages that a cell was trained on: a source may have fewer than are asked for."""
        manifest = self.out / "models" / f"{source}-{queries}-{seed}" / "manifest.json"
        return 0 if source == "none" else json.loads(manifest.read_text())["counts"]["rows"]

    # ---- figures ---------------------------------------------------------------------

    def rows(self, model: str, name: str, collection: str, depth: int) -> Path:
        folder = self.out / "runs" / f"{name}-{collection}-{depth}"
        recipe: dict[str, Any] = {
            "data": {"format": "beir", "path": str(self.data / collection)},
            "first_stage": {"depth": depth},
            "model": {"id": model, "max_model_len": 1024},
            "scoring": {"mode": "direct"},
        }
        if collection == "dl19":
            recipe["data"]["path"] = str(self.data / "msmarco_dl19_pool")
            recipe["first_stage"] |= {"kind": "run", "path": str(self.data / "msmarco_dl19_pool/run.bm25.top100.trec")}
        elif collection == "pydocs":
            recipe["data"] = {"format": "pydocs", "split": "dev"}
        else:
            recipe["data"]["max_queries"] = 60
        limrank("rerank", recipe, folder)
        return folder

    def measure(self, folder: Path) -> dict[str, dict[str, float]]:
        """First stage, model, both fused, and the best possible order of the candidates."""
        import pyarrow.parquet as pq

        found: dict[str, list[dict[str, Any]]] = {}
        for file in sorted((folder / "rows").glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                found.setdefault(row["query_id"], []).append(row)
        qrels = read_qrels(folder / "qrels.tsv")

        def best(query_id: str, row: dict[str, Any]) -> int:
            return -qrels.get(query_id, {}).get(row["doc_id"], 0)

        runs: dict[str, dict[str, dict[str, float]]] = {"first stage": {}, "model": {}, "fused": {}, "best": {}}
        for query_id, rows in found.items():
            scores = [row["score"] for row in rows]
            first = [row["first_stage_score"] for row in rows]
            ranks = [row["first_stage_rank"] for row in rows]
            orders = {
                "first stage": sorted(range(len(rows)), key=ranks.__getitem__),
                "model": fused_order(scores, first, ranks, 0.0),
                "fused": fused_order(scores, first, ranks, self.given.weight),
                "best": sorted(range(len(rows)), key=lambda index: best(query_id, rows[index])),
            }
            for name, order in orders.items():
                runs[name][query_id] = {rows[index]["doc_id"]: -float(rank) for rank, index in enumerate(order)}
        figures = {}
        for name, run in runs.items():
            result = evaluate(qrels, run, [MEASURE])
            low, high = bootstrap_interval(list(result.per_query[MEASURE].values()), seed=1)
            figures[name] = {"mean": result.mean[MEASURE], "low": low, "high": high}
        return figures

    def cells(self) -> None:
        results = self.out / "results.jsonl"
        known = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        done = {(each["source"], each["queries"], each["seed"], each["collection"]) for each in known}
        for seed in self.given.seeds:
            for queries in self.given.queries:
                for source in self.given.sources:
                    cell = ("none", 0, 0) if source == "none" else (source, queries, seed)
                    for collection in self.given.collections:
                        if (*cell, collection) in done:
                            continue
                        model, seconds = self.model(*cell)
                        name, _, depth = collection.partition("@")
                        folder = self.rows(model, "-".join(map(str, cell)), name, int(depth or 20))
                        line = dict(zip(("source", "queries", "seed"), cell, strict=True))
                        line["examples"] = self.examples(*cell)
                        line |= {"collection": collection, "training_s": round(seconds), "weight": self.given.weight}
                        line |= self.measure(folder)
                        with results.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                        done.add((*cell, collection))
                        print(shown(line), flush=True)


def shown(line: dict[str, Any]) -> str:
    figures = ", ".join(
        f"{name} {line[name]['mean']:.3f} ({line[name]['low']:.3f}–{line[name]['high']:.3f})"
        for name in ("first stage", "model", "fused", "best")
    )
    return f"{line['source']:9} {line['queries']:5} queries, seed {line['seed']}, {line['collection']}: {figures}"


def plot(results: Path, file: Path) -> None:
    """nDCG@10 by number of queries, a line a source, a panel a collection; means over the seeds."""
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in results.read_text().splitlines()]
    collections = list(dict.fromkeys(line["collection"] for line in lines))
    figure, axes = plt.subplots(1, len(collections), figsize=(4.5 * len(collections), 4), squeeze=False)
    for axis, collection in zip(axes[0], collections, strict=True):
        here = [line for line in lines if line["collection"] == collection]
        for name, style in (("first stage", ":"), ("best", "--")):
            axis.axhline(here[0][name]["mean"], color="grey", linestyle=style, label=name)
        for source in dict.fromkeys(line["source"] for line in here):
            sizes = sorted({line["queries"] for line in here if line["source"] == source})
            means = [
                [line["model"]["mean"] for line in here if (line["source"], line["queries"]) == (source, size)]
                for size in sizes
            ]
            axis.plot(sizes, [sum(each) / len(each) for each in means], marker="o", label=source)
        axis.set(title=collection, xlabel="queries", ylabel=MEASURE)
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES)
    parser.add_argument("--queries", type=int, nargs="+", default=[125, 250, 500, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--collections", nargs="+", default=["dl19@20", "scifact@20", "cranfield@20", "pydocs@20"])
    parser.add_argument("--passages", type=int, default=2000, help="passages that queries are written for")
    parser.add_argument("--grades", type=Path, default=GRADES, help="a large model's grades of lists")
    parser.add_argument("--weight", type=float, default=0.3, help="of the first stage in the fused order")
    parser.add_argument("--only-data", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.plot:
        plot(given.out / "results.jsonl", given.plot)
        return
    study = Study(given)
    if given.only_data:
        for source in given.sources:
            if source != "none":
                study.sources.file(source)
        return
    study.cells()


if __name__ == "__main__":
    main()
