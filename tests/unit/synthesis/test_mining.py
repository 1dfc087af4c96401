"""Round trip, teacher, negatives and lists of queries that were written for passages."""

import json
import math
import statistics
from dataclasses import asdict

import pyarrow as pa
import pytest
import torch

from helpers.beir import write_beir
from helpers.units import write_embedder
from limrank.config import SynthesisConfig, TeacherConfig
from limrank.data import beir
from limrank.data.trec import read_qrels, read_run
from limrank.errors import UserError
from limrank.records import Document, Query, SynthesisExample, synthesis_row_schema
from limrank.storage import Storage
from limrank.synthesis import mining
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.mined_files import list_records, write_candidates
from limrank.synthesis.mining import mine_passages, spread
from limrank.synthesis.pool import dedupe_and_select
from limrank.synthesis.stats import tally
from limrank.synthesis.teachers import CrossEncoderTeacher, Grade, KeptGrades, RunTeacher, check_teacher

CORPUS = [
    Document("heap", "the heap merges sorted feeds that are too large for memory into one stream of items"),
    Document("copy", "the heap merges sorted feeds that are too large for memory into one stream of item"),
    Document("sort", "sorted returns a new list with the items of feeds in order and needs memory for all"),
    Document("feed", "a feed reader polls feeds of news and merges items that it has seen before by their title"),
    Document("bread", "bake the bread at the altitude of the resort and let the dough of rye rise for longer"),
]
ASKED = Query("heap/0", "merge large sorted feeds")
LOST = Query("bread/0", "how do I merge my sorted feeds")


def settings(**values):
    return SynthesisConfig(source="passages", **values)


def run_teacher(tmp_path, scores):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(scores))
    return {"kind": "run", "path": str(path)}


def mined(config, asked=((ASKED, "heap"), (LOST, "bread")), benchmarks=None):
    return mine_passages(asked, CORPUS, config, benchmarks, seed=1)


def test_a_query_has_to_find_its_passage_again():
    found = mined(settings()).queries
    assert found["heap/0"].fault is None
    assert found["bread/0"].fault == ("not_found", "bm25: not among the first 4")
    found = mined(settings(round_trip={"retriever": "none"})).queries
    assert found["bread/0"].fault is None
    asked = [(Query("sort/0", "merge large sorted feeds"), "sort")]
    config = settings(round_trip={"k": 1})
    assert mined(config, asked).queries["sort/0"].fault == ("not_found", "bm25: rank 4")


def test_candidates_are_without_the_passage_and_its_copies():
    result = mined(settings(negatives=9))
    assert {each.doc_id for each in result.queries["heap/0"].negatives} == {"sort", "feed"}
    assert set(result.candidates) == {"heap/0"} and set(result.candidates["heap/0"]) == {"heap", "sort", "feed"}


def test_without_a_teacher_negatives_are_drawn_by_the_seed():
    config = settings(negatives=1)
    drawn = {
        mine_passages([(ASKED, "heap")], CORPUS, config, None, seed=seed).queries["heap/0"].negatives[0].doc_id
        for seed in range(8)
    }
    assert drawn == {"sort", "feed"}


def test_a_teacher_leaves_out_what_may_be_relevant(tmp_path):
    scores = {"heap/0": {"heap": 5.0, "sort": 4.9, "feed": 1.0}}
    config = settings(negatives=2, teacher=run_teacher(tmp_path, scores))
    found = mined(config).queries["heap/0"]
    assert found.grade == Grade(5.0)
    assert [each.doc_id for each in found.negatives] == ["feed"]
    (doubtful,) = found.doubtful
    assert doubtful.doc_id == "sort" and doubtful.fault == ("false_negative", "4.9, the query's passage 5")
    assert {each.doc_id for each in found.listed} == {"sort", "feed"}
    # Three scores: a standard deviation of 1.86.
    assert (
        mined(settings(teacher={**run_teacher(tmp_path, scores), "margin": 0.05})).queries["heap/0"].negatives[0].doc_id
        == "sort"
    )


