import math

import pytest

from helpers.beir import CORPUS
from limrank.config import FirstStageConfig
from limrank.errors import UserError
from limrank.records import Benchmark, Document, Query
from limrank.retrieval import bm25, candidates

DOCUMENTS = [Document(doc_id, text) for doc_id, text in CORPUS.items()]


def benchmark(*queries):
    return Benchmark("tiny", DOCUMENTS, list(queries), {})


def found(queries, **first_stage):
    return {
        query.query_id: [(each.rank, each.doc_id) for each in ranked]
        for query, ranked in candidates(benchmark(*queries), FirstStageConfig(**first_stage))
    }


def test_bm25_by_hand():
    # "cat" is in d1 and d3 of four. Lucene's idf is ln(1 + (4 - 2 + 0.5) / (2 + 0.5)) = ln 2.
    # Words that count: d1 lazy cat sleeps warm roof (5), d2 quick dog runs through green
    # park (6), d3 cat dog share one bowl (5), d4 trains leave station every hour (5).
    k1, b, length, average = 0.9, 0.4, 5, 21 / 4
    expected = math.log(2) / (1 + k1 * (1 - b + b * length / average))
    run = bm25(DOCUMENTS, [Query("q", "cat")], 10, k1=k1, b=b)
    assert run["q"].keys() == {"d1", "d3"}
    assert run["q"]["d1"] == pytest.approx(expected, rel=1e-5)
    assert run["q"]["d3"] == pytest.approx(expected, rel=1e-5)


def test_a_query_s_words_by_their_bm25_weights_by_hand():
    # As above; "roof" is in d1 alone: ln(1 + (4 - 1 + 0.5) / (1 + 0.5)). "zebra" is in no document, and no part of
    # the query's length, 3.
    k1, b, average = 0.9, 0.4, 21 / 4
    cat, roof = math.log(2), math.log(1 + 3.5 / 1.5)
    document, query = (k1 * (1 - b + b * length / average) for length in (5, 3))
    of_cat = cat * 2 / (2 + query) * cat / (1 + document)
    of_roof = roof * 1 / (1 + query) * roof / (1 + document)
    asked = [Query("q", "cat cat roof zebra"), Query("none", "zebra")]
    run = bm25(DOCUMENTS, asked, 10, k1=k1, b=b, query_weights="bm25")
    assert run["none"] == {}
    assert list(run["q"]) == ["d1", "d3"]
    assert run["q"]["d1"] == pytest.approx(of_cat + of_roof, rel=1e-5)
    assert run["q"]["d3"] == pytest.approx(of_cat, rel=1e-5)


def test_a_word_that_is_repeated_weighs_less_than_twice_by_bm25():
    query = Query("q", "dog dog dog dog station")
    assert found([query], depth=1) == {"q": [(1, "d3")]}
    assert found([query], depth=1, query_weights="bm25") == {"q": [(1, "d4")]}


def test_two_words_beat_one_and_ranks_start_at_one():
    assert found([Query("q1", "cat roof"), Query("q2", "dog park")]) == {
        "q1": [(1, "d1"), (2, "d3")],
        "q2": [(1, "d2"), (2, "d3")],
    }


def test_a_candidate_carries_its_text_and_score():
    ((_, ranked),) = candidates(benchmark(Query("q", "station")), FirstStageConfig())
    assert [(each.doc_id, each.text) for each in ranked] == [("d4", CORPUS["d4"])]
    assert ranked[0].score > 0


def test_depth_cuts():
    assert found([Query("q", "cat roof dog")], depth=2) == {"q": [(1, "d1"), (2, "d3")]}


def test_excluded_documents_are_dropped_before_the_cut():
    queries = [Query("q", "cat roof dog", excluded=frozenset({"d1"})), Query("other", "cat roof dog")]
    assert found(queries, depth=2) == {"q": [(1, "d3"), (2, "d2")], "other": [(1, "d1"), (2, "d3")]}


def test_the_instruction_is_searched_too():
    assert found([Query("q", "cat", instruction="on the roof")], depth=1) == {"q": [(1, "d1")]}


def test_a_rewriting_is_searched_alone():
    query = Query("q", "cat", instruction="on the roof", retrieval_text="station hour")
    assert found([query]) == {"q": [(1, "d4")]}


def test_candidates_that_nobody_publishes_are_refused():
    with pytest.raises(
        UserError, match="first_stage.kind=published: tiny publishes no candidates; the hub's followir/"
    ):
        found([Query("q", "cat")], kind="published")


@pytest.mark.parametrize("text", ["zebra", "the", "", "!?"])
def test_a_query_for_which_nothing_is_found_has_no_candidates(text):
    assert found([Query("q", text), Query("other", "station")]) == {"q": [], "other": [(1, "d4")]}


@pytest.mark.parametrize("text", ["the", "", "zebra"])
def test_queries_of_which_none_is_found(text):
    assert found([Query("q", text)]) == {"q": []}


def test_a_corpus_without_a_word():
    assert bm25([Document("d", "the of"), Document("e", "")], [Query("q", "cat")], 5) == {"q": {}}


# ---- a given run ---------------------------------------------------------------------


def test_a_given_run_is_taken_in_its_order_with_ties_as_they_stand(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("q Q0 d4 1 2.0 x\nq Q0 d2 2 1.0 x\nq Q0 d1 3 1.0 x\nq Q0 d3 4 3.0 x\n")
    query = Query("q", "anything", excluded=frozenset({"d4"}))
    assert found([query, Query("other", "x")], kind="run", path=str(run), depth=2) == {
        "q": [(1, "d3"), (2, "d2")],
        "other": [],
    }


def test_a_given_run_may_not_name_what_the_corpus_lacks(tmp_path):
    run = tmp_path / "run.trec"
    run.write_text("q Q0 d1 1 2.0 x\nq Q0 d9 2 1.0 x\n")
    with pytest.raises(UserError) as caught:
        found([Query("q", "cat")], kind="run", path=str(run))
    assert str(caught.value) == (
        f"{run}: the corpus lacks 1 of the 2 documents that it ranks, such as 'd9' of query 'q'"
    )
    # A query that was not asked does not matter.
    run.write_text("q Q0 d9 1 2.0 x\nother Q0 d1 1 1.0 x\n")
    assert found([Query("other", "cat")], kind="run", path=str(run)) == {"other": [(1, "d1")]}
    run.write_text("q Q0 D1 1 2.0 x\nq Q0 D2 2 1.0 x\n")
    with pytest.raises(UserError, match="its ids seem to be of another layout; the corpus has 'd1'"):
        found([Query("q", "cat")], kind="run", path=str(run))
    with pytest.raises(UserError, match="no such file"):
        found([Query("q", "cat")], kind="run", path=str(tmp_path / "none.trec"))
