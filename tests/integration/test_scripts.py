"""``Reranker`` in a person's own script, run as such."""

import subprocess
import sys
import textwrap

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
