"""Fusion in a rerank job: its files, what a resume does, the choice of a weight, refusals. No Ray and no engine: the
rows are there before the job begins."""

import asyncio
import json
import shutil

import pyarrow as pa
import pytest

from helpers.beir import write_beir
from helpers.rundirs import rows_of
from helpers.units import silent
from limrank.batch.chunks import ChunkRunner, Worker
from limrank.batch.plan import write_plan
from limrank.config.recipe import input_paths, parse_config
from limrank.engines import EngineSpec
from limrank.errors import StorageError, UserError
from limrank.records import Judgment, ScoreStatus, rerank_row_schema, rerank_unit_schema
from limrank.reranking import job, runs
from limrank.reranking.fusion import open_fusion
from limrank.reranking.source import open_source, units
from limrank.storage import Storage

CORPUS = {f"d{number}": "cat " * number + "roof " * (9 - number) for number in range(1, 9)}
QUERIES = {"q1": "cat", "q2": "roof"}
QRELS = {"q1": {"d8": 1}, "q2": {"d1": 1}}
"""BM25 ranks d8, d7 … for q1 and d1, d2 … for q2: the relevant document is its first."""

DEV_QUERIES = {"p1": "a cat", "p2": "the roof"}


class Scorer:
    """A reranker whose scores a test gives: ``{query: {document: score}}``, None for a failure."""

    def __init__(self, scores):
        self.scores = scores

    async def run(self, unit, engines):
        from limrank.batch.chunks import Outcome

        judgments = [
            Judgment(each["doc_id"], score, ScoreStatus.DIRECT if score is not None else ScoreStatus.FAILED)
            for each in unit["candidates"]
            for score in (self.scores[unit["unit_id"]].get(each["doc_id"]),)
        ]
        return Outcome(job.ranked_rows(job.unit_query(unit), job.unit_candidates(unit), judgments), [])

    step = "score"
    unit_column = "query_id"
    row_key = retry_key = ("query_id", "doc_id")
    row_schema = rerank_row_schema()


UP = {f"d{number}": number / 10 for number in range(1, 9)}
DOWN = {f"d{number}": 1 - number / 10 for number in range(1, 9)}
AGAINST = {"q1": DOWN, "q2": UP}
"""The reranker is of the opposite opinion to BM25's."""


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """No test opens an engine or connects to a cluster."""

    def refuse(*_, **__):
        raise AssertionError("an engine or a cluster was asked for")

    monkeypatch.setattr(EngineSpec, "open", refuse)
    monkeypatch.setattr("limrank.cluster.connect", refuse)


@pytest.fixture
def config(tmp_path):
    """Makes a recipe over a small folder: ``config("run", fuse=0.3)``."""

    def make(name="run", fuse=None, queries=QUERIES, qrels=QRELS, **sections):
        folder = tmp_path / f"data-{name}"
        if not folder.exists():
            write_beir(folder, CORPUS, queries, qrels)
        values = {
            "job": "rerank",
            "run_dir": str(tmp_path / name),
            "data": {"format": "beir", "path": str(folder)},
            "engine": {"kind": "fake"},
            "scoring": {"fuse": None if fuse is None else {"first_stage": fuse}},
        }
        return parse_config(values | sections)

    return make


def score(config, scores):
    """Scores every pair ahead of the job, which then finds its rows."""
    storage = Storage(config.run_dir)
    write_plan(storage, units(open_source(config), config.scoring), rerank_unit_schema(), chunk_cost=1)
    task = Scorer(scores)

    async def run_all():
        chunks = ChunkRunner(storage, task, {}, Worker("one"))
        for number in range(len(storage.names("units")) and len(json.loads(storage.read_text("plan.json"))["chunks"])):
            await chunks.run(await chunks.open(number), isolated=False)

    asyncio.run(run_all())


def run(config, **options):
    return job.run(config, address="local", progress=silent(), **options)


def order(run_dir, name="run.trec"):
    """``{query: [documents, best first]}``, and that both forms of the run agree."""
    found = {}
    for line in (run_dir / name).read_text().splitlines():
        query_id, _, doc_id, rank, value, _ = line.split()
        found.setdefault(query_id, []).append(doc_id)
        assert int(rank) == -int(value) == len(found[query_id])
    whole = json.loads((run_dir / name.replace(".trec", ".json")).read_text())
    assert {query_id: sorted(scores, key=lambda doc: -scores[doc]) for query_id, scores in whole.items()} == found
    return found


def downwards(first, last):
    return [f"d{number}" for number in range(first, last - 1, -1)]


# ---- the job -------------------------------------------------------------------------


