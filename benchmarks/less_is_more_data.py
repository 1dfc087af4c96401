"""What the cells of ``less_is_more.py`` are trained on: queries that are written for passages, and their lists."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from limrank.data import pydocs

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
    # The embedder's own order is not used: passage_first only keeps it from dropping queries.
    "graded": {"teacher": TEACHER | {"passage_first": True}, "list_size": LIST_SIZE, "mine_depth": 50},
}
FIELDS = ("pydocs", "scifact", "cranfield", "bright_pony_tutorial")
"""Collections for whose passages half of the queries of the source of this name are."""
FIELD_PASSAGES = 400
COURSES = ("train", "train-long")
"""Folders that the packaged reranker's ``make_data.py`` writes."""
COURSE_QUERIES = 300
MODEL = Path(__file__).parent.parent / "models" / "smollm2-135m-rerank"
SOURCES = ("none", "real", *MINING, "fields", "courses")
WITH_LISTS = ("lists", "graded", "fields", "courses")
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
        if source == "fields":
            mix([self.file("graded"), *map(self.field, FIELDS)], [4, 1, 1, 1, 1], file)
            return file
        if source == "courses":
            mix([self.file("graded"), *map(self.course, COURSES)], [2, 1, 1], file)
            return file
        run_dir = self.out / {"prompted": "prompted", "graded": "graded"}.get(source, "written")
        corpus = str(self.data / "msmarco_dl19_pool")
        self.synthesize(run_dir, corpus, self.passages, MINING[source], source != "prompted")
        shutil.copy(run_dir / "stats.json", file.with_suffix(".stats.json"))
        if source == "graded":
            regrade(run_dir / "lists.jsonl", self.grades, file)
        else:
            shutil.copy(run_dir / ("lists.jsonl" if source == "lists" else "train.jsonl"), file)
        return file

    def synthesize(self, run_dir: Path, corpus: str, passages: int, mining: dict[str, Any], tuned: bool) -> None:
        """Write queries for a corpus' passages and find the others of their lists."""
        others = [str(self.data / name) for name in FIELDS if name not in ("pydocs", Path(corpus).name)]
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

    def field(self, field: str) -> Path:
        """Graded lists of queries for another collection's passages."""
        file = self.out / "data" / f"field-{field}.jsonl"
        if not file.exists():
            corpus = self.data / field
            if field == "pydocs":
                corpus = pydocs_folder(self.out / "pydocs")
            run_dir = self.out / f"field-{field}"
            self.synthesize(run_dir, str(corpus), FIELD_PASSAGES, MINING["graded"], tuned=True)
            regrade(run_dir / "lists.jsonl", self.grades, file)
        return file

    def course(self, course: str) -> Path:
        """Graded lists of the queries of one of the packaged reranker's courses."""
        file = self.out / "data" / f"course-{course}.jsonl"
        if not file.exists():
            folder = self.out / "courses"
            if not (folder / course).exists():  # all courses are written at once
                command = [sys.executable, MODEL / "make_data.py", folder, self.data / "bright_pony_tutorial"]
                subprocess.run(list(map(str, command)), check=True)
            synthesis = MINING["graded"] | {
                "source": "passages",
                "writer": "none",
                "seeds": str(folder / course),
                "max_seeds": COURSE_QUERIES,
                "round_trip": {"filter": False},
                "decontaminate": ["benchmark://pydocs"],
            }
            run_dir = self.out / f"course-{course}"
            limrank("synthesize", {"synthesis": synthesis}, run_dir)
            regrade(run_dir / "lists.jsonl", self.grades, file)
        return file


def regrade(lists: Path, grades: Path, out: Path) -> None:
    """Write the lists that have grades, with these as scores, in the grades' order.

    Args:
        grades: lines of ``{"query", "grades": {the key of a passage: 0 to 10}}``.
    """
    with lists.open() as file:  # not splitlines: passages hold other line ends
        known = {row["query"]: row["passages"] for row in map(json.loads, file)}
    kept = asked = 0
    with out.open("w") as file:
        for row in map(json.loads, grades.read_text().splitlines()):
            asked += 1
            passages = [each for each in known.get(row["query"], []) if key(each) in row["grades"]]
            scores = [row["grades"][key(each)] for each in passages]
            if len(set(scores)) > 1:
                kept += 1
                file.write(json.dumps({"query": row["query"], "passages": passages, "scores": scores}) + "\n")
    print(f"graded: {kept} of the {asked} graded queries are among those written here", flush=True)


def mix(files: list[Path], shares: list[int], out: Path) -> None:
    """Write the lines of several files in turn, of each as many in a round as its share, until one has no more."""
    lines = [iter(file.read_text().split("\n")[:-1]) for file in files]
    with out.open("w") as file:
        while True:
            taken = [list(islice(each, share)) for each, share in zip(lines, shares, strict=True)]
            if [len(each) for each in taken] != shares:
                return
            file.writelines(line + "\n" for each in taken for line in each)


def pydocs_folder(folder: Path) -> Path:
    """pydocs' documents as a BEIR corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"_id": each.doc_id, "title": each.title, "text": each.text} for each in pydocs.documents())
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def key(passage: str) -> str:
    return hashlib.sha256(passage.encode()).hexdigest()[:10]
