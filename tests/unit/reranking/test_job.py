import json

import pyarrow as pa
import pytest

from helpers.beir import CORPUS, QRELS, QUERIES, write_beir
from helpers.rundirs import rows
from helpers.units import fake_engine, runner, silent
from limrank import prompts
from limrank.batch.plan import write_plan
from limrank.config import RerankJob
from limrank.data import trec
from limrank.errors import RowError, UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus, rerank_row_schema, rerank_unit_schema
from limrank.reranking import job, runs
from limrank.reranking.source import open_source, units
from limrank.storage import Storage

DIRECT, FAILED = ScoreStatus.DIRECT, ScoreStatus.FAILED


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "data")


@pytest.fixture
def config(folder, tmp_path):
    """Makes a recipe on the tiny folder: ``config(scoring={"mode": "direct"})``."""

    def make(**sections):
        values = {
            "run_dir": str(tmp_path / "run"),
            "data": {"format": "beir", "path": str(folder)},
            "first_stage": {"depth": 3},
            "engine": {"kind": "fake"},
            "scoring": {"mode": "none"},
        }
        return RerankJob(**(values | sections))

    return make


def run(config, **options):
    return job.run(config, address="local", progress=silent(), **options)


def import_rows(storage, ranked):
    """Commits rankings as a finished chunk: ``{query: [documents, best first]}``."""
    lines = [
        {"query_id": query_id, "doc_id": doc_id, "rank": rank}
        for query_id, docs in ranked.items()
        for rank, doc_id in enumerate(docs, start=1)
    ]
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(lines, schema=rerank_row_schema()))


# ---- rows ----------------------------------------------------------------------------


def test_rows_are_best_first_ties_in_first_stage_order_and_failed_ones_last():
    candidates = [Candidate(f"d{rank}", "text", rank, 10.0 - rank) for rank in range(1, 6)]
    judgments = [
        Judgment("d1", None, FAILED, error=RowError("too long")),
        Judgment("d2", 0.5, DIRECT),
        Judgment(
            "d3", 0.9, ScoreStatus.FORCED, reasoning="because", prompt_tokens=7, generated_tokens=3, truncated=True
        ),
        Judgment("d4", None, FAILED, error=RowError("too long")),
        Judgment("d5", 0.5, DIRECT),
    ]
    made = job.ranked_rows(Query("q", "text"), candidates, judgments)
    assert [(row["rank"], row["doc_id"], row["score"]) for row in made] == [
        (1, "d3", 0.9),
        (2, "d2", 0.5),
        (3, "d5", 0.5),
        (4, "d1", None),
        (5, "d4", None),
    ]
    assert made[0] == {
        "query_id": "q",
        "doc_id": "d3",
        "rank": 1,
        "first_stage_rank": 3,
        "first_stage_score": 7.0,
        "score": 0.9,
        "status": "forced",
        "reasoning": "because",
        "prompt_tokens": 7,
        "generated_tokens": 3,
        "truncated": True,
        "direct_score": None,
        "think_score": None,
    }
    assert list(made[0]) == rerank_row_schema().names


def test_a_score_of_zero_is_a_score():
    candidates = [Candidate("d1", "text", 1, 2.0), Candidate("d2", "text", 2, 1.0)]
    made = job.ranked_rows(Query("q", "text"), candidates, [Judgment("d1", None, FAILED), Judgment("d2", 0.0, DIRECT)])
    assert [row["doc_id"] for row in made] == ["d2", "d1"]


# ---- runs ----------------------------------------------------------------------------


def test_run_files_carry_minus_rank(tmp_path):
    storage = Storage(str(tmp_path))
    import_rows(storage, {"q1": ["b", "a"], "q2": ["c"]})
    runs.write_runs(storage)
    assert storage.read_text("run.trec") == "q1 Q0 b 1 -1 limrank\nq1 Q0 a 2 -2 limrank\nq2 Q0 c 1 -1 limrank\n"
    assert storage.read_text("run.json") == '{\n"q1": {"b": -1.0, "a": -2.0},\n"q2": {"c": -1.0}\n}\n'