def test_the_files_are_fused_and_the_rows_keep_the_scores(config, tmp_path):
    settings = config(fuse=0.9)
    score(settings, AGAINST)
    result = run(settings)
    best_first = downwards(8, 1)
    # BM25 weighs more than a reranker of the opposite opinion.
    assert order(tmp_path / "run") == {"q1": best_first, "q2": best_first[::-1]}
    assert order(tmp_path / "run", "run.pure.trec") == {"q1": best_first[::-1], "q2": best_first}
    rows = rows_of(tmp_path / "run")
    assert {(row["query_id"], row["doc_id"]): row["score"] for row in rows} == {
        (query, doc): value for query, scores in AGAINST.items() for doc, value in scores.items()
    }
    assert [row["doc_id"] for row in sorted(rows, key=lambda row: (row["query_id"], row["rank"]))][:8] == best_first[
        ::-1
    ]
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["fusion"] == {"weight": 0.9}
    assert result.messages[-1] == "fused: 0.9 of the first stage"
    assert result.warnings == []


def test_another_weight_keeps_the_rows_and_needs_no_engine(config, tmp_path):
    score(config(), AGAINST)
    run(config())
    assert not (tmp_path / "run" / "run.pure.trec").exists()
    assert "fusion" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
    pure = (tmp_path / "run" / "run.trec").read_bytes()
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()}
    orders = {}
    for weight in (0, 0.45, 0.9, 1):
        run(config(fuse=weight))
        orders[weight] = order(tmp_path / "run")
        assert (tmp_path / "run" / "run.pure.trec").read_bytes() == pure
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert (manifest["fusion"], manifest["resumed"], manifest["status"]) == ({"weight": weight}, True, "done")
    assert orders[0] == order(tmp_path / "run", "run.pure.trec") != orders[0.45] != orders[0.9] == orders[1]
    run(config())
    assert (tmp_path / "run" / "run.trec").read_bytes() == pure
    assert not list((tmp_path / "run").glob("run.pure.*"))
    assert "fusion" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()} == rows


def test_overwrite_removes_the_pure_files_too(config, tmp_path):
    settings = config(fuse=0.5)
    score(settings, AGAINST)
    run(settings)
    (tmp_path / "run" / "mine.txt").write_text("mine")
    run(config(scoring={"mode": "none"}), overwrite=True)
    assert not list((tmp_path / "run").glob("run.pure.*"))
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


def test_failed_pairs_stay_last_in_first_stage_order(config, tmp_path):
    settings = config(fuse=1)
    score(settings, {"q1": DOWN | {"d8": None, "d5": None}, "q2": {}})
    run(settings)
    assert order(tmp_path / "run") == {
        "q1": ["d7", "d6", "d4", "d3", "d2", "d1", "d8", "d5"],
        "q2": downwards(8, 1)[::-1],
    }


def test_a_first_stage_of_ranks_alone_is_fused_by_its_ranks(config, tmp_path):
    pairs = tmp_path / "pairs.parquet"
    rows = [{"query_id": "q", "query": "cat", "doc_id": f"d{number}", "text": "x"} for number in range(1, 9)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), pairs)
    settings = config(fuse=0.9, data={"format": "pairs", "path": str(pairs)})
    score(settings, {"q": UP})
    result = run(settings)
    assert {row["first_stage_score"] for row in rows_of(tmp_path / "run")} == {None}
    assert order(tmp_path / "run") == {"q": downwards(8, 1)[::-1]}
    assert order(tmp_path / "run", "run.pure.trec") == {"q": downwards(8, 1)}
    assert result.warnings == ["scoring.fuse: the first stage of 1 queries has ranks alone: -rank is their score"]


def test_a_cascade_s_final_scores_are_fused(config, tmp_path):
    settings = config(scoring={"mode": "cascade", "fuse": {"first_stage": 1}})
    score(settings, AGAINST)
    run(settings)
    assert order(tmp_path / "run")["q1"] == downwards(8, 1)


def test_the_hash_leaves_fusion_out(config):
    base = config()
    assert job.rows_hash(config(fuse=0.3), open_source(base)) == job.rows_hash(base, open_source(base))


def test_scores_that_no_run_has_are_damage(tmp_path):
    storage = Storage(str(tmp_path))
    for row in (
        {"score": 7.0},
        {"score": float("nan")},
        {"first_stage_score": float("inf")},
        {"first_stage_rank": None},
    ):
        values = {
            "query_id": "q",
            "doc_id": "d",
            "rank": 1,
            "first_stage_rank": 1,
            "first_stage_score": 1.0,
            "score": 0.5,
        }
        rows = [values | row, values | row | {"doc_id": "e", "rank": 2}]
        storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=rerank_row_schema()))
        with pytest.raises(StorageError, match="the rows of query 'q' are damaged"):
            runs.write_runs(storage, 0.5)
        assert not (tmp_path / "run.trec").exists()


