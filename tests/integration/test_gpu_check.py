"""The check of a GPU, run here with tiny shapes and without one."""

import json
import math
import os
import subprocess
import sys

import pytest

from helpers import REPOSITORY

SECTIONS = ["machine", "packing", "training", "engine", "bare", "labels-float32", "memory", "rates"]


def check(out, *words, python=sys.executable):
    """The exit status, and the lines that were printed, which are those of the file."""
    command = [REPOSITORY / "benchmarks" / "gpu" / "check.sh", "--out", out, *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHON": str(python)}, timeout=800, check=False
    )
    assert done.stdout == (out / "results.jsonl").read_text(), done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def figures(value):
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from figures(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_every_section_measures_and_writes_its_line(tmp_path):
    status, lines = check(tmp_path, "--dry-run")
    assert [line["section"] for line in lines] == SECTIONS
    assert status == 0 and all(line["ok"] for line in lines), [line for line in lines if not line["ok"]]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures(lines))
    found = {line["section"]: line for line in lines}
    engine, bare = found["engine"], found["bare"]
    assert engine["model"] == bare["model"] == found["training"]["model"] == "Qwen2, 2 layers of 256"
    for mode, pairs in (("direct", 8), ("think", 4)):
        for line in (engine[mode], bare[mode]):
            assert line["pairs"] == pairs
            assert line["pairs_per_s"] == pytest.approx(pairs / line["seconds"], rel=0.02)
            assert line["generated_tokens_per_s"] == pytest.approx(
                line["generated_tokens_per_pair"] * line["pairs_per_s"], rel=0.02
            )
    assert engine["direct"]["generated_tokens_per_pair"] == bare["direct"]["generated_tokens_per_pair"] == 1
    assert 1 < engine["think"]["generated_tokens_per_pair"] <= 17
    # The same prompts. A chain's text may encode to more or fewer tokens than were written.
    assert engine["direct"]["prompt_tokens"] == bare["direct"]["prompt_tokens"] > 100
    assert engine["think"]["prompt_tokens"] == pytest.approx(bare["think"]["prompt_tokens"], rel=0.2)
    for name in ("training", "engine"):
        assert found["memory"][name]["used_gib"] == found[name]["memory_used_gib"] > 0.1
    shapes = json.loads((tmp_path / "rates.json").read_text())
    assert found["rates"]["shapes"] == shapes
    by_dtype = {shape["dtype"]: shape for shape in shapes}
    assert by_dtype["bfloat16"]["train"] == found["training"]["tokens_per_s"] > 0
    served = by_dtype["float32"]
    # Two embeddings of 152,064 × 256, and two layers whose inner width is 37/7 of 256.
    assert served["parameters"] == by_dtype["bfloat16"]["parameters"] == found["engine"]["parameters"] == 80_330_496
    assert served["prefill"] == bare["prefill_tokens_per_s"] > 0
    assert served["decode"] == bare["decode_tokens_per_s"] > 0
    assert served["direct_share_of_bare_engine"] == pytest.approx(
        engine["direct"]["pairs_per_s"] / bare["direct"]["pairs_per_s"], rel=0.01
    )


def test_a_section_that_ends_without_a_word_has_a_line_and_the_next_one_runs(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *machine*) echo "no \\"GPU\\" here" >&2; exit 7;; esac\nexec "$REAL" "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("REAL", sys.executable)
    status, (machine, memory) = check(tmp_path, "machine", "memory", python=script)
    assert status == 1
    assert machine == {"section": "machine", "ok": False, "error": "ended with exit status 7: no GPU here"}
    assert not memory["ok"] and "no section before this one measured any" in memory["error"]


def test_a_section_that_there_is_not_is_refused(tmp_path):
    done = subprocess.run(
        [REPOSITORY / "benchmarks" / "gpu" / "check.sh", "--out", tmp_path / "out", "machina"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no section machina; there are: machine packing" in done.stderr
