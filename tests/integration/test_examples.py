"""Every script in examples/ and the notebook run, quickly, with the fake engine."""

import json
import os
import subprocess
import sys

import pytest

from helpers import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
FAKE = ("--engine", "fake")
RUNS = {
    "rerank_documents.py": (FAKE, "best for 'order a list': "),
    "rerank_a_benchmark.py": ((*FAKE, "--max-queries", "2"), "20 pairs, 0 failed"),
    "evaluate_a_run.py": ((), "one   RR      0.6667 (0.0000 to 1.0000)"),
    "synthesize_examples.py": ((*FAKE, "--max-seeds", "2"), "examples to train on"),
    "serve_and_ask.py": (FAKE, "best:"),
}


def test_each_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_says_what_it_found(name, tmp_path):
    options, said = RUNS[name]
    command = [sys.executable, str(EXAMPLES / name), *options]
    # A crash at the interpreter's end would say nothing without it.
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    assert said in done.stdout
    assert "Traceback" not in done.stderr


AS_A_KERNEL = """
import asyncio, json, sys

async def main():
    scope = {"__name__": "__main__"}
    for cell in json.loads(sys.argv[1]):
        exec(compile(cell, "cell", "exec"), scope)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_the_notebook_s_cells_run_on_a_loop_that_runs(tmp_path):
    """As a kernel does: the loop that runs a cell is running."""
    notebook = json.loads((EXAMPLES / "limrank.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in notebook["cells"][3:] if cell["cell_type"] == "code")
    with_fake = [cell.replace('ENGINE = "vllm"', 'ENGINE = "fake"') for cell in cells]
    assert with_fake != cells
    (tmp_path / "kernel.py").write_text(AS_A_KERNEL)
    command = [sys.executable, "kernel.py", json.dumps(with_fake)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("nDCG@10") == 2


@pytest.mark.parametrize("name", RUNS)
def test_it_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40
