import gzip
import json
from dataclasses import replace

import pytest

from limrank.config import DataConfig
from limrank.data import beir, benchmarks
from limrank.errors import UserError
from limrank.records import Benchmark, Document, Query

CORPUS = """\
{"_id": "d1", "title": "Bread", "text": "Dough rises."}
{"_id": 2, "text": "Yeast feeds on sugar."}
{"_id": "d3", "title": null, "text": "Salt slows it."}
"""
QUERIES = """\
{"_id": "train", "text": "of the other split"}
{"_id": "q2", "text": "why does dough rise", "instruction": "Name the organism.", "excluded_ids": ["d3"]}
{"_id": "q1", "text": "bread", "excluded_ids": ["N/A"]}
"""
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\t2\t2\nq2\td1\t0\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bread"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(CORPUS)
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / "qrels" / "test.tsv").write_text(QRELS)
    return folder


def refused(folder, split="test"):
    with pytest.raises(UserError) as error:
        beir.load(folder, split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_load(folder):
    benchmark = beir.load(folder)
    assert benchmark == Benchmark(
        "bread/test",
        [
            Document("d1", "Dough rises.", title="Bread"),
            Document("2", "Yeast feeds on sugar."),
            Document("d3", "Salt slows it."),
        ],
        [Query("q2", "why does dough rise", "Name the organism.", frozenset({"d3"})), Query("q1", "bread")],
        {"q1": {"d1": 1}, "q2": {"2": 2, "d1": 0}},
        [],
        unselected=frozenset({"train"}),  # which no judgement names
    )


def test_gzipped_files(folder):
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        plain = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    assert [query.query_id for query in beir.load(folder).queries] == ["q2", "q1"]


def test_judgements_of_what_is_not_there_are_a_warning(folder):
    with (folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q1\tgone\t1\nstranger\td1\t1\nother\td1\t1\n")
    benchmark = beir.load(folder)
    # A lost document stays in the ideal ranking, a lost query cannot be asked.
    assert benchmark.qrels == {"q1": {"d1": 1, "gone": 1}, "q2": {"2": 2, "d1": 0}}
    assert benchmark.warnings == [
        "bread/test: the judgements of 2 queries that the collection lacks are left out",
        "bread/test: 1 judgements name documents that the collection lacks; they stay in the ideal",
    ]


def test_without_judgements_all_queries_are_taken(folder):
    (folder / "qrels" / "test.tsv").unlink()
    benchmark = beir.load(folder)
    assert [query.query_id for query in benchmark.queries] == ["train", "q2", "q1"]
    assert benchmark.qrels == {}
    assert "all 3 queries are taken" in benchmark.warnings[0]


def test_missing_parts_are_named(folder, tmp_path):
    assert f"{tmp_path / 'no'}: no such folder" in refused(tmp_path / "no")
    (folder / "qrels" / "dev.tsv").write_text(QRELS)
    assert refused(folder, "train").endswith("train.tsv: no such split; there are: dev, test")
    (folder / "queries.jsonl").unlink()
    assert f"{folder / 'queries.jsonl'}: no such file" in refused(folder)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("", "corpus.jsonl: the corpus is empty"),
        ('{"_id": "a", "text": "x"}\n{"_id": \n', "corpus.jsonl:2: not JSON"),
        ("[1]\n", "corpus.jsonl:1: not a JSON object, but list"),
        ('{"text": "x"}\n', "corpus.jsonl:1: _id is missing"),
        ('{"_id": "a"}\n', "corpus.jsonl:1: text is missing"),
        ('{"_id": "a", "text": null}\n', "corpus.jsonl:1: text is null; it should be a string"),
        ('{"_id": "a", "text": 3}\n', "corpus.jsonl:1: text is of type int; it should be a string"),
        ('{"_id": 1.5, "text": "x"}\n', "corpus.jsonl:1: _id is of type float; it should be a string"),
        ('{"_id": true, "text": "x"}\n', "corpus.jsonl:1: _id is of type bool; it should be a string"),
        ('\n{"_id": " ", "text": "x"}\n', "corpus.jsonl:2: _id is empty"),
        (
            '{"_id": "1", "text": "x"}\n{"_id": "b", "text": "x"}\n{"_id": 1, "text": "y"}\n',
            "corpus.jsonl:3: _id '1' is there twice: first on line 1",
        ),
    ],
)
def test_a_bad_corpus_names_file_and_line(folder, corpus, message):
    (folder / "corpus.jsonl").write_text(corpus)
    assert message in refused(folder)


def test_bad_queries_name_file_and_line(folder):
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n{"_id": "q1", "text": "y"}\n')
    assert "queries.jsonl:2: _id 'q1' is there twice: first on line 1" in refused(folder)
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "x", "excluded_ids": "d1"}\n')
    assert "queries.jsonl:1: excluded_ids should be a list of strings" in refused(folder)


def test_written_queries_read_back(folder, tmp_path):
    queries = beir.load(folder).queries
    beir.write_queries(tmp_path / "queries.jsonl", queries)
    assert beir.read_queries(tmp_path / "queries.jsonl") == queries
    assert json.loads((tmp_path / "queries.jsonl").read_text().splitlines()[1]) == {"_id": "q1", "text": "bread"}