@pytest.mark.parametrize(
    ("scores", "more", "fault"),
    [
        ({"heap": 1, "sort": 2, "feed": 3}, {}, ("teacher_disagrees", "2 candidates have a higher score")),
        ({"heap": 1, "sort": 2, "feed": 3}, {"best": 3}, None),
        ({"heap": 1, "sort": 0, "feed": 0}, {"min_score": 1.5}, ("teacher_disagrees", "score 1")),
        ({"sort": 0, "feed": 0}, {}, ("ungraded", "")),
    ],
)
def test_a_teacher_may_reject_a_query(tmp_path, scores, more, fault):
    config = settings(teacher={**run_teacher(tmp_path, {"heap/0": scores}), **more})
    assert mined(config).queries["heap/0"].fault == fault


def test_the_spread_is_a_mean_over_queries():
    grades = [[Grade(0.0), Grade(2.0)], [Grade(1.0), None, Grade(1.0)], [Grade(7.0)], []]
    assert spread(grades) == 0.5
    assert spread([]) == 0.0


def test_a_benchmark_s_relevant_document_is_no_negative(tmp_path):
    sort = CORPUS[2]
    folder = write_beir(tmp_path / "test", {"d": sort.text}, {"q": "what puts items in order"}, {"q": {"d": 1}})
    found = mined(settings(negatives=9), benchmarks=Benchmarks.of([folder])).queries["heap/0"]
    assert [each.doc_id for each in found.negatives] == ["feed"]


def test_the_embedder_searches_too(tmp_path):
    model = write_embedder(tmp_path / "model", ["merge", "sorted", "feeds", "bread"], ["merge", "merge"])
    both = settings(round_trip={"retriever": "both", "k": 3}, embedder=str(model), negatives=9)
    result = mined(both)
    assert result.queries["heap/0"].fault is None
    name, where = result.queries["bread/0"].fault
    assert name == "not_found" and where.startswith("bm25")
    assert len(mined(settings(round_trip={"retriever": "embedder"}, embedder=str(model))).candidates["heap/0"]) == 4


# ---- BM25's share, and the query's own passage first ---------------------------------


def graded(config, asked=((ASKED, "heap"),)):
    """The grades of the first query's passage and listed candidates, by document."""
    found = mined(config, asked).queries[asked[0][0].query_id]
    return {found.doc_id: found.grade.score} | {each.doc_id: each.grade.score for each in found.listed}


def test_bm25_has_its_share_of_a_grade(tmp_path):
    # Of two passages z is 1 and -1. BM25 prefers the query's own, the teacher the other one.
    teacher = run_teacher(tmp_path, {"heap/0": {"heap": 10.0, "feed": 30.0, "sort": 30.0}})

    def weighed(weight, **more):
        config = settings(mine_depth=1, teacher={**teacher, "bm25_weight": weight, **more})
        (own, other) = graded(config).values()
        return own, other

    assert weighed(0) == (10.0, 30.0)
    assert weighed(0.25) == pytest.approx((-0.5, 0.5))
    assert weighed(0.5) == pytest.approx((0.0, 0.0))
    assert weighed(1) == pytest.approx((1.0, -1.0))


def test_a_grade_s_share_decides_which_candidates_are_negatives(tmp_path):
    scores = {"heap/0": {"heap": 1.0, "sort": 3.0, "feed": 2.0}}
    asked = ((ASKED, "heap"),)
    plain = settings(negatives=2, teacher={**run_teacher(tmp_path, scores), "best": 1})
    assert mined(plain, asked).queries["heap/0"].fault == ("teacher_disagrees", "2 candidates have a higher score")
    by_words = settings(negatives=2, teacher={**run_teacher(tmp_path, scores), "best": 1, "bm25_weight": 1})
    found = mined(by_words, asked).queries["heap/0"]
    assert found.fault is None and {each.doc_id for each in found.negatives} == {"sort", "feed"}
    grades = graded(by_words)
    assert statistics.fmean(grades.values()) == pytest.approx(0) and statistics.pstdev(
        grades.values()
    ) == pytest.approx(1)
    assert max(grades, key=grades.get) == "heap"


