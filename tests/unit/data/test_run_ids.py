"""Runs whose ids are not, or not all, a benchmark's."""

import pytest

from limrank.data.run_ids import match_queries, match_run, unknown_documents
from limrank.errors import UserError
from limrank.records import Benchmark, Document, Query


def benchmark(name="litsearch", queries=("0", "1"), documents=("5", "6"), **more):
    return Benchmark(
        name, [Document(each, "text") for each in documents], [Query(each, "text") for each in queries], {}, **more
    )


def test_a_run_that_fits_is_left_as_it_is():
    run = {"1": {"5": 2.0, "6": 1.0}, "0": {"6": 1.0}}
    assert match_run(run, benchmark(), "r.trec") == (run, [])
    assert unknown_documents(run, benchmark()) == ""


def test_lists_for_queries_that_are_not_there_are_left_out_and_counted():
    run = {"0": {"5": 1.0}, "7": {"5": 1.0}, "8": {"5": 1.0}}
    assert match_run(run, benchmark(), "r.trec") == (
        {"0": {"5": 1.0}},
        ["r.trec: 2 of its 3 lists are for queries that litsearch does not have, such as '7': they are left out"],
    )


def test_lists_for_queries_that_a_selection_left_out_are_no_surprise():
    run = {"0": {"5": 1.0}, "7": {"5": 1.0}}
    assert match_run(run, benchmark(unselected=frozenset("7")), "r.trec") == ({"0": {"5": 1.0}}, [])
    for lists in (run, {"1": {}, "0": {"5": 1.0}}):
        with pytest.raises(UserError, match="no list for any of the 1 queries that are judged and selected"):
            match_run(lists, benchmark(queries="1", unselected=frozenset("07")), "r.trec")


def test_a_run_of_other_queries_is_refused():
    with pytest.raises(UserError) as caught:
        match_queries({"a": {}, "b": {}}, [Query("0", ""), Query("1", ""), Query("2", "")], "r.trec", "queries.jsonl")
    assert str(caught.value) == (
        "r.trec: has no list for any of the 3 queries of queries.jsonl: its 2 query ids are such as 'a', "
        "those of queries.jsonl such as '0'"
    )


def test_ids_of_mteb_s_litsearch_are_read_as_litsearch_s():
    run = {"q1": {"d6": 2.0, "d5": 1.0}, "q0": {"d5": 1.0}}
    fitted, (warning,) = match_run(run, benchmark(), "r.json")
    assert fitted == {"1": {"6": 2.0, "5": 1.0}, "0": {"5": 1.0}}
    assert list(fitted["1"]) == ["6", "5"]
    assert warning.startswith("r.json: its ids are as mteb writes them, and read as litsearch's: 'q1' for '1', 'd")
    # Of a selection only the left-out queries may be there to tell.
    lists, warning = match_run({"q7": {"d5": 1.0}, "q0": {"d5": 1.0}}, benchmark(unselected=frozenset("7")), "r.json")
    assert (lists, len(warning)) == ({"0": {"5": 1.0}}, 1)


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("core17", {"q0": {"d5": 1.0}}),  # no other benchmark's ids are touched
        ("litsearch", {"x0": {"5": 1.0}}),
        ("litsearch", {"q9": {"5": 1.0}}),
    ],
)
def test_letters_are_dropped_where_that_helps_alone(name, run):
    with pytest.raises(UserError, match="no list for any of the 2 queries"):
        match_run(run, benchmark(name), "r.trec")


def test_letters_stay_where_an_id_is_known_with_them():
    run = {"q0": {"d5": 1.0}, "0": {"5": 1.0}}
    lists, (warning,) = match_run(run, benchmark(), "r.trec")
    assert lists == {"0": {"5": 1.0}}
    assert "1 of its 2 lists are for queries that litsearch does not have, such as 'q0'" in warning


def test_documents_that_the_corpus_lacks_are_counted():
    run = {"0": {"5": 3.0, "x": 2.0}, "1": {"5": 2.0, "x": 1.0, "y": 0.5}}
    assert unknown_documents(run, benchmark()).startswith("the corpus lacks 2 of the 3 documents that it ranks")
    assert unknown_documents({"1": {"z": 1.0}}, benchmark()) == (
        "the corpus lacks 1 of the 1 documents that it ranks, such as 'z' of query '1': its ids seem to be of "
        "another layout; the corpus has '5'"
    )
