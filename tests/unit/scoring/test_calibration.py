"""A calibration as it is applied, and the file that it is read from."""

import asyncio
import json
import math

import pytest

from helpers.units import fake_engine
from limrank.config import ModelConfig, ScoringConfig
from limrank.errors import UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.reranking.job import RerankTask, ranked_rows, row_judgment
from limrank.reranking.reranker import Reranker
from limrank.scoring import rank_judgments
from limrank.scoring.calibration import Isotonic, Platt, calibrated, fingerprint, read_calibration
from limrank.serving.protocol import Served

PLATT = {"version": 1, "method": "platt", "slope": 2.0, "intercept": -1.0}
ISOTONIC = {"version": 1, "method": "isotonic", "scores": [0.2, 0.4, 0.8], "probabilities": [0.1, 0.1, 0.5]}
DOCUMENTS = ["the cat", "a dog", "some salt", "dry flour"]


def judged(*scores):
    return [Judgment(f"d{index}", score, ScoreStatus.DIRECT) for index, score in enumerate(scores)]


def written(folder, values, name="calibration.json"):
    path = folder / name
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


# ---- the maps ------------------------------------------------------------------------


def test_platt_is_a_line_in_log_odds():
    # 0.9 has log-odds log 9, so 2 · log 9 - log 3 = log 27.
    assert Platt(2.0, -math.log(3))(0.9) == pytest.approx(27 / 28)
    assert [Platt(1.0, 0.0)(score) for score in (0.25, 0.5)] == pytest.approx([0.25, 0.5])
    assert 0 < Platt(1.0, 0.0)(0.0) < 1e-15 and Platt(100.0, 0.0)(1.0) == 1.0
    assert Platt(1e300, -1e300)(0.0) >= 0.0


def test_isotonic_is_linear_between_its_points_and_constant_outside():
    curve = Isotonic((0.2, 0.4, 0.8), (0.1, 0.1, 0.5))
    assert [curve(score) for score in (0.0, 0.2, 0.3, 0.4, 0.5, 0.8, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.1, 0.1, 0.2, 0.5, 0.5]
    )
    assert Isotonic((0.5,), (0.3,))(0.7) == 0.3


def test_scores_that_become_equal_keep_their_order():
    judgments = calibrated(judged(0.25, 0.35, None, 0.3), Isotonic((0.2, 0.4), (0.1, 0.1)))
    assert [each.score for each in judgments] == [0.1, 0.1, None, 0.1]
    assert [each.raw_score for each in judgments] == [0.25, 0.35, None, 0.3]
    candidates = [Candidate(f"d{index}", "text", index + 1, 0.0) for index in range(4)]
    assert rank_judgments(candidates, judgments) == [1, 3, 0, 2]


def test_what_a_server_calibrated_is_not_calibrated_again():
    once = calibrated(judged(0.9), Platt(2.0, 0.0))
    assert calibrated(once, Platt(2.0, 0.0)) == once
    assert calibrated(judged(0.9), None) == judged(0.9)


# ---- who applies it ------------------------------------------------------------------


def test_a_library_call_ranks_as_before_with_probabilities(tmp_path):
    scoring = ScoringConfig(calibration=written(tmp_path, PLATT))
    with Reranker(engine=fake_engine()) as plain, Reranker(engine=fake_engine(), scoring=scoring) as reranker:
        before, after = plain.rank("cat", DOCUMENTS), reranker.rank("cat", DOCUMENTS)
        assert [hit.index for hit in before] == [hit.index for hit in after]
        assert [hit.score for hit in after] == [Platt(2.0, -1.0)(hit.score) for hit in before]
        least = after[0].score
        assert reranker.rank("cat", DOCUMENTS, min_score=least) == after[:1]


@pytest.mark.parametrize("mode", ["direct", "cascade"])
def test_a_row_keeps_the_raw_score_and_a_retry_gives_the_same_row(mode):
    task = RerankTask(ScoringConfig(mode=mode, max_think_tokens=20), calibration=Platt(2.0, -1.0))
    names = task.row_schema.names
    assert names[-1] == "raw_score" and names[:-1] == RerankTask(ScoringConfig()).row_schema.names
    candidates = [{"doc_id": text, "text": text, "rank": rank, "score": None} for rank, text in enumerate(DOCUMENTS, 1)]
    unit = {"unit_id": "q", "query": "cat", "instruction": "", "candidates": candidates}
    engines = {"scorer": fake_engine()}
    rows = asyncio.run(task.run(unit, engines)).rows
    assert all(row["score"] == Platt(2.0, -1.0)(row["raw_score"]) for row in rows)
    assert [row["raw_score"] for row in rows] == sorted((row["raw_score"] for row in rows), reverse=True)
    # As after a crash: one pair has failed, and the others are known.
    damaged = [
        row
        | (
            {
                "score": None,
                "raw_score": None,
                "direct_score": None,
                "think_score": None,
                "status": "failed",
                "generated_tokens": 0,
            }
            if row["rank"] == 2
            else {}
        )
        for row in rows
    ]
    again = asyncio.run(task.retry(unit, damaged, engines)).rows
    assert [(row["doc_id"], row["score"], row["raw_score"]) for row in again] == [
        (row["doc_id"], row["score"], row["raw_score"]) for row in rows
    ]