def test_a_candidate_that_bm25_does_not_find_has_its_lowest_score(tmp_path):
    model = write_embedder(tmp_path / "model", ["merge", "sorted", "feeds", "bread"], ["merge", "merge"])
    scores = {"heap/0": dict.fromkeys(("heap", "sort", "feed", "bread"), 1.0)}
    teacher = {**run_teacher(tmp_path, scores), "bm25_weight": 1, "passage_first": True}
    config = settings(round_trip={"retriever": "embedder", "filter": False}, embedder=str(model), teacher=teacher)
    found = graded(config)
    assert found["bread"] == min(found.values()) == pytest.approx(sorted(found.values())[1])


def test_a_query_s_share_is_of_its_graded_candidates(tmp_path):
    scores = {"heap/0": {"heap": 7.0, "sort": 5.0}}
    config = settings(teacher={**run_teacher(tmp_path, scores), "bm25_weight": 0.5})
    assert graded(config) == pytest.approx({"heap": 1.0, "sort": -1.0})
    alone = settings(teacher={**run_teacher(tmp_path, {"heap/0": {"heap": 7.0}}), "bm25_weight": 0.5})
    assert graded(alone) == {"heap": 0.0}


def test_a_query_s_own_passage_may_come_first(tmp_path):
    scores = {"heap/0": {"heap": 1.0, "sort": 4.0, "feed": 2.0}}
    teacher = {**run_teacher(tmp_path, scores), "best": 1, "passage_first": True}
    deviation = statistics.pstdev([1.0, 4.0, 2.0])
    found = mined(settings(negatives=2, teacher=teacher)).queries["heap/0"]
    assert found.fault is None
    assert found.grade.score == pytest.approx(4 + deviation / 2)
    # The margin, one standard deviation, is as ever.
    assert [each.doc_id for each in found.doubtful] == ["sort"] and [each.doc_id for each in found.negatives] == [
        "feed"
    ]
    found = mined(settings(negatives=2, teacher={**teacher, "margin": 0.4})).queries["heap/0"]
    assert [each.doc_id for each in found.negatives] == ["sort", "feed"]


def test_a_passage_that_is_first_by_far_keeps_its_grade(tmp_path):
    scores = {"heap/0": {"heap": 9.0, "sort": 4.0, "feed": 2.0}}
    assert graded(settings(teacher={**run_teacher(tmp_path, scores), "passage_first": True}))["heap"] == 9.0


def test_equal_grades_stay_equal(tmp_path):
    scores = {"heap/0": dict.fromkeys(("heap", "sort", "feed"), 2.0)}
    found = mined(settings(teacher={**run_teacher(tmp_path, scores), "passage_first": True})).queries["heap/0"]
    assert (found.fault, found.grade.score, found.negatives) == (None, 2.0, ())


@pytest.mark.parametrize("weight", [0, 0.5, 1])
def test_a_passage_without_a_grade_is_not_put_first(tmp_path, weight):
    scores = {"heap/0": {"sort": 4.0, "feed": 2.0}}
    teacher = {**run_teacher(tmp_path, scores), "passage_first": True, "bm25_weight": weight}
    found = mined(settings(teacher=teacher)).queries["heap/0"]
    assert found.fault == ("ungraded", "") and found.grade is None


@pytest.mark.parametrize("more", [{}, {"bm25_weight": 0.5}, {"passage_first": True}])
def test_min_score_is_of_the_teacher_s_own_score(tmp_path, more):
    def fault(least):
        scores = {"heap/0": {"heap": 5.0, "sort": 6.0, "feed": 1.0}}
        teacher = {**run_teacher(tmp_path, scores), "min_score": least, **more}
        return mined(settings(teacher=teacher)).queries["heap/0"].fault

    assert fault(4.5) is None
    assert fault(5.5) == ("teacher_disagrees", "score 5")


