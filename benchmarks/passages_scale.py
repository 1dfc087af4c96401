"""Seconds and memory of the passages road: writing queries, embedding and mining passages, training on lists.

    python benchmarks/passages_scale.py OUT WRITER [--data ../shared/data] [--write 10000] [--mine 100000] [--train 1000]

WRITER is a model of ``training.task: writer``. Each step is one command of limrank in a process of its own, into a folder
of OUT. What a folder holds is not done again, and its line says so.

    write   queries of the writer for passages of DL19's pool, and of nothing else: no round trip, no teacher
    mine    candidates of 1,000 of the MS MARCO seeds' queries in a corpus by BM25 and the packaged embedder, graded by it
    train   the packaged model on lists of eight of these candidates, with LoRA, one pass

The corpus of mine is DL19's pool and the seeds' passages, and then the same texts with their sentences in another order
until there are enough. Memory is the sum over the command's processes of their proportional share (PSS: shared pages are
counted once), sampled every second; Ray's object store is in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import yaml

from limrank.data import beir

BASE = "smollm2-135m-instruct"
EMBEDDER = "all-minilm-l6-v2"
QUERIES = 1000


class PeakMemory(threading.Thread):
    """The most memory in bytes that a process and its descendants held, while the ``with`` block runs."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._process = psutil.Process(pid)
        self._over = threading.Event()

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(1.0):
            try:
                family = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            self.peak = max(self.peak, sum(map(_share, family)))


def _share(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has ended
        return 0


def run(command: str, recipe: dict[str, Any], folder: Path) -> str:
    """Run one command into a folder. Returns its seconds and memory as text."""
    if (folder / "manifest.json").exists():
        return "was there"
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"job": command, "run_dir": str(folder)} | recipe))
    began = time.perf_counter()
    limrank = [sys.executable, "-m", "limrank", command, str(file), "--address", "local"]
    process = subprocess.Popen(limrank, stdout=subprocess.DEVNULL)
    with PeakMemory(process.pid) as memory:
        process.wait()
    if process.returncode:
        raise SystemExit(f"limrank {command} {file} ended with {process.returncode}")
    return f"{time.perf_counter() - began:7.0f} s {memory.peak / 2**30:6.1f} GiB"


def texts(data: Path) -> Iterator[tuple[str, str]]:
    """(id, text) of passages without end: those of the collections, then with their sentences in another order."""
    folders = [data / "msmarco_seed_instructir", data / "msmarco_dl19_pool"]
    found = [each for folder in folders for each in beir.read_corpus(folder / "corpus.jsonl")]
    for turn in count():
        for document in found:
            sentences = document.text.split(". ")
            first = turn % len(sentences)
            turned = ". ".join([*sentences[first:], *sentences[:first]])
            yield f"{document.doc_id}-{turn}", f"{turned} {turn}" if turn else document.text


def collection(data: Path, passages: int, folder: Path) -> Path:
    """A BEIR folder: queries of the seeds, each with its passage, in a corpus of so many passages."""
    seeds = beir.load(data / "msmarco_seed_instructir")
    queries = seeds.queries[:QUERIES]
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for doc_id, text in islice(texts(data), passages):
            file.write(json.dumps({"_id": doc_id, "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": each.query_id, "text": each.text}) + "\n" for each in queries)
    with (folder / "qrels/test.tsv").open("w") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"{q.query_id}\t{doc_id}-0\t1\n" for q in queries for doc_id in seeds.qrels[q.query_id])
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("writer")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--write", type=int, default=10_000)
    parser.add_argument("--mine", type=int, default=100_000)
    parser.add_argument("--train", type=int, default=1000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    write = {
        "source": "passages",
        "seeds": str(given.data / "msmarco_dl19_pool"),
        "max_seeds": given.write,
        "writer": "tuned",
        "temperature": 0.7,
        "top_p": 0.9,
        "query_tokens": 32,
        "round_trip": {"retriever": "none"},
    }
    written = run("synthesize", {"model": {"id": given.writer}, "synthesis": write}, given.out / "write")
    print(f"write {given.write} queries    {written}", flush=True)
    mine = {
        "source": "passages",
        "seeds": str(collection(given.data, given.mine, given.out / f"corpus-{given.mine}")),
        "writer": "none",
        "embedder": EMBEDDER,
        "round_trip": {"retriever": "both", "filter": False},
        "mine_depth": 20,
        "teacher": {"kind": "embedder", "model": EMBEDDER},
        "list_size": 8,
    }
    mined = run("synthesize", {"synthesis": mine}, given.out / "mine")
    print(f"mine {given.mine} passages   {mined}", flush=True)
    train = {
        "train_file": str(given.out / "mine/lists.jsonl"),
        "method": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "target": "direct",
        "objective": "listnet",
        "max_examples": 8 * given.train,
        "epochs": 1,
        "learning_rate": 5e-4,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "cutoff_tokens": 256,
        "validation_share": 0.0,
    }
    trained = run("train", {"model": {"id": BASE}, "training": train}, given.out / "train")
    print(f"train {given.train} lists      {trained}", flush=True)


if __name__ == "__main__":
    main()