# ---- benchmarks.py -------------------------------------------------------------------


def test_selection_is_evenly_spaced():
    queries = [Query(str(i), "") for i in range(10)]
    whole = Benchmark("b", [], queries, {str(i): {"d": 1} for i in range(9)})
    picked = benchmarks.select(whole, 4)  # floor(i * 10 / 4): 0, 2, 5, 7
    assert [query.query_id for query in picked.queries] == ["0", "2", "5", "7"]
    assert list(picked.qrels) == ["0", "2", "5", "7"]
    assert benchmarks.select(whole, 10) is benchmarks.select(whole, None) is whole


def test_load_selects_and_refuses_what_has_no_query(folder):
    data = DataConfig(format="beir", path=str(folder), max_queries=1)
    assert [query.query_id for query in benchmarks.load(data).queries] == ["q2"]
    (folder / "qrels" / "test.tsv").write_text("stranger\td1\t1\n")
    with pytest.raises(UserError, match="no query is left"):
        benchmarks.load(data)


def test_exclusions_and_judgements_that_name_nothing_there_are_reported(folder):
    (folder / "queries.jsonl").write_text(QUERIES.replace('"d3"', '"D3"'))
    (folder / "qrels" / "test.tsv").write_text("q1\tD1\t1\nq2\tD2\t2\n")
    assert beir.load(folder).warnings == [
        "bread/test: all 2 judgements name documents that the collection lacks: are their ids its own?",
        "bread/test: none of the 1 documents that queries exclude is in the collection, such as 'D3' of query 'q2': "
        "nothing is excluded",
    ]


def test_queries_that_somebody_rewrote(folder, tmp_path):
    """They are retrieval's: the queries stay what they are. More of them than are asked will do."""
    rewritten = tmp_path / "rewritten.jsonl"
    lines = [{"_id": query.query_id, "text": f"more about {query.text}"} for query in beir.load(folder).queries]
    rewritten.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"_id": "another", "text": "x"}]))
    data = DataConfig(format="beir", path=str(folder), first_stage_queries=str(rewritten))
    asked, plain = benchmarks.load(data), benchmarks.load(DataConfig(format="beir", path=str(folder)))
    assert [query.retrieval_text for query in asked.queries] == [f"more about {query.text}" for query in plain.queries]
    assert [replace(query, retrieval_text="") for query in asked.queries] == plain.queries
    before = benchmarks.fingerprint(data)
    moved = data.model_copy(update={"first_stage_queries": str(rewritten.rename(tmp_path / "moved.jsonl"))})
    assert (
        benchmarks.fingerprint(moved) == before != benchmarks.fingerprint(DataConfig(format="beir", path=str(folder)))
    )
    (tmp_path / "moved.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert benchmarks.fingerprint(moved) != before


def test_rewritten_queries_have_to_be_the_benchmark_s(folder, tmp_path):
    def refusal(queries, data=None):
        given = data or {"format": "beir", "path": str(folder)}
        with pytest.raises(UserError) as caught:
            benchmarks.load(DataConfig(**given, first_stage_queries=queries))
        return str(caught.value)

    first, *others = [query.query_id for query in beir.load(folder).queries]
    rewritten = tmp_path / "rewritten.jsonl"
    rewritten.write_text(json.dumps({"_id": first, "text": "x"}) + "\n")
    lacking = (
        f"has no text for {len(others)} of the {len(others) + 1} queries of {folder.name}/test, such as {others[0]!r}"
    )
    assert lacking in refusal(str(rewritten))
    blank = [{"_id": first, "text": "x"}, *({"_id": each, "text": " "} for each in others)]
    rewritten.write_text("".join(json.dumps(line) + "\n" for line in blank))
    assert lacking in refusal(str(rewritten))
    rewritten.write_text('{"_id": "q1"}\n')
    assert refusal(str(rewritten)) == f"{rewritten}:1: text is missing"
    assert "/gpt5_reason: no such file, and BRIGHT's are gpt4_reason, " in refusal(str(tmp_path / "gpt5_reason"))
    assert "gpt4_reason is BRIGHT's; data.format=beir takes a file" in refusal("gpt4_reason")


def test_the_fingerprint_is_of_what_the_rows_depend_on(folder, tmp_path):
    data = DataConfig(format="beir", path=str(folder))
    before = benchmarks.fingerprint(data)
    copy = tmp_path / "copy"
    folder.rename(copy)
    moved = DataConfig(format="beir", path=str(copy))
    (copy / "qrels" / "test.tsv").write_text("q1\td1\t0\n")
    assert benchmarks.fingerprint(moved) == before
    assert benchmarks.fingerprint(moved.model_copy(update={"max_queries": 1})) != before
    (copy / "corpus.jsonl").write_text(CORPUS.replace("rises", "rose"))
    assert benchmarks.fingerprint(moved) != before


def test_pydocs_goes_through_the_same_door():
    data = DataConfig(format="pydocs", max_queries=2)
    assert len(benchmarks.load(data).queries) == 2
    assert benchmarks.fingerprint(data) == benchmarks.fingerprint(data)