def test_nothing_is_left_to_weigh(tmp_path):
    teacher = {**run_teacher(tmp_path, {"q": {"d": 1.0}}), "bm25_weight": 0.5, "passage_first": True}
    assert mined(settings(teacher=teacher), asked=()).queries == {}
    lost = mined(settings(teacher=teacher), asked=((LOST, "bread"),)).queries
    assert lost["bread/0"].fault[0] == "not_found"


@pytest.mark.parametrize("weight", [0, 0.5])
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(monkeypatch, weight, score):
    class Broken:
        def grade(self, queries, passages):
            return [[Grade(score) for _ in found] for found in passages]

    monkeypatch.setattr(mining, "open_teacher", lambda *given: Broken())
    teacher = {"kind": "cross_encoder", "model": "a/model", "bm25_weight": weight}
    with pytest.raises(UserError, match=r"synthesis.teacher a/model: a score is not a finite number"):
        mined(settings(teacher=teacher))


def test_known_relevant_documents_are_no_candidates():
    asked = [(ASKED, "heap")]
    config = settings(negatives=9)
    found = mine_passages(asked, CORPUS, config, None, seed=1, relevant={"heap/0": {"heap", "sort", "gone"}})
    assert set(found.candidates["heap/0"]) == {"heap", "feed"}
    assert [each.doc_id for each in found.queries["heap/0"].negatives] == ["feed"]


def test_the_round_trip_may_only_find_candidates(tmp_path):
    found = mined(settings(round_trip={"filter": False}))
    assert {each.fault for each in found.queries.values()} == {None}
    assert "bread" in found.candidates["bread/0"] and len(found.candidates["bread/0"]) > 1
    model = write_embedder(tmp_path / "model", ["merge", "sorted", "feeds", "bread"], ["merge", "merge"])
    both = settings(round_trip={"retriever": "both", "k": 1, "filter": False}, embedder=str(model))
    assert {each.fault for each in mined(both).queries.values()} == {None}
    assert "bread" in mined(both).candidates["heap/0"]  # which only the embedder finds


def test_a_model_s_kept_grades_are_its_own(tmp_path, monkeypatch):
    """Another share of BM25 grades nothing a second time."""
    asked = []

    class Counting:
        warnings = ()

        def grade(self, queries, passages):
            asked.append(sum(map(len, passages)))
            return [[Grade(float(len(each.doc_id))) for each in found] for found in passages]

    storage = Storage(str(tmp_path))
    monkeypatch.setattr(mining, "open_teacher", lambda config, kept, seed: KeptGrades(Counting(), kept, "a model"))
    for more in ({}, {"bm25_weight": 0.5}, {"bm25_weight": 1, "passage_first": True}):
        config = settings(teacher={"kind": "cross_encoder", "model": "a/model", **more})
        mine_passages([(ASKED, "heap")], CORPUS, config, None, seed=1, storage=storage)
    assert asked == [3]
    assert sorted(storage.read_table("grades.parquet")["score"].to_pylist()) == [4.0, 4.0, 4.0]


# ---- rows and files ------------------------------------------------------------------


def pool_of(tmp_path, config):
    rows = [
        asdict(
            SynthesisExample(
                f"{query.query_id}/positive",
                doc_id,
                query=query.text,
                passage=CORPUS[0].text,
                passage_role="positive",
                label=True,
                kept=True,
            )
        )
        for query, doc_id in ((ASKED, "heap"), (LOST, "bread"))
    ]
    storage = Storage(str(tmp_path / "run"))
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=synthesis_row_schema()))
    return storage, dedupe_and_select(storage, config, None, 1, CORPUS)


