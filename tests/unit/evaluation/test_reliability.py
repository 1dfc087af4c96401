"""ECE, Brier score and bins, by hand; which pairs count; and calibrations that are fitted."""

import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from limrank.config import EvaluateJob, EvaluationConfig
from limrank.config.recipe import parse_config
from limrank.errors import UserError
from limrank.evaluation.calibration import fit, fit_isotonic, fit_platt
from limrank.evaluation.job import evaluate_job, plan, run
from limrank.evaluation.reliability import Bin, judged_pairs, reliability
from limrank.records import rerank_row_schema
from limrank.scoring.calibration import Isotonic, read_calibration

# ---- measures ------------------------------------------------------------------------


def test_ece_and_brier_by_hand():
    found = reliability([0.1, 0.3, 0.8, 0.8], [False, True, True, True], bins=2)
    assert found.bins == (Bin(0.1, 0.3, 2, 0.2, 0.5), Bin(0.8, 0.8, 2, 0.8, 1.0))
    assert found.ece == pytest.approx((2 * 0.3 + 2 * 0.2) / 4)
    assert found.brier == pytest.approx((0.01 + 0.49 + 0.04 + 0.04) / 4)


def test_equal_scores_are_in_one_bin_whatever_their_order():
    scores, relevant = [0.5] * 5 + [0.9], [True, False, False, False, False, True]
    found = reliability(scores, relevant, bins=3)
    assert [(each.low, each.pairs) for each in found.bins] == [(0.5, 5), (0.9, 1)]
    assert reliability(scores[::-1], relevant[::-1], bins=3) == found


@pytest.mark.parametrize("count", [1, 2, 7, 15, 16, 1000])
def test_bins_hold_each_pair_once(count):
    scores = [index / count for index in range(count)]
    bins = reliability(scores, [True] * count).bins
    assert sum(each.pairs for each in bins) == count and len(bins) == min(count, 15)
    assert max(each.pairs for each in bins) - min(each.pairs for each in bins) <= 1


def test_scores_that_are_probabilities_have_a_small_error():
    draw = random.Random(1)
    scores = [draw.random() for _ in range(20000)]
    relevant = [draw.random() < score for score in scores]
    assert reliability(scores, relevant).ece < 0.02
    assert reliability([score**4 for score in scores], relevant).ece > 0.2


# ---- calibrations --------------------------------------------------------------------


def test_isotonic_pools_what_falls():
    # 0.2 and 0.3 are one block of 1 in 2, 0.5 (twice) of 1 in 2 joins it: 2 in 4.
    curve = fit_isotonic([0.1, 0.2, 0.3, 0.5, 0.5, 0.9], [False, True, False, True, False, True])
    assert curve == Isotonic((0.1, 0.2, 0.5, 0.9), (0.0, 0.5, 0.5, 1.0))


def test_platt_with_two_scores_is_their_smoothed_shares():
    # Two parameters fit two scores exactly. At 0.8: 3 of 4 relevant; at 0.2: 1 of 4. The targets are 5/6 and 1/6.
    line = fit_platt([0.8] * 4 + [0.2] * 4, [True, True, True, False] + [True, False, False, False])
    assert line(0.8) == pytest.approx((3 * 5 / 6 + 1 / 6) / 4)
    assert line(0.2) == pytest.approx((5 / 6 + 3 / 6) / 4)


def test_platt_finds_the_line_that_made_the_data():
    draw = random.Random(2)
    odds = [draw.gauss(0, 3) for _ in range(20000)]
    relevant = [draw.random() < 1 / (1 + math.exp(-(0.4 * each - 1.5))) for each in odds]
    line = fit_platt([1 / (1 + math.exp(-each)) for each in odds], relevant)
    assert (line.slope, line.intercept) == (pytest.approx(0.4, abs=0.02), pytest.approx(-1.5, abs=0.05))


@pytest.mark.parametrize("scores", [[0.0, 1.0], [0.0, 0.0, 1e-300, 1.0, 1.0], [0.5, 0.5 + 1e-12]], ids=str)
def test_platt_is_finite_where_scores_separate_the_pairs(scores):
    line = fit_platt(scores, [score > 0.4 if max(scores) == 1 else score > 0.5 for score in scores])
    assert math.isfinite(line.slope) and math.isfinite(line.intercept) and line.slope > 0


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_pairs_that_determine_no_calibration_are_refused(method):
    for relevant, fault in (([True] * 2, "all relevant"), ([False] * 2, "not relevant")):
        with pytest.raises(UserError, match=f"dev: its 2 pairs are {fault}"):
            fit(method, [0.1, 0.9], relevant, "dev")
    for scores in ([0.9, 0.1], [0.5, 0.5]):
        with pytest.raises(UserError, match="dev: relevance does not rise with its scores"):
            fit(method, scores, [False, True], "dev")


# ---- runs ----------------------------------------------------------------------------

SCORES = {"d1": 0.99, "d2": 0.95, "d3": 0.9, "d4": 0.6}