# ---- the choice ----------------------------------------------------------------------


@pytest.fixture
def dev(config, tmp_path):
    """A finished dev run: the reranker is of the opposite opinion to BM25's, which is right."""
    settings = config("dev", queries=DEV_QUERIES, qrels={"p1": {"d8": 1}, "p2": {"d1": 1}})
    score(settings, {"p1": DOWN, "p2": UP})
    run(settings)
    return tmp_path / "dev"


def test_a_weight_is_chosen_on_another_run(config, dev, tmp_path):
    settings = config(fuse=str(dev))
    score(settings, AGAINST)
    result = run(settings)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    fusion = manifest["fusion"]
    # The relevant document is first by BM25 and eighth by the reranker: 1 / log2(9).
    weight = fusion["weight"]
    assert fusion == {
        "weight": weight,
        "dev_run": str(dev),
        "dev_queries": 2,
        "dev_ndcg": {"0": pytest.approx(0.31546, abs=1e-5), f"{weight:g}": 1.0, "1": 1.0},
    }
    assert 0.5 <= weight < 1  # the smallest of those with 1.0, which is nearest to one half
    assert result.messages[-1] == (
        f"fused: {weight:g} of the first stage, chosen on 2 queries of {dev}: "
        f"nDCG@10 0.3155 at 0, 1.0000 at {weight:g}, 1.0000 at 1"
    )
    assert result.warnings == []
    assert job.plan(settings)["fusion"] == result.messages[-1]
    # A given weight is the same run.
    chosen = order(tmp_path / "run")
    run(config(fuse=weight))
    assert order(tmp_path / "run") == chosen


def test_the_weight_s_run_is_an_input(config, dev):
    settings = config(fuse=str(dev))
    assert ("scoring.fuse.first_stage", str(dev)) in input_paths(settings)
    with pytest.raises(UserError, match=r"holds scoring\.fuse\.first_stage"):
        run(config("dev", fuse=str(dev), queries=QUERIES, data=settings.data.model_dump()))


def test_a_dev_run_by_another_model_or_first_stage_is_warned_of(config, dev, tmp_path):
    given = {"kind": "run", "path": str(tmp_path / "a.trec")}
    (tmp_path / "a.trec").write_text("q1 Q0 d1 1 2 x\nq1 Q0 d2 2 1 x\n")
    settings = config(fuse=str(dev), model={"id": "other/model"}, first_stage=given)
    fusion = open_fusion(settings, open_source(settings))
    assert fusion.warnings == [
        f"scoring.fuse.first_stage: {dev} has model.id 'smollm2-135m-rerank', here 'other/model'; first_stage.kind "
        "'bm25', here 'run': its weight may not suit this job"
    ]