def test_the_rows_of_a_query_are_its_passage_and_what_was_mined(tmp_path):
    scores = {"heap/0": {"heap": 5.0, "sort": 4.9, "feed": 1.0}}
    _, pool = pool_of(tmp_path, settings(negatives=2, teacher=run_teacher(tmp_path, scores)))
    rows = [
        (row["example_id"], row["label"], row["kept"], row["reject_reason"], row["teacher_score"], row["selected"])
        for row in pool.rows()
    ]
    assert rows == [
        ("heap/0/positive", True, True, None, 5.0, True),
        ("heap/0/1-mined_negative", False, True, None, 1.0, True),
        ("heap/0/2-mined_negative", False, False, "false_negative", 4.9, False),
        ("bread/0/positive", True, False, "not_found", None, False),
    ]
    assert {row["source"] for row in pool.rows()} == {"passages"}
    assert {row["teacher"] for row in pool.rows()} == {"run.json", None}


def test_lists_have_the_passage_first_and_the_teacher_s_scores(tmp_path):
    scores = {"heap/0": {"heap": 5.0, "sort": 4.9, "feed": 1.0}}
    _, pool = pool_of(tmp_path, settings(list_size=2, teacher=run_teacher(tmp_path, scores)))
    (record,) = list_records(pool.mined, pool.selected_queries())
    assert record["query"] == ASKED.text and record["passages"][0] == CORPUS[0].text and record["scores"][0] == 5.0
    assert len(record["passages"]) == len(record["scores"]) == 2
    _, pool = pool_of(tmp_path, settings())
    assert list(list_records(pool.mined, pool.selected_queries())) == []


def test_candidates_are_a_benchmark_that_a_reranker_can_grade(tmp_path):
    storage, pool = pool_of(tmp_path, settings())
    write_candidates(storage, pool.mined)
    folder = tmp_path / "run" / "candidates"
    benchmark = beir.load(folder, "train")
    assert [query.query_id for query in benchmark.queries] == ["heap/0"]
    assert read_qrels(folder / "qrels" / "train.tsv") == {"heap/0": {"heap": 1}}
    run = read_run(folder / "run.trec")
    assert set(run["heap/0"]) == {"heap", "sort", "feed"} == {each.doc_id for each in benchmark.documents}


def test_a_run_over_something_else_is_no_teacher(tmp_path):
    config = settings(teacher=run_teacher(tmp_path, {"another": {"d": 1.0}}))
    with pytest.raises(UserError, match="no score for any of the candidates"):
        mined(config)


def test_a_rerank_run_s_scores_are_log_odds_with_chains(tmp_path):
    run = tmp_path / "rerank"
    rows = {
        "query_id": ["heap/0"] * 3,
        "doc_id": ["heap", "sort", "feed"],
        "score": [0.9, 1.0, None],
        "reasoning": ["it merges", None, None],
    }
    storage = Storage(str(run))
    storage.write_table("rows/chunk-000000.parquet", pa.table(rows))
    with pytest.raises(UserError, match="not the run directory of a rerank job"):
        RunTeacher.read(str(run))
    manifest = {
        "schema_version": 1,
        "job": "rerank",
        "status": "running",
        "config_hash": "x",
        "versions": {"limrank": "0"},
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not finished"):
        RunTeacher.read(str(run))
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "done"}))
    teacher = RunTeacher.read(str(run))
    (grades,) = teacher.grade([ASKED], [CORPUS[:1] + CORPUS[2:4]])
    assert grades[0] == Grade(pytest.approx(math.log(9)), 0.9, "it merges")
    assert 36 < grades[1].score < 37 and grades[2] is None
    _, pool = pool_of(tmp_path, settings(negatives=2, teacher={"kind": "run", "path": str(run), "best": 2}))
    row = next(iter(pool.rows()))
    assert (row["judge_score"], row["verdict"], row["reasoning"]) == (0.9, None, "it merges")


