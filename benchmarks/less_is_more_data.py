"""What the cells of ``less_is_more.py`` are trained on: queries that are written for passages, and their lists."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from limrank.data import beir

BASE = "smollm2-135m-instruct"
TEACHER = {"kind": "embedder", "model": "all-minilm-l6-v2"}
LIST_SIZE = 8
GRADES = Path(__file__).with_name("less_is_more_grades.jsonl")
NO_TRIP = {"retriever": "none"}
MINING: dict[str, dict[str, Any]] = {
    "prompted": {"round_trip": NO_TRIP},
    "tuned": {"round_trip": NO_TRIP},
    "trip": {},
    "teacher": {"teacher": TEACHER},
    "lists": {"teacher": TEACHER, "list_size": LIST_SIZE},
}
POOL = "msmarco_dl19_pool"
FIELDS = ("scifact", "cranfield", "bright_pony_tutorial")
"""Collections whose queries nothing written may repeat, and which other lists are of."""
COURSES = ("train", "train-long")
"""Folders that the packaged reranker's ``make_data.py`` writes."""
MODEL = Path(__file__).parent.parent / "models" / "smollm2-135m-rerank"
GRADED = ("graded", "fields", "courses")
SOURCES = ("none", "real", *MINING, *GRADED)
WITH_LISTS = ("lists", *GRADED)
PAIRS = {"objective": "label", "epochs": 3, "batch_size": 8}
LISTS = {"objective": "listnet", "epochs": 1, "batch_size": 2}
TRAINING = {
    "method": "full",
    "target": "direct",
    "learning_rate": 1e-4,
    "warmup_ratio": 0.1,
    "gradient_accumulation": 1,
    "cutoff_tokens": 256,
    "validation_share": 0.0,
    "save_steps": 1000,
}


def limrank(command: str, recipe: dict[str, Any], folder: Path) -> float:
    """Run one command into a folder; returns its seconds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"job": command, "run_dir": str(folder)} | recipe))
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "limrank", command, str(file), "--address", "local"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


class Sources:
    """The sources' files in a folder, each made when it is first asked for."""

    def __init__(self, out: Path, data: Path, passages: int, grades: Path) -> None:
        self.out, self.data = out, data
        self.passages, self.grades = passages, grades

    def writer(self) -> str:
        """The tuned writer: one pass over the seeds."""
        folder = self.out / "writer"
        if not (folder / "model" / "config.json").exists():
            training = TRAINING | {
                "task": "writer",
                "train_file": str(self.data / "msmarco_seed_instructir"),
                "epochs": 1,
                "batch_size": 16,
            }
            del training["target"]
            seconds = limrank("train", {"model": {"id": BASE}, "training": training}, folder)
            print(f"writer trained in {seconds:.0f} s", flush=True)
        return str(folder / "model")

    def file(self, source: str) -> Path:
        """The examples of a source: pairs, or lists."""
        file = self.out / "data" / f"{source}.jsonl"
        if file.exists():
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        if source == "real":
            script = Path(__file__).with_name("training_pairs.py")
            seeds = str(self.data / "msmarco_seed_instructir")
            command = [sys.executable, str(script), seeds, str(file), "--queries", "1700"]
            subprocess.run(command, check=True)
            return file
        if source in GRADED:
            self.graded(source, file)
            return file
        run_dir = self.out / ("prompted" if source == "prompted" else "written")
        self.synthesize(run_dir, str(self.data / POOL), self.passages, MINING[source], source != "prompted")
        shutil.copy(run_dir / "stats.json", file.with_suffix(".stats.json"))
        shutil.copy(run_dir / ("lists.jsonl" if source == "lists" else "train.jsonl"), file)
        return file

    def synthesize(self, run_dir: Path, corpus: str, passages: int, mining: dict[str, Any], tuned: bool) -> None:
        """Write queries for a corpus' passages and find the others of their lists."""
        others = [str(self.data / name) for name in FIELDS]
        synthesis = {
            "source": "passages",
            "seeds": corpus,
            "max_seeds": passages,
            "mine_depth": 20,
            "query_tokens": 32,
            "decontaminate": others,
        } | mining
        if tuned:
            synthesis |= {"writer": "tuned", "temperature": 0.7, "top_p": 0.9}
        model = self.writer() if tuned else BASE
        recipe = {"model": {"id": model, "max_model_len": 1024}, "synthesis": synthesis}
        seconds = limrank("synthesize", recipe, run_dir)
        stats = json.loads((run_dir / "stats.json").read_text())
        print(
            f"{run_dir.name}: {stats['kept_queries']} of {stats['queries']} queries kept, {seconds:.0f} s", flush=True
        )

    def graded(self, source: str, out: Path) -> None:
        """The graded lists of a source, in turn with those of DL19's passages if it has others."""
        folder = self.courses()
        # The longer course's corpus has all passages of the shorter one.
        corpora = [self.data / POOL, self.data / "scifact", self.data / "cranfield", folder / "train-long"]
        texts = [passages(corpus) for corpus in corpora]
        asked = {each.text for course in COURSES for each in beir.read_queries(folder / course / "queries.jsonl")}
        lists: dict[str, list[str]] = {name: [] for name in GRADED}
        for row in map(json.loads, self.grades.read_text().splitlines()):
            known = next(each for each in texts if row["grades"].keys() <= each.keys())
            if len(set(row["grades"].values())) == 1:
                continue
            line = {"query": row["query"], "passages": [known[key] for key in row["grades"]]}
            line["scores"] = list(row["grades"].values())
            name = "graded" if known is texts[0] else "courses" if row["query"] in asked else "fields"
            lists[name].append(json.dumps(line) + "\n")
        chosen = lists["graded"]
        if source != "graded":
            chosen = [line for both in zip(chosen, lists[source], strict=False) for line in both]
        out.write_text("".join(chosen))

    def courses(self) -> Path:
        """The packaged reranker's courses as BEIR folders."""
        folder = self.out / "courses"
        if not folder.exists():
            command = [sys.executable, MODEL / "make_data.py", folder, self.data / "bright_pony_tutorial"]
            subprocess.run(list(map(str, command)), check=True)
        return folder


def passages(corpus: Path) -> dict[str, str]:
    """A corpus' passages by the first ten hexadecimal digits of their SHA-256, as the file of grades names them."""
    texts = (document.contents for document in beir.read_corpus(beir.find_file(corpus, "corpus.jsonl")))
    return {hashlib.sha256(text.encode()).hexdigest()[:10]: text for text in texts}
