import subprocess
import sys

import pytest

from limrank.errors import UserError
from limrank.evaluation.metrics import evaluate, p_mrr, p_mrr_by_topic

QRELS = {"q1": {"d1": 1, "d2": 0, "d3": 1}, "q2": {"d1": 1}}


def test_values_that_can_be_checked_by_eye():
    # q1: irrelevant, relevant, (the other relevant one is not found); q2: relevant first.
    run = {"q1": {"d2": 3.0, "d1": 2.0}, "q2": {"d1": 1.0}, "unjudged": {"d1": 1.0}}
    scores = evaluate(QRELS, run, ["RR", "R@5", "P@2", "AP"])
    assert scores.per_query == {
        "RR": {"q1": 0.5, "q2": 1.0},
        "R@5": {"q1": 0.5, "q2": 1.0},
        "P@2": {"q1": 0.5, "q2": 0.5},
        "AP": {"q1": 0.25, "q2": 1.0},
    }
    assert scores.mean == {"RR": 0.75, "R@5": 0.75, "P@2": 0.5, "AP": 0.625}
    assert scores.missing == []
    assert scores.queries == ["q1", "q2"]


def test_ndcg_discounts_by_log2_and_divides_by_the_ideal():
    scores = evaluate({"q": {"a": 2, "b": 1}}, {"q": {"b": 2.0, "a": 1.0}}, ["nDCG@10"])
    # gains 1, 2 against the ideal 2, 1; log2(3) = 1.58496
    assert scores.mean["nDCG@10"] == pytest.approx((1 + 2 / 1.58496) / (2 + 1 / 1.58496), abs=1e-5)


def test_missing_queries_count_zero():
    for run in ({"q1": {"d1": 1.0, "d3": 0.5}}, {"q1": {"d1": 1.0, "d3": 0.5}, "q2": {}}):
        scores = evaluate(QRELS, run, ["AP", "RR@10"])
        assert scores.per_query["AP"] == {"q1": 1.0, "q2": 0.0}
        assert scores.per_query["RR@10"] == {"q1": 1.0, "q2": 0.0}
        assert scores.mean == {"AP": 0.5, "RR@10": 0.5}
        assert scores.missing == ["q2"]
    assert evaluate(QRELS, {}, ["AP"]).mean == {"AP": 0.0}


def test_a_query_with_nothing_relevant_counts_zero():
    scores = evaluate({"q1": {"d1": 1}, "q2": {"d1": 0}}, {"q1": {"d1": 1.0}, "q2": {"d1": 1.0}}, ["nDCG@10", "RR"])
    assert scores.per_query["nDCG@10"] == {"q1": 1.0, "q2": 0.0}
    assert scores.mean == {"nDCG@10": 0.5, "RR": 0.5}


def test_measures_go_by_their_proper_name_and_in_order():
    assert list(evaluate(QRELS, {}, ["MRR@10", "nDCG@5", "MAP"]).mean) == ["RR@10", "nDCG@5", "AP"]


@pytest.mark.parametrize("name", ["ndgc@10", "nDCG@", "P", "", "1+1", "nDCG@10 AP", "nDCG(x=1)@3", "p-MRR", "nDCG@1.5"])
def test_unknown_measures_are_refused(name):
    with pytest.raises(UserError) as error:
        evaluate(QRELS, {}, ["AP", name])
    assert f"evaluation.measures: {name!r} is not a measure; examples: nDCG@10" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDCG@0", "cut-off should be from 1"),  # trec_eval would end the process
        (f"nDCG@{10**30}", "cut-off should be from 1"),
        ("ERR@20", "cannot be computed here"),
        ("NumRet", "is a count"),
    ],
)
def test_measures_that_cannot_be_had_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        evaluate(QRELS, {"q1": {"d1": 1.0}}, [name])


def test_nothing_to_evaluate_by_is_refused():
    with pytest.raises(UserError, match="no judgements"):
        evaluate({}, {"q": {"d": 1.0}}, ["AP"])
    with pytest.raises(UserError, match="at least one measure"):
        evaluate(QRELS, {}, [])


FIRST = {"0": 4.0, "1": 3.0, "2": 2.0, "3": 1.0}
LAST = {"1": 4.0, "2": 3.0, "3": 2.0, "0": 1.0}


@pytest.mark.parametrize(
    ("original", "changed", "expected"),
    [
        (FIRST, FIRST, 0.0),
        (FIRST, LAST, 0.75),  # fell from 1 to 4: 1 - 1/4
        (LAST, FIRST, -0.75),  # rose from 4 to 1: 1/4 - 1
        ({"1": 1.0}, FIRST, -0.5),  # not in a run of one: rank 2, then 1
    ],
)
@pytest.mark.parametrize("suffixes", [("-og", "-changed"), ("", "")])
def test_p_mrr(original, changed, expected, suffixes):
    runs = [{f"a{suffix}": scores} for suffix, scores in zip(suffixes, (original, changed), strict=True)]
    assert p_mrr(*runs, {"a": ["0"]}) == expected


def test_p_mrr_is_the_mean_over_topics_of_the_mean_over_documents():
    original = {"a": FIRST, "b": FIRST, "absent": FIRST}
    changed = {"a": LAST, "b": FIRST}
    # "1" of a rose from 2 to 1: -0.5. A topic that a run lacks is 0, one without flips is none.
    flipped = {"a": ["0", "1"], "b": ["2"], "absent": ["0"], "none": []}
    assert p_mrr_by_topic(original, changed, flipped) == {"a": 0.125, "b": 0.0, "absent": 0.0}
    assert p_mrr(original, changed, flipped) == pytest.approx(0.125 / 3)


def test_p_mrr_breaks_ties_by_document_id_descending():
    tied = {"0": 0.5, "1": 0.5, "2": 0.5}
    assert p_mrr({"a": tied}, {"a": dict(reversed(tied.items()))}, {"a": ["0"]}) == 0.0
    # "0" comes last among the tied: 3, then 1.
    assert p_mrr({"a": tied}, {"a": {"0": 1.0}}, {"a": ["0"]}) == pytest.approx(1 / 3 - 1)


def test_p_mrr_needs_a_flip():
    with pytest.raises(UserError, match="no topic"):
        p_mrr({}, {}, {"a": []})


def test_the_import_is_cheap():
    heavy = "{'numpy', 'ir_measures', 'pyarrow'} & set(sys.modules)"
    code = f"import sys, limrank.evaluation.metrics; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
