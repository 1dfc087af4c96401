"""Engines that take GPUs, on a Ray that only says it has some: the fake engine needs none."""

import json
import subprocess
import sys
import textwrap

import pytest

START = """
    import sys

    import ray

    from limrank import rerank, synthesize

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    replicas, gpus = int(sys.argv[1]), {"gpus": 1} if sys.argv[2] == "given" else {}
    options = {"workers": {"replicas": replicas, **gpus}, "engine": {"kind": "fake"}}
"""
RERANK = """
    data = {"format": "pydocs", "max_queries": 8}
    found = rerank(run_dir="run", data=data, first_stage={"depth": 3}, **options)
    print("rows", found.rows.num_rows)
"""
SYNTHESIZE = """
    found = synthesize(run_dir="run", synthesis={"source": "passages", "seeds": "pydocs", "max_seeds": 8}, **options)
    print("rows", found.rows.num_rows)
"""


@pytest.mark.parametrize("work", [RERANK, SYNTHESIZE], ids=["rerank", "synthesize"])
@pytest.mark.parametrize(("replicas", "gpus"), [(1, "given"), (2, "found")])
def test_a_pool_of_engines_with_gpus(tmp_path, work, replicas, gpus):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(START + work))
    command = [sys.executable, script.name, str(replicas), gpus]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split("rows ")[1].split()[0]) > 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["counts"]["units"] == 8
