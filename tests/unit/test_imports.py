"""`import limrank` and `limrank --help` are instant because of what they do not import."""

import json
import subprocess
import sys

import pytest

HEAVY = ("ray", "torch", "transformers", "vllm", "pyarrow", "pandas", "datasets", "numpy", "openai")


@pytest.mark.parametrize(
    "statement",
    [
        "import limrank",
        "import limrank.cli; limrank.cli.main(['--help'])",
        "import limrank; limrank.load_config",
        "import limrank; limrank.Reranker; limrank.open_engine",
        "from limrank import evaluate, rerank, serve, synthesize, train",
        "from limrank import *",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement):
    code = f"{statement}\nimport sys, json\nprint()\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_import_of_the_package_takes_well_under_half_a_second():
    code = "import time; began = time.perf_counter(); import limrank; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.25


def test_every_public_name_is_there_and_is_shown():
    import limrank

    assert set(limrank.__all__) <= set(dir(limrank))
    for name in limrank.__all__:
        assert getattr(limrank, name) is not None