def refusal(settings):
    """The one line of a job and of its dry run; nothing is written."""
    with pytest.raises(UserError) as caught:
        run(settings)
    with pytest.raises(UserError) as planned:
        job.plan(settings)
    assert str(planned.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Storage(settings.run_dir).exists("manifest.json")
    return str(caught.value)


def test_a_dev_run_that_no_pair_reached_has_its_rows(config, dev):
    settings = config(fuse=str(dev))
    weight = open_fusion(settings, open_source(settings)).weight
    (dev / "run.trec").write_text("")
    assert open_fusion(settings, open_source(settings)).weight == weight


def test_queries_of_the_job_are_no_dev_queries(config, dev):
    message = refusal(config(fuse=str(dev), queries=QUERIES | {"q3": " A  Cat"}, qrels=QRELS | {"q3": {"d8": 1}}))
    assert message == (
        f"scoring.fuse.first_stage: {dev}: has 1 of this job's own queries, such as ' A  Cat': a weight that is chosen "
        "on the queries it is used for proves nothing"
    )


def _manifest(dev, **values):
    path = dev / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda dev: shutil.rmtree(dev), "no run there (no manifest.json); give a weight from 0 to 1, or the run_dir"),
        (lambda dev: (shutil.rmtree(dev), dev.write_text("0.3")), "Not a directory"),
        (lambda dev: (dev / "manifest.json").unlink(), "no run there (no manifest.json)"),
        (lambda dev: (dev / "manifest.json").write_text("[1]"), "its manifest.json is not one of limrank's"),
        (lambda dev: (dev / "manifest.json").write_bytes(b"\xff"), "its manifest.json is not one of limrank's"),
        (
            lambda dev: _manifest(dev, status="interrupted"),
            "not finished: it is interrupted; the same `limrank rerank`",
        ),
        (lambda dev: _manifest(dev, status=""), "not finished: it is without a status"),
        (lambda dev: _manifest(dev, job="train"), "a run of the job 'train', not of rerank"),
        (lambda dev: (dev / "queries.jsonl").unlink(), "there is no queries.jsonl in it"),
        (lambda dev: (dev / "queries.jsonl").write_text("{}\n"), "queries.jsonl:1: _id is missing"),
        (lambda dev: (dev / "qrels.tsv").unlink(), "there is no qrels.tsv in it"),
        (lambda dev: (dev / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n"), "none of its queries is judged"),
        (lambda dev: (dev / "qrels.tsv").write_text("zz\td1\t1\n"), "none of its queries is judged"),
        (lambda dev: shutil.rmtree(dev / "rows"), "its rows have no scores to choose a weight by"),
        (lambda dev: next((dev / "rows").iterdir()).write_bytes(b"PAR1"), "is damaged"),
        (lambda dev: _rows(dev, score=None), "its rows have no scores to choose a weight by"),
        (lambda dev: _rows(dev, score=2.0), "the rows of query 'p2' are damaged (the score 2.0 is not in [0, 1])"),
        (lambda dev: _rows(dev, score=float("nan")), "the rows of query 'p2' are damaged"),
        (lambda dev: _rows(dev, first_stage_score=float("inf")), "the rows of query 'p2' are damaged"),
        (lambda dev: _rows(dev, first_stage_rank=None), "the rows of query 'p2' are damaged"),
        (lambda dev: _rows(dev, doc_id=None), "its rows/ are damaged"),
        (lambda dev: _columns(dev, "score"), "is damaged"),
        (lambda dev: (dev / "config.yaml").write_text("a: [1"), "config.yaml"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_one_line(config, dev, tamper, message):
    tamper(dev)
    said = refusal(config(fuse=str(dev)))
    assert said.startswith("scoring.fuse.first_stage: ") and str(dev) in said and message in said


def _rows(dev, **values):
    for path in (dev / "rows").iterdir():
        table = pa.parquet.read_table(path)
        rows = [row | values for row in table.to_pylist()]
        pa.parquet.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def _columns(dev, name):
    for path in (dev / "rows").iterdir():
        pa.parquet.write_table(pa.parquet.read_table(path).drop_columns([name]), path)


def test_a_run_of_pairs_or_of_the_first_stage_has_nothing_to_choose_by(config, tmp_path):
    pairs = tmp_path / "pairs.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"query_id": "p", "query": "c", "doc_id": "d", "text": "x"}]), pairs)
    run(config("of-pairs", scoring={"mode": "none"}, data={"format": "pairs", "path": str(pairs)}))
    assert "there is no queries.jsonl in it, which a run over judged queries has; pairs are not judged" in refusal(
        config(fuse=str(tmp_path / "of-pairs"))
    )
    run(config("first", queries=DEV_QUERIES, qrels={"p1": {"d8": 1}}, scoring={"mode": "none"}))
    assert "its rows have no scores to choose a weight by" in refusal(config(fuse=str(tmp_path / "first")))


# ---- calibrated scores ---------------------------------------------------------------


@pytest.mark.parametrize("older", [False, True], ids=["calibrated", "without the column"])
def test_scores_before_calibration_are_fused(tmp_path, older):
    storage = Storage(str(tmp_path))
    # The reranker ranks d3, d2, d1, and a plateau makes the first two equal; BM25 is of the opposite opinion.
    rows = [
        {"query_id": "q", "doc_id": f"d{number}", "rank": 4 - number, "score": score, "raw_score": raw}
        | {"first_stage_rank": number, "first_stage_score": 9.0 - number}
        for number, score, raw in ((1, 0.1, 0.2), (2, 0.5, 0.7), (3, 0.5, 0.9), (4, None, None))
    ]
    calibrated = pa.Table.from_pylist(rows, schema=rerank_row_schema(calibrated=True))
    if older:
        raw = [row | {"score": row["raw_score"]} for row in rows]
        calibrated = pa.Table.from_pylist(raw, schema=rerank_row_schema())
    storage.write_table("rows/chunk-000000.parquet", calibrated)
    storage.write_table("rows/chunk-000001.parquet", calibrated.slice(0, 0))
    runs.write_runs(storage, 0.0)
    assert order(tmp_path)["q"] == ["d3", "d2", "d1", "d4"]
    (found,) = (list(rows) for _, rows in runs.rankings(storage, runs.FUSED_COLUMNS))
    assert ("raw_score" in found[0]) is not older