@pytest.mark.parametrize("odd", ["two words", "no\u00a0break", " first", "last "])
def test_ids_with_white_space_are_tab_separated_and_read_back(tmp_path, odd):
    storage = Storage(str(tmp_path))
    import_rows(storage, {"q": [odd, "plain"]})
    runs.write_runs(storage)
    assert storage.read_text("run.trec").splitlines()[0] == f"q\tQ0\t{odd}\t1\t-1\tlimrank"
    assert trec.read_run(tmp_path / "run.trec") == {"q": {odd: -1.0, "plain": -2.0}}
    assert trec.read_run(tmp_path / "run.json") == {"q": {odd: -1.0, "plain": -2.0}}


def test_ids_that_json_must_escape(tmp_path):
    storage = Storage(str(tmp_path))
    import_rows(storage, {'q"1': ["é\\"]})
    runs.write_runs(storage)
    assert json.loads(storage.read_text("run.json")) == {'q"1': {"é\\": -1.0}}


def test_no_rows_are_an_empty_run(tmp_path):
    storage = Storage(str(tmp_path))
    runs.write_runs(storage)
    assert (storage.read_text("run.trec"), storage.read_text("run.json")) == ("", "{}\n")


# ---- the job without an engine -------------------------------------------------------


def test_mode_none_is_the_first_stage_s_order(config, tmp_path):
    result = run(config())
    storage = Storage(str(tmp_path / "run"))
    # d1 has both words of q1 and d3 one; d2 both of q2 and d3 one.
    assert sorted(storage.read_text("run.trec").splitlines()) == [
        "q1 Q0 d1 1 -1 limrank",
        "q1 Q0 d3 2 -2 limrank",
        "q2 Q0 d2 1 -1 limrank",
        "q2 Q0 d3 2 -2 limrank",
    ]
    found = rows(storage)
    assert {row["status"] for row in found} == {"skipped"}
    assert {row["score"] for row in found} == {None}
    assert all(row["rank"] == row["first_stage_rank"] for row in found)
    assert (result.failed, result.warnings) == (0, [])
    assert result.messages == ["2 queries, 4 pairs, 0 failed", f"run: {tmp_path}/run/run.trec"]
    assert storage.read_text("qrels.tsv") == "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n"
    assert [json.loads(line) for line in storage.read_text("queries.jsonl").splitlines()] == [
        {"_id": "q1", "text": "cat roof"},
        {"_id": "q2", "text": "dog park"},
    ]
    manifest = json.loads(storage.read_text("manifest.json"))
    assert (manifest["status"], manifest["counts"]) == ("done", {"units": 2, "rows": 4, "failed": 0})
    assert manifest["tokens"] == {"prompt": 0, "cached_prompt": 0, "generated": 0}


def test_a_second_run_resumes_and_a_lost_chunk_is_made_again(config, tmp_path):
    storage = Storage(str(tmp_path / "run"))
    run(config())
    first = storage.read_text("run.trec")
    storage.remove("rows/chunk-000000.parquet")
    storage.remove("run.trec")
    run(config(workers={"replicas": 4}, allow_failures=True))
    assert storage.read_text("run.trec") == first
    assert len(rows(storage)) == 4
    assert json.loads(storage.read_text("manifest.json"))["resumed"] is True


def test_max_queries_selects_what_evaluation_covers(config, tmp_path):
    run(config(data={"format": "beir", "path": str(tmp_path / "data"), "max_queries": 1}))
    storage = Storage(str(tmp_path / "run"))
    assert storage.read_text("qrels.tsv") == "query-id\tcorpus-id\tscore\nq1\td1\t1\n"
    assert {row["query_id"] for row in rows(storage)} == {"q1"}


def test_a_query_without_candidates_has_no_rows(config, tmp_path):
    write_beir(tmp_path / "data", queries=QUERIES | {"q3": "zebra"}, qrels=QRELS | {"q3": {"d4": 1}})
    result = run(config())
    assert result.messages[0] == "3 queries, 4 pairs, 0 failed"