def rerank_run(directory, queries, qrels, scores=SCORES, raw=None, model="/models/smol"):
    """What a rerank job leaves that scored ``scores`` for each query."""
    (directory / "rows").mkdir(parents=True)
    (directory / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": query_id, "text": text}) + "\n" for query_id, text in queries.items())
    )
    lines = [f"{query_id}\t{doc_id}\t{grade}\n" for query_id in queries for doc_id, grade in qrels.items()]
    (directory / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    rows = [
        {"query_id": query_id, "doc_id": doc_id, "rank": rank, "first_stage_rank": rank, "score": score}
        | ({"raw_score": raw[doc_id]} if raw else {})
        for query_id in queries
        for rank, (doc_id, score) in enumerate(scores.items(), start=1)
    ]
    table = pa.Table.from_pylist(rows, schema=rerank_row_schema(calibrated=raw is not None))
    pq.write_table(table, directory / "rows" / "chunk-000000.parquet")
    (directory / "run.trec").write_text(
        "".join(f"{row['query_id']} Q0 {row['doc_id']} {row['rank']} -{row['rank']} x\n" for row in rows)
    )
    recipe = {"job": "rerank", "model": {"id": model}, "scoring": {"mode": "direct"}}
    (directory / "config.yaml").write_text(yaml.safe_dump(recipe))
    manifest = {
        "schema_version": 1, "job": "rerank", "status": "done", "config_hash": "a", "versions": {"limrank": "1"},
        "counts": {"units": 2, "rows": 4, "failed": 0}, "tokens": {"prompt": 9, "cached_prompt": 0, "generated": 4},
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


GRADES = {"d1": 1, "d2": 0, "d3": 1, "d4": 0}


@pytest.fixture
def test_run(tmp_path):
    return rerank_run(tmp_path / "test", {"q1": "why does dough rise", "q2": "salt"}, GRADES)


@pytest.fixture
def dev_run(tmp_path):
    return rerank_run(tmp_path / "dev", {"q1": "how to braid a loaf", "q9": "rye"}, GRADES)


def job(run_dir, **evaluation):
    return EvaluateJob(run_dir=str(run_dir), evaluation=EvaluationConfig(bootstrap_samples=50, **evaluation))


def test_judged_pairs_count_and_unjudged_ones_do_not(test_run):
    pairs = judged_pairs(test_run, {"q1": {"d1": 2, "d2": 0, "d9": 1}})
    assert (pairs.scores, pairs.relevant, pairs.unjudged) == ((0.99, 0.95), (True, False), 0)


def test_where_nothing_is_judged_irrelevant_the_unjudged_is(test_run):
    pairs = judged_pairs(test_run, {"q1": {"d1": 2}})
    assert (pairs.scores, pairs.relevant, pairs.unjudged) == ((0.99, 0.95, 0.9, 0.6), (True, False, False, False), 3)


def test_a_report_says_how_far_scores_are_from_probabilities(test_run):
    evaluate_job(job(test_run))
    found = json.loads((test_run / "metrics.json").read_text())["reliability"]
    # Each score comes twice, with the same grade: bins of one score.
    assert found["ece"] == pytest.approx((0.01 + 0.95 + 0.1 + 0.6) / 4)
    assert found["brier"] == pytest.approx((0.01**2 + 0.95**2 + 0.1**2 + 0.6**2) / 4)
    assert (found["pairs"], found["relevant"], found["unjudged"], len(found["bins"])) == (8, 4, 0, 4)
    report = (test_run / "report.html").read_text()
    assert "Reliability" in report and "0.4150" in report and "<script" not in report
    assert not (test_run / "calibration.json").exists()


def test_a_calibration_is_fitted_on_dev_and_tested_here(test_run, dev_run):
    for method in ("platt", "isotonic"):
        result = run(job(test_run, calibrate=method, calibrate_on=str(dev_run)), address="local", progress=None)
        assert result.messages[1].startswith(f"expected calibration error 0.4150, after {method} 0.")
        assert result.messages[2] == f"calibration: {test_run}/calibration.json"
        values = json.loads((test_run / "calibration.json").read_text())
        assert values["fitted_on"] == {
            "run": str(dev_run), "model": "/models/smol", "scoring": "direct", "queries": 2, "pairs": 8, "relevant": 4,
        }  # fmt: skip
        calibration = read_calibration(str(test_run / "calibration.json"))
        after = json.loads((test_run / "metrics.json").read_text())["reliability"]["calibrated"]
        assert after["method"] == method and after["ece"] < 0.415
        pairs = [calibration(score) for score in SCORES.values()]
        assert after["brier"] == pytest.approx(
            sum((p - GRADES[d]) ** 2 for p, d in zip(pairs, SCORES, strict=True)) / 4
        )
        assert f"after {method}" in (test_run / "report.html").read_text()


def test_the_same_query_in_other_letters_is_shared(tmp_path, test_run):
    dev = rerank_run(tmp_path / "same", {"q5": "Why does  DOUGH rise"}, GRADES)
    assert "shares 1 queries" in refusal(job(test_run, calibrate="platt", calibrate_on=str(dev)))


def test_a_calibration_is_fitted_on_a_run_that_no_pair_reached(test_run, dev_run):
    (dev_run / "run.trec").write_text("")
    recipe = {"job": "rerank", "model": {"id": "/models/smol"}, "scoring": {"mode": "direct", "min_score": 0.999}}
    (dev_run / "config.yaml").write_text(json.dumps(recipe))
    evaluate_job(job(test_run, calibrate="platt", calibrate_on=str(dev_run)))
    assert (test_run / "calibration.json").exists()


def test_a_calibrated_run_is_fitted_by_its_raw_scores(tmp_path, test_run):
    halved = {doc_id: score / 2 for doc_id, score in SCORES.items()}
    plain = rerank_run(tmp_path / "plain", {"q7": "rye"}, GRADES)
    scored = rerank_run(tmp_path / "scored", {"q7": "rye"}, GRADES, halved, raw=SCORES)
    written = []
    for dev in (plain, scored):
        evaluate_job(job(test_run, calibrate="platt", calibrate_on=str(dev)))
        written.append(read_calibration(str(test_run / "calibration.json")))
    assert written[0] == written[1]


def test_a_dry_run_writes_nothing(test_run, dev_run):
    before = sorted(test_run.iterdir())
    plan(job(test_run, calibrate="platt", calibrate_on=str(dev_run)))
    assert sorted(test_run.iterdir()) == before


# ---- what is refused -----------------------------------------------------------------


def refusal(config):
    with pytest.raises(UserError) as refused:
        evaluate_job(config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_dev_run_with_a_query_of_the_test_is_refused(tmp_path, test_run):
    dev = rerank_run(tmp_path / "dev", {"q5": " why does  dough rise", "q6": "rye"}, GRADES)
    message = refusal(job(test_run, calibrate="platt", calibrate_on=str(dev)))
    assert "shares 1 queries with the evaluated run, such as 'q5'" in message
    assert not (test_run / "calibration.json").exists()
    assert "shares 2 queries" in refusal(job(test_run, calibrate="platt", calibrate_on=str(test_run)))


def test_a_dev_run_of_another_model_is_refused(tmp_path, test_run):
    dev = rerank_run(tmp_path / "dev", {"q5": "rye"}, GRADES, model="/models/other")
    message = refusal(job(test_run, calibrate="platt", calibrate_on=str(dev)))
    assert "is of other, direct, and the evaluated run of smol, direct" in message


def test_what_is_no_finished_rerank_run_is_refused(tmp_path, test_run, dev_run):
    missing = refusal(job(test_run, calibrate="platt", calibrate_on=str(tmp_path / "none")))
    assert "not a finished rerank run" in missing
    remote = refusal(job(test_run, calibrate="platt", calibrate_on="ftp://a/b"))
    assert remote.startswith("evaluation.calibrate_on: ftp://a/b: no directory, and no store")
    unscored = rerank_run(tmp_path / "unscored", {"q5": "rye"}, GRADES, dict.fromkeys(SCORES))
    assert "has no scored pair" in refusal(job(test_run, calibrate="platt", calibrate_on=str(unscored)))
    assert "has no scored pair" in refusal(job(unscored, calibrate="platt", calibrate_on=str(dev_run)))


@pytest.mark.parametrize("score", [1.5, -0.1, math.nan, math.inf], ids=str)
def test_a_damaged_score_is_refused(tmp_path, score):
    directory = rerank_run(tmp_path / "damaged", {"q1": "rye"}, GRADES, SCORES | {"d1": score})
    assert "chunk-000000.parquet: damaged" in refusal(job(directory))


@pytest.mark.parametrize(
    ("evaluation", "fault"),
    [
        ({"calibrate": "platt"}, "evaluation.calibrate needs evaluation.calibrate_on"),
        ({"calibrate_on": "dev"}, "evaluation.calibrate_on needs evaluation.calibrate"),
        ({"calibrate": "platt", "calibrate_on": "dev", "run": "a.trec"}, "evaluation.calibrate needs the scores"),
        ({"calibrate": "platt", "calibrate_on": "dev", "compare": ["a", "b"]}, "evaluation.calibrate needs the scores"),
        ({"calibrate": "linear", "calibrate_on": "dev"}, "evaluation.calibrate: "),
        ({"calibrate": True, "calibrate_on": "dev"}, "evaluation.calibrate: "),
        ({"calibrate": "platt", "calibrate_on": ""}, "evaluation.calibrate_on: is empty"),
        ({"calibrate": "platt", "calibrate_on": ["a"]}, "evaluation.calibrate_on: "),
    ],
    ids=str,
)
def test_keys_of_a_calibration_that_cannot_work(evaluation, fault):
    with pytest.raises(UserError, match=fault) as refused:
        parse_config({"job": "evaluate", "run_dir": "runs/a", "evaluation": evaluation}, "recipe")
    assert "\n" not in str(refused.value)


def test_a_pipeline_fits_no_calibration():
    evaluation = {"calibrate": "platt", "calibrate_on": "dev"}
    with pytest.raises(UserError, match="evaluation.calibrate: is for `limrank evaluate`"):
        parse_config({"job": "pipeline", "run_dir": "runs/a", "evaluation": evaluation}, "recipe")
