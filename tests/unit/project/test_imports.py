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
        "import limrank; limrank.Client().close(); limrank.AsyncClient()",
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


def test_every_job_s_config_is_public_with_the_sections_it_is_made_of():
    import limrank
    from limrank import config

    sections = {kind for job in config.JOBS.values() for kind in (job, *_sections_of(job))}
    assert {kind.__name__ for kind in sections} <= set(limrank.__all__)


def _sections_of(section):
    from typing import get_args

    from limrank.config import Section

    for field in section.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            for each in (kind, *get_args(kind)):
                if isinstance(each, type) and issubclass(each, Section):
                    yield each
                    yield from _sections_of(each)


def test_type_checkers_are_told_that_the_package_is_typed():
    from importlib.resources import files

    assert (files("limrank") / "py.typed").is_file()


def test_names_for_type_checkers_and_at_run_time_are_the_same():
    import ast
    from pathlib import Path

    import limrank

    (block,) = (node for node in ast.parse(Path(limrank.__file__).read_text()).body if isinstance(node, ast.If))
    named = {alias.name: statement.module for statement in block.body for alias in statement.names}
    assert named == limrank._PUBLIC
    assert sorted([*named, "__version__"]) == limrank.__all__