def test_another_config_is_refused(config):
    run(config())
    with pytest.raises(UserError, match="another config"):
        run(config(first_stage={"depth": 1}))
    assert run(config(first_stage={"depth": 1}), overwrite=True).messages[0] == "2 queries, 2 pairs, 0 failed"


# ---- plan ----------------------------------------------------------------------------


def test_a_dry_run_tells_the_plan_and_writes_nothing(config, tmp_path):
    plan = job.plan(config(scoring={"mode": "budget", "max_think_tokens": 10}))
    assert plan["units"] == "2 queries, 4 pairs"
    # A chain of 10 tokens at 4 each, and the characters of query and passage at 4 a token:
    # q1 8 + 36 (d1), 8 + 34 (d3); q2 8 + 39 (d2), 8 + 34 (d3).
    assert [len(CORPUS[name]) for name in ("d1", "d2", "d3")] == [36, 39, 34]
    assert plan["tokens"] == f"about {4 * 40 + 11 + 10 + 11 + 10} to read and write"
    assert plan["workers"] == {"replicas": 1, "tensor_parallel": 1, "cpus": 1.0}
    assert plan["first_prompt"] == (
        "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
        "Query: cat roof\n"
        "Passage: the lazy cat sleeps on the warm roof\n"
        "<think>"
    )
    assert not (tmp_path / "run").exists()


def test_without_an_engine_there_is_no_prompt(config):
    assert job.plan(config())["first_prompt"] is None


# ---- the hash ------------------------------------------------------------------------

DIRECT_MODE = {"mode": "direct"}


def hashed(config):
    return job.rows_hash(config, open_source(config))


@pytest.mark.parametrize(
    "sections",
    [
        {"run_dir": "/elsewhere"},
        {"workers": {"replicas": 3, "cpus": 2, "gpus": 1}},
        {"allow_failures": True},
        {"engine": {"kind": "fake", "latency_ms": 50, "max_in_flight": 3, "request_timeout_s": 1}},
        {"scoring": {"mode": "direct", "prompt": "relevance"}},
        {"scoring": {"mode": "direct", "min_think_tokens": 7, "compatibility": "rank1"}},
    ],
)
def test_the_hash_leaves_out_what_changes_no_row(config, sections):
    base = config(scoring=DIRECT_MODE)
    assert hashed(config(**({"scoring": DIRECT_MODE} | sections))) == hashed(base)


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 1},
        {"model": {"id": "other/model"}},
        {"model": {"dtype": "float32"}},
        {"model": {"max_model_len": 512}},
        {"scoring": {"mode": "think"}},
        {"scoring": {"mode": "none"}},
        {"scoring": {"mode": "budget", "max_think_tokens": 8}},
        {"first_stage": {"depth": 2}},
        {"first_stage": {"depth": 3, "k1": 1.2}},
        {"first_stage": {"depth": 3, "query_weights": "bm25"}},
        {"engine": {"kind": "vllm"}},
    ],
)
def test_the_hash_covers_what_changes_rows(config, sections):
    base = config(scoring=DIRECT_MODE)
    assert hashed(config(**({"scoring": DIRECT_MODE} | sections))) != hashed(base)


def test_the_hash_is_the_same_for_both_names_of_a_fault(config):
    flat, nested = {"kind": "fake", "fail_rate": 0.5}, {"kind": "fake", "fault": {"fail_rate": 0.5, "latency_ms": 9}}
    base, *hashes = (hashed(config(scoring=DIRECT_MODE, engine=each)) for each in ({"kind": "fake"}, flat, nested))
    assert hashes[0] == hashes[1] != base


@pytest.mark.parametrize("key", [{"min_think_tokens": 7}, {"compatibility": "rank1"}], ids=str)
def test_the_hash_covers_how_a_chain_is_made(config, key):
    thinking = {"mode": "think", "max_think_tokens": 64}
    assert hashed(config(scoring=thinking | key)) != hashed(config(scoring=thinking))