def test_a_model_s_grades_are_kept_and_another_model_s_are_not_taken(tmp_path):
    class Counting:
        def __init__(self):
            self.asked = []

        def grade(self, queries, passages):
            self.asked += [
                (query.query_id, each.doc_id) for query, found in zip(queries, passages, strict=True) for each in found
            ]
            return [[Grade(float(len(each.doc_id))) for each in found] for found in passages]

    storage = Storage(str(tmp_path))
    first, second, other = Counting(), Counting(), Counting()
    KeptGrades(first, storage, "embedder a").grade([ASKED], [CORPUS[:2]])
    graded = KeptGrades(second, storage, "embedder a").grade([ASKED, LOST], [CORPUS[1:3], CORPUS[4:]])
    assert second.asked == [("heap/0", "sort"), ("bread/0", "bread")]
    # Another text of the same ids is graded anew.
    changed = [Document("heap", "another text"), CORPUS[1]]
    KeptGrades(second, storage, "embedder a").grade([ASKED], [changed])
    KeptGrades(second, storage, "embedder a").grade([Query("heap/0", "another query")], [CORPUS[:1]])
    assert second.asked[2:] == [("heap/0", "heap"), ("heap/0", "heap")]
    assert graded == [[Grade(4.0), Grade(4.0)], [Grade(5.0)]]
    KeptGrades(other, storage, "embedder b").grade([ASKED], [CORPUS[:1]])
    assert other.asked == [("heap/0", "heap")]
    (tmp_path / "grades.parquet").write_bytes(b"damaged")
    assert KeptGrades(first, storage, "embedder a").grade([ASKED], [CORPUS[:1]]) == [[Grade(4.0)]]


def test_nothing_was_kept(tmp_path):
    result = mined(settings(teacher=run_teacher(tmp_path, {"q": {"d": 1}})), asked=())
    assert not result.queries and not result.candidates
    assert mined(settings(), asked=()).queries == {}


def test_of_two_queries_that_are_one_the_one_that_finds_its_passage_stays(tmp_path):
    rows = [
        asdict(
            SynthesisExample(
                f"{doc_id}/0/positive",
                doc_id,
                query=ASKED.text,
                passage=CORPUS[index].text,
                passage_role="positive",
                label=True,
                kept=True,
            )
        )
        for index, doc_id in ((4, "bread"), (0, "heap"))
    ]
    storage = Storage(str(tmp_path / "run"))
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=synthesis_row_schema()))
    pool = dedupe_and_select(storage, settings(), None, 1, CORPUS)
    assert {row["seed_id"]: row["reject_reason"] for row in pool.rows() if row["label"]} == {
        "bread": "not_found",
        "heap": None,
    }


@pytest.mark.parametrize("select", ["random", "coverage"])
def test_a_tuned_writer_s_queries_are_selected_without_a_kind(tmp_path, select):
    _, pool = pool_of(tmp_path, settings(writer="tuned", size=2, select=select))
    assert [row["example_id"] for row in pool.rows() if row["selected"]] == [
        "heap/0/positive",
        "heap/0/1-mined_negative",
    ]
    assert tally(pool.rows(), pool.selection)["query_kind"] == {}


def test_an_encoder_without_a_head_is_no_cross_encoder(tmp_path):
    model = write_embedder(tmp_path / "model", ["merge", "feeds"], ["merge", "merge"])
    with pytest.raises(UserError, match="is no cross-encoder: its weights lack classifier"):
        check_teacher(TeacherConfig(kind="cross_encoder", model=str(model)))


def test_a_cross_encoder_scores_pairs_whatever_their_length(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    folder = write_embedder(tmp_path / "model", ["merge", "feeds", "bread"], ["merge", "merge"])
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(vocab_size=8, num_labels=1, **shape)).save_pretrained(folder)
    teacher = CrossEncoderTeacher(str(folder))
    long = Query("q", "merge " * 2000)
    grades = teacher.grade([ASKED, long], [CORPUS[:2], CORPUS[4:]])
    assert [len(each) for each in grades] == [2, 1] and all(math.isfinite(g.score) for each in grades for g in each)
