"""A person's own script, run as such."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

SCRIPT = """
    import bm25s  # imports numba, which vLLM's CPU worker fails to look through
    import Stemmer

    from limrank import Reranker
    from limrank.retrieval import bm25
    from limrank.records import Document, Query

    documents = [Document("a", "heapq.merge merges sorted inputs"), Document("b", "print a line")]
    found = bm25(documents, [Query("q", "merging feeds")], 2)["q"]
    with Reranker("smollm2-135m-instruct") as reranker:
        ranked = reranker.rank("merging feeds", documents)
    print("ranked", len(ranked), list(found), all(each.score is not None for each in ranked))
"""


def test_a_script_needs_no_guard_whatever_it_imports(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ranked 2 ['a'] True") == 1


RAY_FIRST = """
    import ray

    from limrank import cluster, rerank

    with cluster.connect("local"):
        print("listens on", ray.nodes()[0]["NodeManagerAddress"])
    options = {"data": {"format": "pydocs", "max_queries": 1}, "first_stage": {"depth": 2}, "engine": {"kind": "fake"}}
    print("rows", rerank(run_dir="run", **options).rows.num_rows)
"""


def test_ray_may_be_imported_before_limrank(tmp_path):
    """Ray reads its environment when it is imported: without a token's mode it could not talk to its own cluster."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RAY_FIRST))
    of_ray = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    environment = {name: value for name, value in os.environ.items() if name not in of_ray} | {"HOME": str(tmp_path)}
    # Where Ray's native code ends the process, its reason is in a log. A socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="ray") as sessions:
        environment |= {"RAY_TMPDIR": sessions, "RAY_BACKEND_LOG_LEVEL": "error", "PYTHONFAULTHANDLER": "1"}
        command = [sys.executable, script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
        logs = "".join(path.read_text()[-2000:] for path in Path(sessions).rglob("python-core-driver*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs
    assert done.stdout.splitlines() == ["listens on 127.0.0.1", "rows 2"]