def test_the_hash_covers_what_a_query_is_put_into_where_a_reranker_sees_it(config, folder):
    data = {"format": "beir", "path": str(folder)}
    asked = data | {"query_template": "Find: {{ query }}"}
    assert hashed(config(data=asked)) == hashed(config(data=data))  # mode none: nobody is asked
    assert hashed(config(data=asked, scoring=DIRECT_MODE)) != hashed(config(data=data, scoring=DIRECT_MODE))


def test_the_hash_leaves_out_bm25_where_a_run_is_given(config, tmp_path):
    (tmp_path / "a.trec").write_text("q1 Q0 d1 1 9 tag\n")
    given = {"kind": "run", "path": str(tmp_path / "a.trec")}
    assert hashed(config(first_stage=given | {"k1": 2.0, "query_weights": "bm25"})) == hashed(config(first_stage=given))
    assert hashed(config(first_stage=given | {"depth": 2})) != hashed(config(first_stage=given))


def test_the_hash_covers_contents_wherever_they_lie(config, tmp_path):
    base = hashed(config())
    moved = write_beir(tmp_path / "moved")
    assert hashed(config(data={"format": "beir", "path": str(moved)})) == base
    write_beir(moved, corpus=CORPUS | {"d4": "trains leave the station twice an hour"})
    assert hashed(config(data={"format": "beir", "path": str(moved)})) != base
    selected = {"format": "beir", "path": str(tmp_path / "data"), "max_queries": 1}
    assert hashed(config(data=selected)) != base


def test_the_hash_covers_which_queries_are_judged_and_not_their_grades(config, tmp_path):
    base = hashed(config())
    write_beir(tmp_path / "data", qrels={"q1": {"d3": 2}, "q2": {"d2": 0}})
    assert hashed(config()) == base
    write_beir(tmp_path / "data", qrels={"q1": {"d1": 1}})
    assert hashed(config()) != base


def test_the_hash_covers_a_prompt_s_text_and_not_its_path(config, tmp_path):
    text = prompts.load("relevance")
    for name, words in (("same.txt", text), ("other.txt", text + "\nThink hard.")):
        (tmp_path / name).write_text(words, encoding="utf-8")
    base = hashed(config(scoring=DIRECT_MODE))
    assert hashed(config(scoring=DIRECT_MODE | {"prompt": str(tmp_path / "same.txt")})) == base
    assert hashed(config(scoring=DIRECT_MODE | {"prompt": str(tmp_path / "other.txt")})) != base


def test_the_hash_covers_a_given_run_s_contents(config, tmp_path):
    hashes = []
    for name, doc_id in (("a", "d1"), ("b", "d1"), ("c", "d2")):
        path = tmp_path / f"{name}.trec"
        path.write_text(f"q1 Q0 {doc_id} 1 1.0 x\n")
        hashes.append(hashed(config(first_stage={"kind": "run", "path": str(path), "depth": 3})))
    assert hashes[0] == hashes[1] != hashes[2]


# ---- the task ------------------------------------------------------------------------


def test_a_pair_that_fails_is_a_row_and_a_failure(config, tmp_path):
    settings = config(scoring=DIRECT_MODE)
    storage = Storage(str(tmp_path / "run"))
    write_plan(storage, units(open_source(settings), settings.scoring), rerank_unit_schema(), chunk_cost=10_000)
    task = job.RerankTask(settings.scoring)
    # Half of all prompts fail, always the same ones.
    receipt = runner(storage, task, {"scorer": fake_engine(fail_rate=0.5)}).run(0, isolated=False)
    found = rows(storage)
    failed = {(row["query_id"], row["doc_id"]) for row in found if row["status"] == "failed"}
    assert (receipt.units, receipt.rows) == (2, 4)
    assert 0 < len(failed) < 4
    assert {tuple(row["unit_id"].split("\t")) for row in rows(storage, "failures")} == failed
    for row in found:
        assert (row["score"] is None) == (row["status"] == "failed")
        assert row["score"] is None or 0 <= row["score"] <= 1
    assert receipt.failed == len(failed)
    assert receipt.requests == 4 - len(failed)
