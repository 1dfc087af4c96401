"""Runs without a writer, in this process: the queries of a collection, their candidates, grades and lists."""

import json

import pyarrow.parquet as pq
import pytest

from helpers.beir import write_beir
from helpers.rundirs import rows_of
from helpers.synthesis import write_benchmark
from helpers.units import silent, words, write_recipe
from limrank import cli, pipeline
from limrank.config.recipe import parse_config
from limrank.data import beir, pydocs
from limrank.data.seeds import load_corpus, load_seeds
from limrank.data.trec import read_run
from limrank.errors import UserError
from limrank.synthesis import job

CORPUS = {
    "heap": "the heap merges sorted feeds that are too large for memory into one stream",
    "sort": "sorted returns a new list with the items of feeds in order",
    "feed": "a feed reader polls feeds of news and merges items",
    "bread": "bake the bread of rye at the altitude of the resort",
}
QUERIES = {"q1": "merge large sorted feeds", "q2": "which reader polls news feeds", "q3": "rye bread at altitude"}
QRELS = {"q1": {"heap": 1}, "q2": {"feed": 1}, "q3": {"bread": 1}}
SCORES = {
    "q1/0": {"heap": 3.0, "sort": 2.0, "feed": 1.0},
    "q2/0": {"feed": 9.0, "heap": 1.0, "sort": 2.0},
    "q3/0": {"bread": 1.0},
}


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "beir", CORPUS, QUERIES, QRELS)


@pytest.fixture
def teacher(tmp_path):
    (tmp_path / "grades.json").write_text(json.dumps(SCORES))
    return {"kind": "run", "path": str(tmp_path / "grades.json")}


def recipe(tmp_path, seeds, **synthesis):
    return {
        "job": "synthesize",
        "run_dir": str(tmp_path / "run"),
        "synthesis": {"source": "passages", "writer": "none", "seeds": str(seeds), **synthesis},
    }


def run(tmp_path, seeds, *, model=None, engine=None, **synthesis):
    given = recipe(tmp_path, seeds, **synthesis)
    given |= {name: section for name, section in (("model", model), ("engine", engine)) if section}
    return job.run(parse_config(given), address="local", progress=silent())


def examples(tmp_path):
    return pq.read_table(tmp_path / "run" / "examples.parquet").to_pylist()


def kept(tmp_path):
    """Query → the passages of its kept examples, by label."""
    found = {}
    for row in examples(tmp_path):
        if row["kept"]:
            found.setdefault(row["query"], {}).setdefault(row["label"], set()).add(row["passage"])
    return found


def rejected(tmp_path):
    return {row["seed_id"]: row["reject_reason"] for row in examples(tmp_path) if row["reject_reason"]}


def lists(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "lists.jsonl").read_text().splitlines()]


def stats(tmp_path):
    return json.loads((tmp_path / "run" / "stats.json").read_text())


def write_seeds(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- sources ---------------------------------------------------------------------------


def test_the_queries_of_a_beir_folder_become_graded_lists(tmp_path, folder, teacher):
    result = run(tmp_path, folder, teacher=teacher, negatives=2)
    assert (result.failed, result.warnings) == (0, [])
    assert result.messages[0] == (
        "3 seeds, 7 examples, 5 kept (3 true, 2 false, of 3 queries, 1 with both); rejected: false_negative 2"
    )
    # Standard deviations of 0.82 and 3.56: a negative is 2.19 below its query's passage, which no candidate of q1 is.
    assert kept(tmp_path) == {
        QUERIES["q1"]: {True: {CORPUS["heap"]}},
        QUERIES["q2"]: {True: {CORPUS["feed"]}, False: {CORPUS["heap"], CORPUS["sort"]}},
        QUERIES["q3"]: {True: {CORPUS["bread"]}},
    }
    by_query = {record["query"]: record for record in lists(tmp_path)}
    assert set(by_query) == {QUERIES["q1"], QUERIES["q2"]}  # q3 has no other candidate
    assert by_query[QUERIES["q1"]]["passages"][0] == CORPUS["heap"]
    graded = dict(zip(by_query[QUERIES["q2"]]["passages"], by_query[QUERIES["q2"]]["scores"], strict=True))
    assert graded == {CORPUS["feed"]: 9.0, CORPUS["heap"]: 1.0, CORPUS["sort"]: 2.0}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["counts"]) == ("done", {"units": 3, "rows": 3, "failed": 0, "kept": 3})
    assert manifest["tokens"] == {"prompt": 0, "cached_prompt": 0, "generated": 0}
    assert len((tmp_path / "run" / "train.jsonl").read_text().splitlines()) == 5
    benchmark = beir.load(tmp_path / "run" / "candidates", "train")
    assert benchmark.qrels == {"q1/0": {"heap": 1}, "q2/0": {"feed": 1}, "q3/0": {"bread": 1}}
    assert set(read_run(tmp_path / "run" / "candidates" / "run.trec")["q1/0"]) == {"heap", "sort", "feed"}


