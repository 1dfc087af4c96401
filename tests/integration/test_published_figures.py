"""Published effectiveness figures, measured again from the stored runs and judgements.

The data lies outside the repository (see its README for sources); the tests skip without it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import REPOSITORY
from limrank.config import DataConfig, FirstStageConfig
from limrank.data import benchmarks, hub_benchmarks
from limrank.data.trec import read_lines, read_qrels, read_run
from limrank.evaluation.inputs import drop_excluded
from limrank.evaluation.metrics import evaluate, p_mrr
from limrank.records import Query
from limrank.retrieval import candidates

DEFAULT = REPOSITORY.parent / "shared" / "data"
DATA = Path(os.environ.get("LIMRANK_SHARED_DATA", DEFAULT))
DL19 = "msmarco_dl19_pool"
RANK_LLM = "rank_llm_dl19/rerank_"
BRIGHT = "bright_topics_qrels_runs"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="no shared data here; LIMRANK_SHARED_DATA may name its directory"
)


def excluded_queries(path):
    """The pairs of BRIGHT's ``excluded.tsv.gz`` as queries that exclude; none without it."""
    excluded = {}
    for _, line in read_lines(path) if path.is_file() else ():
        query_id, doc_id = line.split("\t")
        excluded.setdefault(query_id, set()).add(doc_id)
    return [Query(query_id, "", excluded=frozenset(ids)) for query_id, ids in excluded.items()]


@pytest.mark.parametrize(
    ("run", "qrels", "measure", "published", "digits"),
    [
        (f"{DL19}/run.bm25.top100.trec", f"{DL19}/qrels/test_full.tsv", "nDCG@10", 0.5058, 4),
        (f"{DL19}/run.bm25.top100.trec", f"{DL19}/qrels/test.tsv", "nDCG@10", 0.5071, 4),
        (f"{RANK_LLM}rankvicuna_dl19.ndcg10_0.6682.trec", f"{DL19}/qrels/test_full.tsv", "nDCG@10", 0.6682, 4),
        (f"{RANK_LLM}rankvicuna_dl19.ndcg10_0.6682.trec", f"{DL19}/qrels/test.tsv", "nDCG@10", 0.6698, 4),
        (f"{RANK_LLM}rankvicuna_dl19.ndcg10_0.6682.trec", "rank_llm_dl19/qrels.dl19-passage.txt", "nDCG@10", 0.6682, 4),
        (f"{RANK_LLM}gpt-3.5-turbo_dl19.ndcg10_0.6799.trec", f"{DL19}/qrels/test_full.tsv", "nDCG@10", 0.6799, 4),
        (f"{BRIGHT}/biology/run.xrr_gemini.trec.gz", f"{BRIGHT}/biology/qrels/test.tsv", "nDCG@10", 0.62310, 5),
        (f"{BRIGHT}/pony/run.xrr_gemini.trec.gz", f"{BRIGHT}/pony/qrels/test.tsv", "nDCG@10", 0.33238, 5),
        (
            f"{BRIGHT}/biology/run.reasonir_gpt4cot.top100.trec.gz",
            f"{BRIGHT}/biology/qrels/test.tsv",
            "nDCG@10",
            0.43493,
            5,
        ),
        (f"{BRIGHT}/pony/run.reasonir_gpt4cot.top100.trec.gz", f"{BRIGHT}/pony/qrels/test.tsv", "nDCG@10", 0.19552, 5),
        ("litsearch/run.bm25.trec.gz", "litsearch/qrels/test.tsv", "nDCG@50", 0.435818, 6),
    ],
)
def test_published_effectiveness(run, qrels, measure, published, digits):
    ranked = drop_excluded(read_run(DATA / run), excluded_queries((DATA / run).parent / "excluded.tsv.gz"))
    scores = evaluate(read_qrels(DATA / qrels), ranked, [measure])
    assert f"{scores.mean[measure]:.{digits}f}" == f"{published:.{digits}f}"
    assert scores.missing == []


def test_bm25_on_rewritten_queries_over_all_of_bright(shared_data):
    """27.07 is the mean over the twelve subsets: BM25 that was asked GPT-4o's rewritings."""
    subsets = {folder.name: folder for folder in (shared_data / BRIGHT).iterdir()}
    assert subsets.keys() == set(hub_benchmarks.BRIGHT_SUBSETS)
    means = []
    for folder in subsets.values():
        run, qrels = read_run(folder / "run.bm25_gpt4o_qe.trec.gz"), read_qrels(folder / "qrels" / "test.tsv")
        assert run.keys() == qrels.keys()
        means.append(evaluate(qrels, run, ["nDCG@10"]).mean["nDCG@10"])
    assert f"{100 * sum(means) / len(means):.2f}" == "27.07"


def test_p_mrr_agrees_with_mteb():
    vectors = json.loads((DATA / "followir" / "pmrr_vectors_from_mteb_tests.json").read_text())
    assert len(vectors) == 4
    for vector in vectors:
        assert p_mrr(vector["run_og"], vector["run_new"], vector["changed_qrels"]) == vector["p_mrr"]


def test_the_ir_measures_command_prints_the_same(tmp_path):
    measures = ["nDCG@10", "AP", "RR", "R@20", "P@5", "RR@10", "AP(rel=2)"]
    run = DATA / DL19 / "run.bm25.top100.trec"
    qrels = DATA / "rank_llm_dl19" / "qrels.dl19-passage.txt"
    # Without the first two queries: those that are missing must count 0 in both.
    lines = run.read_text().splitlines(keepends=True)
    dropped = sorted({line.split()[0] for line in lines})[:2]
    part = tmp_path / "part.trec"
    part.write_text("".join(line for line in lines if line.split()[0] not in dropped))
    command = [sys.executable, "-m", "ir_measures", str(qrels), str(part), *measures]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    scores = evaluate(read_qrels(qrels), read_run(part), measures)
    assert printed == "".join(f"{name}\t{value:.4f}\n" for name, value in scores.mean.items())
    assert sorted(scores.missing) == dropped


@pytest.mark.parametrize(
    ("collection", "first_stage", "expected"),
    [
        ("scifact", {}, 0.676),
        ("scifact", {"stemmer": "none"}, 0.657),
        ("cranfield", {}, 0.366),
        ("cranfield", {"stemmer": "none"}, 0.348),
        ("bright_pony_tutorial", {}, 0.104),
        ("bright_pony_tutorial", {"query_weights": "bm25"}, 0.125),  # gensim's LuceneBM25Model on both sides
    ],
)
def test_the_first_stage_is_the_field_s_bm25(collection, first_stage, expected):
    """k1 0.9, b 0.4, Lucene's English stop words, Snowball's English stemmer."""
    benchmark = benchmarks.load(DataConfig(format="beir", path=str(DATA / collection)))
    ranked = candidates(benchmark, FirstStageConfig(depth=10, **first_stage))
    run = {query.query_id: {each.doc_id: -each.rank for each in found} for query, found in ranked}
    assert evaluate(benchmark.qrels, run, ["nDCG@10"]).mean["nDCG@10"] == pytest.approx(expected, abs=5e-4)
