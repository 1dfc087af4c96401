"""benchmarks/paper_rows.py on two of BRIGHT's subsets, by the first stage alone: no engine, no Ray."""

import subprocess
import sys

import pytest

from helpers import REPOSITORY
from helpers.units import repository

SCRIPT = REPOSITORY / "benchmarks" / "paper_rows.py"


@pytest.fixture
def hub(tmp_path):
    """Two subsets of which BM25 finds the answer first, and second."""
    row = {"reasoning": "", "excluded_ids": ["N/A"], "gold_ids_long": [], "gold_ids": ["x"], "id": "0"}
    documents = [{"id": "x", "content": "Yeast makes gas."}, {"id": "y", "content": "Salt and yeast and salt."}]
    asked = {"biology": "gas", "pony": "salt yeast"}
    return repository(
        tmp_path / "hub",
        {
            "examples": {subset: [row | {"query": query}] for subset, query in asked.items()},
            "documents": dict.fromkeys(asked, documents),
        },
    )


def paper_rows(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_a_row_has_each_part_and_their_mean(hub, tmp_path):
    local = ["-s", f"data.path={hub}", "-s", "data.revision=null", "-s", "data.first_stage_queries=null"]
    parts = ["--parts", "bright/biology", "bright/pony"]
    ended = paper_rows("bright", str(tmp_path / "out"), *parts, *local, "-s", "scoring.mode=none")
    assert ended.returncode == 0, ended.stderr
    # The one relevant document at rank 1: 1; at rank 2: 1 / log2(3).
    assert "| first stage | 100.0 | 63.1 | 81.5 |\npublished, bright: LimRank-7B 28.0" in ended.stdout
    assert "reranked" not in ended.stdout


def test_what_a_part_ends_with_is_passed_on(tmp_path):
    ended = paper_rows(
        "bright", str(tmp_path / "out"), "-s", f"data.path={tmp_path / 'none'}", "-s", "data.revision=null"
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("limrank: ")