def test_rows_of_a_file_may_share_a_passage(tmp_path):
    rows = [
        {"id": "a/b", "query": "merge large sorted feeds", "passage": CORPUS["heap"]},
        {"query": "one stream of sorted feeds", "passage": CORPUS["heap"]},
        {"id": 7, "query": "a list of the items in order", "passage": CORPUS["sort"]},
    ]
    result = run(tmp_path, write_seeds(tmp_path / "seeds.jsonl", *rows), negatives=9, round_trip={"filter": False})
    assert result.failed == 0
    assert kept(tmp_path) == {
        rows[0]["query"]: {True: {CORPUS["heap"]}, False: {CORPUS["sort"]}},
        rows[1]["query"]: {True: {CORPUS["heap"]}, False: {CORPUS["sort"]}},
        rows[2]["query"]: {True: {CORPUS["sort"]}},
    }
    assert {row["seed_id"] for row in examples(tmp_path)} == {"a/b", "2", "7"}
    assert {row["example_id"] for row in examples(tmp_path) if row["label"]} == {
        "a%2Fb/0/positive",
        "2/0/positive",
        "7/0/positive",
    }


def test_pydocs_own_queries(tmp_path):
    run(tmp_path, "pydocs", max_seeds=6, round_trip={"filter": False})
    drawn = {row["seed_id"]: row["passage"] for row in examples(tmp_path) if row["label"]}
    assert len(drawn) == 6
    known = {seed.seed_id: seed.passage for seed in pydocs.seeds()}
    assert all(known[seed_id] == passage for seed_id, passage in drawn.items())
    by_id = {document.doc_id: document.contents for document in pydocs.documents()}
    for line in (tmp_path / "run" / "candidates" / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, _ = line.split("\t")
        assert by_id[doc_id] == drawn[query_id.removesuffix("/0")]
    assert sum(not row["label"] for row in examples(tmp_path)) == 6


def test_the_run_s_seed_draws_queries(tmp_path, folder):
    run(tmp_path, folder, max_seeds=2)
    drawn = [seed.seed_id for seed in load_seeds(str(folder), 2, seed=12345)]
    assert sorted({row["seed_id"] for row in examples(tmp_path)}) == sorted(drawn)
    assert stats(tmp_path)["seeds"] == 2
    # Candidates come of the whole corpus.
    assert len(load_corpus(str(folder))) == 4


# ---- what is no negative ---------------------------------------------------------------


def test_other_documents_that_are_judged_relevant_are_no_candidates(tmp_path):
    folder = write_beir(tmp_path / "beir", CORPUS, QUERIES, QRELS | {"q1": {"heap": 2, "sort": 1, "feed": 0}})
    run(tmp_path, folder, negatives=9)
    assert kept(tmp_path)[QUERIES["q1"]] == {True: {CORPUS["heap"]}, False: {CORPUS["feed"]}}
    assert set(read_run(tmp_path / "run" / "candidates" / "run.trec")["q1/0"]) == {"heap", "feed"}


def test_of_two_documents_with_the_same_text_neither_is_a_negative(tmp_path):
    folder = write_beir(
        tmp_path / "beir", {"copy": CORPUS["heap"], **CORPUS}, QUERIES, {"q1": {"heap": 1}, "q3": {"bread": 1}}
    )
    run(tmp_path, folder, negatives=9, round_trip={"k": 1})
    assert rejected(tmp_path) == {}
    assert kept(tmp_path)[QUERIES["q1"]] == {True: {CORPUS["heap"]}, False: {CORPUS["sort"], CORPUS["feed"]}}


def test_a_query_that_is_there_twice_is_kept_once_and_both_passages_answer_it(tmp_path):
    rows = [
        {"id": "a", "query": "merge large sorted feeds", "passage": CORPUS["heap"]},
        {"id": "b", "query": "Merge large sorted  feeds", "passage": CORPUS["feed"]},
        {"id": "c", "query": "items in order", "passage": CORPUS["sort"]},
    ]
    run(tmp_path, write_seeds(tmp_path / "seeds.jsonl", *rows), negatives=9, round_trip={"filter": False})
    assert rejected(tmp_path) == {"b": "duplicate_query"}
    assert kept(tmp_path)[rows[0]["query"]] == {True: {CORPUS["heap"]}, False: {CORPUS["sort"]}}
    assert stats(tmp_path)["rejected"] == {"duplicate_query": 1}


def test_a_query_of_a_benchmark_is_left_out(tmp_path, folder):
    test = write_benchmark(tmp_path / "test", QUERIES["q2"])
    run(tmp_path, folder, decontaminate=[test])
    assert rejected(tmp_path) == {"q2": "contaminated"}
    assert QUERIES["q2"] not in kept(tmp_path)
    assert (stats(tmp_path)["contaminated_seeds"], stats(tmp_path)["queries"]) == (1, 2)
    planned = job.plan(parse_config(recipe(tmp_path, folder, decontaminate=[test])))
    assert planned["contaminated"] == "1 seeds"


# ---- candidates ------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"bm25_weight": 0.5}, {"bm25_weight": 1, "passage_first": True}])
def test_a_query_that_shares_no_word_with_the_corpus_has_only_its_passage(tmp_path, teacher, more):
    folder = write_beir(tmp_path / "beir", CORPUS, QUERIES | {"q1": "zyx wvu"}, QRELS)
    run(tmp_path, folder, round_trip={"filter": False}, teacher=teacher | more)
    assert kept(tmp_path)["zyx wvu"] == {True: {CORPUS["heap"]}}
    assert "zyx wvu" not in {record["query"] for record in lists(tmp_path)}
    assert list(read_run(tmp_path / "run" / "candidates" / "run.trec")["q1/0"]) == ["heap"]


def test_a_query_that_does_not_find_its_passage_is_rejected_unless_the_round_trip_filters_nothing(tmp_path):
    folder = write_beir(tmp_path / "beir", CORPUS, QUERIES | {"q1": "zyx wvu"}, QRELS)
    run(tmp_path, folder)
    assert rejected(tmp_path) == {"q1": "not_found"}
    for unfiltered in ({"filter": False}, {"retriever": "none"}, {"retriever": "none", "filter": False, "k": 1}):
        run(tmp_path, folder, round_trip=unfiltered)
        assert rejected(tmp_path) == {}


def test_a_query_without_candidates_alone(tmp_path, teacher):
    seeds = write_seeds(tmp_path / "seeds.jsonl", {"id": "q1", "query": "zyx wvu", "passage": CORPUS["bread"]})
    (tmp_path / "grades.json").write_text(json.dumps({"q1/0": {"q1": 0.5}}))
    weighed = teacher | {"bm25_weight": 0.3, "passage_first": True}
    run(tmp_path, seeds, teacher=weighed, round_trip={"filter": False})
    assert kept(tmp_path) == {"zyx wvu": {True: {CORPUS["bread"]}}}
    assert lists(tmp_path) == []


# ---- a second call -------------------------------------------------------------------


def test_a_second_call_mines_anew_and_reads_the_rows_that_are_there(tmp_path, folder, teacher):
    run(tmp_path, folder, teacher=teacher)
    rows = tmp_path / "run" / "rows" / "chunk-000000.parquet"
    written, changed = rows.read_bytes(), rows.stat().st_mtime_ns
    first = lists(tmp_path)
    for mining in (
        {"teacher": teacher | {"bm25_weight": 1}},
        {"teacher": teacher | {"passage_first": True}},
        {"teacher": teacher, "round_trip": {"filter": False, "k": 2}},
        {"teacher": teacher, "list_size": 2, "negatives": 3, "mine_depth": 1, "size": 2},
    ):
        run(tmp_path, folder, **mining)
        assert (rows.read_bytes(), rows.stat().st_mtime_ns) == (written, changed), mining
        assert lists(tmp_path) != first or "round_trip" in mining, mining
    run(tmp_path, folder, teacher=teacher)
    assert lists(tmp_path) == first


def test_other_queries_are_refused_and_another_model_is_not(tmp_path, folder):
    run(tmp_path, folder)
    run(tmp_path, folder, model={"id": "no/such-model"}, engine={"kind": "fake"})
    with pytest.raises(UserError, match="another config"):
        run(tmp_path, folder, max_seeds=1)


def test_a_lost_chunk_is_made_again(tmp_path, folder):
    run(tmp_path, folder)
    rows = rows_of(tmp_path / "run")
    (tmp_path / "run" / "rows" / "chunk-000000.parquet").unlink()
    run(tmp_path, folder)
    assert rows_of(tmp_path / "run") == rows


# ---- what a run without a writer says --------------------------------------------------


def test_the_reports_know_no_writer(tmp_path, folder, teacher):
    weighed = teacher | {"bm25_weight": 0.25, "passage_first": True}
    run(tmp_path, folder, teacher=weighed, round_trip={"filter": False}, license="mit")
    found = stats(tmp_path)
    assert found["writer"] == "none: the queries are the seeds' own"
    assert (found["writer_kind"], found["round_trip"], found["prompts"], found["steps"]) == ("none", None, {}, {})
    assert (found["bm25_weight"], found["passage_first"]) == (0.25, True)
    card = (tmp_path / "run" / "DATASET.md").read_text()
    assert "\n# Examples for a pointwise reasoning reranker\n" in card
    assert ", from 3 queries (beir)." in card
    assert "writer: none: the queries are the seeds' own" in card
    assert "with a share of 0.25 of BM25; a query's own passage is graded above its candidates" in card
    assert "The queries are the seeds' own; mined passages come from the seeds' own corpus." in card
    for untrue in ("synthetic", "Synthetic", "planned", "Prompts", "Tokens by step", "models' licenses", "has to find"):
        assert untrue not in card, untrue
    page = words((tmp_path / "run" / "report.html").read_text())
    assert page.startswith("Examples ") and "queries 3 examples" in page
    assert "grades.json, with a share of 0.25 of BM25" in page
    for untrue in ("Synthetic", "planned", "None", "Query kind", "round trip"):
        assert untrue not in page, untrue
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "writer: none" in config


def test_the_reports_of_a_teacher_alone_say_nothing_of_bm25(tmp_path, folder, teacher):
    run(tmp_path, folder, teacher=teacher)
    assert not {"bm25_weight", "passage_first"} & stats(tmp_path).keys()
    card = (tmp_path / "run" / "DATASET.md").read_text()
    assert "candidates: grades.json\n" in card and "has to find its passage again: by bm25, in the first 10" in card


# ---- the command -----------------------------------------------------------------------


def test_a_dry_run_counts_queries(tmp_path, folder, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", **recipe(tmp_path, folder))
    assert cli.main(["synthesize", str(file), "--dry-run"]) == 0
    plan = capsys.readouterr().out.partition("# plan\n")[2]
    assert plan == "#   units: 3 queries, 4 documents to mine\n"
    assert not (tmp_path / "run").exists()


def test_there_is_nothing_to_preview(tmp_path, folder, capsys):
    file = write_recipe(tmp_path / "recipe.yaml", **recipe(tmp_path, folder))
    assert cli.main(["synthesize", str(file), "--preview", "1"]) == 2
    assert capsys.readouterr().err == (
        "limrank: synthesis.writer=none: nothing is written, so there is nothing to preview\n"
    )
    assert not (tmp_path / "run").exists()


def test_no_model_and_no_cluster_is_needed(tmp_path, folder, monkeypatch):
    def unwanted(*given, **named):
        raise AssertionError("a run without a writer asks nobody")

    monkeypatch.setattr(job.cluster, "connect", unwanted)
    monkeypatch.setattr(job, "check_engine", unwanted)
    writer = tmp_path / "writer"
    writer.mkdir()
    (writer / "config.json").write_text("{}")
    (writer / "limrank.json").write_text(json.dumps({"task": "writer", "prompt": "Text: {{ passage }}\nAsked:"}))
    endpoint = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
    for number, (model, engine) in enumerate([({"id": str(writer)}, None), ({"id": "no/model"}, endpoint)]):
        (tmp_path / str(number)).mkdir()
        run(tmp_path / str(number), folder, model=model, engine=engine)
        assert len(kept(tmp_path / str(number))) == 3
    given = parse_config(recipe(tmp_path, folder))
    engines = dict.fromkeys(("writer", "judge", "scorer"), "a pipeline's engine")
    assert job.run(given, address="local", progress=silent(), engines=engines).failed == 0


def test_a_pipeline_takes_given_queries(tmp_path, folder):
    given = recipe(tmp_path, folder, round_trip={"filter": False}) | {"job": "pipeline", "engine": {"kind": "fake"}}
    plan = pipeline.plan(parse_config(given | {"data": {"format": "pydocs"}}))
    assert plan["synthesize"] == "3 queries, 4 documents to mine"
    assert plan["first_prompt"] is None


# ---- garbage ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a\tb", "query": "q", "passage": "p"}, "holds a tab or a line end"),
        ({"id": "/" * 400, "query": "q", "passage": "p"}, "has more than 1000 characters"),
        ({"passage": "p"}, "seeds.jsonl:1: query is missing"),
        ({"query": " ", "passage": "p"}, "seeds.jsonl:1: query is empty"),
        ({"query": "q", "passage": None}, "seeds.jsonl:1: passage is missing"),
        ({"query": 1.5, "passage": "p"}, "seeds.jsonl:1: query is of type float"),
        ([1], "seeds.jsonl:1"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, row, message):
    with pytest.raises(UserError) as refused:
        run(tmp_path, write_seeds(tmp_path / "seeds.jsonl", row))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_no_queries_are_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match="there are no seeds"):
        run(tmp_path, write_seeds(tmp_path / "seeds.jsonl"))
    folder = write_beir(tmp_path / "beir", CORPUS, QUERIES, {"q1": {"heap": 0}})
    with pytest.raises(UserError, match="no query of queries.jsonl has a relevant passage"):
        run(tmp_path, folder)
    (folder / "qrels" / "test.tsv").unlink()
    with pytest.raises(UserError, match="no judgements"):
        run(tmp_path, folder)


def test_a_query_id_too_long_for_its_examples_is_refused_in_a_folder_too(tmp_path):
    folder = write_beir(tmp_path / "beir", CORPUS, {"%" * 400: QUERIES["q1"]}, {"%" * 400: {"heap": 1}})
    with pytest.raises(UserError, match=r"the query id '%+.*has more than 1000 characters"):
        run(tmp_path, folder)
    # A document's id is in no example's id.
    folder = write_beir(tmp_path / "long", {"%" * 400: CORPUS["heap"]}, {"q1": QUERIES["q1"]}, {"q1": {"%" * 400: 1}})
    run(tmp_path, folder)
    assert len(kept(tmp_path)) == 1