def test_rows_without_a_calibration_are_as_they_were():
    (row,) = ranked_rows(Query("q", "cat"), [Candidate("d0", "text", 1, 0.0)], judged(0.5))
    assert "raw_score" not in row and row_judgment(row) == judged(0.5)[0]


def test_a_server_s_card_has_the_hash_of_what_is_applied(tmp_path):
    one, other = (
        Served.of(ModelConfig(id="small"), ScoringConfig(calibration=written(tmp_path, values, name)))
        for name, values in (("a.json", PLATT | {"fitted_on": {"pairs": 3}}), ("b.json", PLATT))
    )
    assert one == other and one.scoring()["calibration"] == fingerprint(Platt(2.0, -1.0))
    with pytest.raises(UserError, match="its scoring.calibration, as a hash, is [0-9a-f]{16}, the recipe's None"):
        one.check(Served.of(ModelConfig(id="small"), ScoringConfig()), "there")


# ---- the file ------------------------------------------------------------------------


def test_a_file_is_read(tmp_path):
    assert read_calibration(None) is None
    assert read_calibration(written(tmp_path, PLATT)) == Platt(2.0, -1.0)
    assert read_calibration(written(tmp_path, ISOTONIC)) == Isotonic((0.2, 0.4, 0.8), (0.1, 0.1, 0.5))
    for calibration in (Platt(2.0, -1.0), Isotonic((0.5,), (0.3,))):
        assert read_calibration(written(tmp_path, {"version": 1, **calibration.values()})) == calibration


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("", "."),
        ("{", "."),
        ("[]", "."),
        ("null", "."),
        ({}, r"version: should be 1 \(got None\)"),
        (PLATT | {"version": True}, "version: should be 1"),
        (PLATT | {"version": 2}, "version: should be 1"),
        (PLATT | {"method": "linear"}, "method: should be platt or isotonic"),
        (PLATT | {"method": ["platt"]}, "method: should be platt or isotonic"),
        ({"version": 1, "method": "platt"}, "slope: should be a number"),
        (PLATT | {"slope": 0}, "slope: should be above 0"),
        (PLATT | {"slope": -1.0}, "slope: should be above 0"),
        (PLATT | {"slope": True}, "slope: should be a number"),
        (PLATT | {"intercept": "1"}, "intercept: should be a number"),
        (PLATT | {"intercept": 10**400}, "."),
        (PLATT | {"intercept": 10**301}, "intercept: is too large"),
        ('{"version": 1, "method": "platt", "slope": NaN, "intercept": 0}', "finite|NaN"),
        ('{"version": 1, "method": "platt", "slope": 1e999, "intercept": 0}', "finite|double"),
        (ISOTONIC | {"scores": []}, "scores: should be a list"),
        (ISOTONIC | {"scores": None}, "scores: should be a list"),
        (ISOTONIC | {"scores": [0.2, 0.4]}, "2 scores and 3 probabilities"),
        (ISOTONIC | {"scores": [0.2, 0.2, 0.8]}, "scores: should rise"),
        (ISOTONIC | {"scores": [0.2, 0.4, 1.8]}, "scores: should be numbers from 0 to 1"),
        (ISOTONIC | {"probabilities": [0.5, 0.1, 0.1]}, "probabilities: should not fall"),
        (ISOTONIC | {"probabilities": ["a", 0.1, 0.1]}, "probabilities: should be a number"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_that_is_no_calibration_is_refused_in_one_line(tmp_path, values, fault):
    path = written(tmp_path, values)
    with pytest.raises(UserError, match=fault) as refused:
        read_calibration(path)
    assert str(refused.value).startswith(path) and "\n" not in str(refused.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_calibration(str(path))


def test_a_library_call_fuses_the_scores_before_calibration(tmp_path):
    plateau = written(tmp_path, ISOTONIC | {"scores": [0.0, 1.0], "probabilities": [0.5, 0.5]})
    fuse = {"first_stage": 0.0}
    first_stage = [1.0, 2.0, 3.0, 4.0]
    with (
        Reranker(engine=fake_engine()) as plain,
        Reranker(engine=fake_engine(), scoring=ScoringConfig(calibration=plateau, fuse=fuse)) as reranker,
    ):
        hits = reranker.rank("cat", DOCUMENTS, first_stage_scores=first_stage)
        assert [hit.index for hit in hits] == [hit.index for hit in plain.rank("cat", DOCUMENTS)]
        assert [hit.score for hit in hits] == [0.5] * 4
