"""Jobs over a real Ray with the fake engine: what is committed, resumed, refused."""

import json

import pytest

from helpers.beir import write_rare_words
from helpers.jobs import rerank, rerank_config
from helpers.rundirs import rows_of
from helpers.units import Recorder
from limrank.batch.receipts import read_receipts
from limrank.config.recipe import parse_config, with_values
from limrank.errors import UserError
from limrank.evaluation.job import evaluate_job
from limrank.progress import Progress
from limrank.reranking import job as reranking
from limrank.storage import Storage
from limrank.synthesis import job as synthesis


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    return write_rare_words(tmp_path_factory.mktemp("data") / "beir")


def test_every_pair_once_and_the_manifest_counts_them(local_ray, beir, tmp_path):
    result, events = rerank(rerank_config(beir, tmp_path / "run"))
    rows = rows_of(tmp_path / "run")
    pairs = {(row["query_id"], row["doc_id"]) for row in rows}
    assert len(pairs) == len(rows) == 120  # 60 queries, two documents with each one's rare word
    assert result.failed == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["counts"] == {"units": 60, "rows": 120, "failed": 0}
    assert manifest["tokens"]["generated"] == 120  # one token a direct score
    assert events[-1].done == events[-1].total == 120 and events[-1].finished
    trec = (tmp_path / "run" / "run.trec").read_text().splitlines()
    assert len(trec) == 120 and trec[0].split()[1:4:2] == ["Q0", "1"]
    assert set(json.loads((tmp_path / "run" / "run.json").read_text())) == {f"q{n}" for n in range(60)}


def test_the_same_recipe_again_scores_nothing_again(local_ray, beir, tmp_path):
    config = rerank_config(beir, tmp_path / "run")
    rerank(config)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()}
    _, events = rerank(config)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "rows").iterdir()} == before
    assert events[0].done == 120


def test_a_fused_run_is_rewritten_with_another_weight_and_evaluated(local_ray, beir, tmp_path):
    run_dir = tmp_path / "run"
    config = rerank_config(beir, run_dir)
    rerank(config)
    pure = (run_dir / "run.trec").read_bytes()
    rows = {path.name: path.stat().st_mtime_ns for path in (run_dir / "rows").iterdir()}
    for weight in (0.3, 1.0):
        fused = with_values(config, {"scoring.fuse.first_stage": weight})
        result, events = rerank(fused)
        assert events[-1].done == events[-1].total == 120 and events[-1].finished
        assert result.messages[-1] == f"fused: {weight:g} of the first stage"
        assert (run_dir / "run.pure.trec").read_bytes() == pure
        manifest = json.loads((run_dir / "manifest.json").read_text())
        assert manifest["fusion"] == {"weight": weight} and manifest["counts"]["rows"] == 120
    assert {path.name: path.stat().st_mtime_ns for path in (run_dir / "rows").iterdir()} == rows
    ranked = {(row["query_id"], row["doc_id"]): row["first_stage_rank"] for row in rows_of(run_dir)}
    for line in (run_dir / "run.trec").read_text().splitlines():
        query_id, _, doc_id, rank, *_ = line.split()
        assert ranked[query_id, doc_id] == int(rank)
    evaluated = evaluate_job(parse_config({"job": "evaluate", "run_dir": str(run_dir)}))
    assert evaluated.system.scores.mean == evaluated.first_stage.scores.mean
    assert evaluated.pure.scores.per_query != evaluated.system.scores.per_query


def test_a_run_is_fused_from_the_start_and_by_another_run(local_ray, tmp_path):
    dev = write_rare_words(tmp_path / "dev-data", queries=20)
    test = write_rare_words(tmp_path / "test-data", queries=40)
    queries = [json.loads(line) for line in (test / "queries.jsonl").read_text().splitlines()][20:]
    (test / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    rerank(rerank_config(dev, tmp_path / "dev"))
    config = with_values(rerank_config(test, tmp_path / "run"), {"scoring.fuse.first_stage": str(tmp_path / "dev")})
    result, _ = rerank(config)
    fusion = json.loads((tmp_path / "run" / "manifest.json").read_text())["fusion"]
    assert (fusion["dev_run"], fusion["dev_queries"]) == (str(tmp_path / "dev"), 20)
    best = fusion["dev_ndcg"][f"{fusion['weight']:g}"]
    assert best >= max(fusion["dev_ndcg"]["0"], fusion["dev_ndcg"]["1"])
    assert result.messages[-1].startswith(f"fused: {fusion['weight']:g} of the first stage, chosen on 20 queries of")
    assert len((tmp_path / "run" / "run.pure.trec").read_text().splitlines()) == len(rows_of(tmp_path / "run")) == 40


def test_a_lost_chunk_alone_is_run_again(local_ray, beir, tmp_path):
    run_dir = tmp_path / "run"
    config = rerank_config(beir, run_dir)
    rerank(config)
    whole = sorted((row["query_id"], row["doc_id"], row["score"]) for row in rows_of(run_dir))
    lost = sorted((run_dir / "rows").iterdir())[0]
    lost.unlink()
    rerank(config)
    assert sorted((row["query_id"], row["doc_id"], row["score"]) for row in rows_of(run_dir)) == whole


def test_failed_pairs_have_no_score_and_come_last(local_ray, beir, tmp_path):
    result, _ = rerank(rerank_config(beir, tmp_path / "run", fail_rate=0.3))
    rows = rows_of(tmp_path / "run")
    failed = [row for row in rows if row["status"] == "failed"]
    assert len(rows) == 120 and 0 < len(failed) < 120
    assert all(row["score"] is None for row in failed)
    ranks = {}
    for row in rows:
        ranks.setdefault(row["query_id"], []).append((row["rank"], row["status"] == "failed"))
    assert all([late for _, late in sorted(places)] == sorted(late for _, late in places) for places in ranks.values())
    storage = Storage(str(tmp_path / "run"))
    failures = [row for name in storage.names("failures") for row in storage.read_table(f"failures/{name}").to_pylist()]
    assert len(failures) == len(failed) == result.failed
    assert {failure["error_type"] for failure in failures} == {"RowError"}


def test_one_poison_unit_is_one_failure_and_no_neighbour(local_ray, beir, tmp_path):
    # "rare7 " is in the prompts of query q7 alone: documents' words are followed by others.
    result, _ = rerank(rerank_config(beir, tmp_path / "run", poison="Query: rare7\n"))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 120
    assert {row["query_id"] for row in rows if row["status"] == "failed"} == {"q7"}
    storage = Storage(str(tmp_path / "run"))
    failures = [row for name in storage.names("failures") for row in storage.read_table(f"failures/{name}").to_pylist()]
    assert [(failure["unit_id"], failure["error_type"], failure["attempts"]) for failure in failures] == [
        ("q7", "EngineError", 4)
    ]
    assert result.failed == 1


def test_resources_the_cluster_lacks_are_refused(local_ray, beir, tmp_path):
    config = rerank_config(beir, tmp_path / "run").model_copy(update={"workers": _workers(replicas=1000)})
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"kind": "vllm"})})
    with pytest.raises(UserError, match=r"1000 replicas of 1 CPUs each, and 1 CPU in addition, do not fit"):
        rerank(config)


def test_a_killed_engine_host_is_waited_for(local_ray, beir, tmp_path):
    """The pipeline's way: the engine in an actor of its own, the worker its client."""
    import threading
    import time

    from limrank.engines import EngineSpec
    from limrank.engines.actor import host_engine

    config = rerank_config(beir, tmp_path / "run", latency_ms=300, max_in_flight=4)
    with host_engine(EngineSpec(config.model, config.engine), {"num_cpus": 1}) as source:

        def kill():
            while not list((tmp_path / "run").glob("attempts/*/*")):
                time.sleep(0.05)
            time.sleep(1)
            local_ray.kill(source.hosts[0], no_restart=False)

        threading.Thread(target=kill, daemon=True).start()
        result, _ = rerank(config, engines={"scorer": source})
    rows = rows_of(tmp_path / "run")
    assert (result.failed, len({(row["query_id"], row["doc_id"]) for row in rows}), len(rows)) == (0, 120, 120)
    # The worker waited, and lived: nothing was begun again.
    begun = [len(list(chunk.iterdir())) for chunk in (tmp_path / "run" / "attempts").iterdir()]
    assert set(begun) == {1}


def test_a_request_whose_host_dies_goes_to_another(local_ray):
    import asyncio

    from limrank.config import EngineConfig, ModelConfig
    from limrank.engines import EngineSpec
    from limrank.engines.actor import host_engine

    async def asked_before_and_after(engine, host):
        def answers():
            return asyncio.gather(*(engine.generate(f"prompt {n}", max_tokens=30) for n in range(6)))

        before = await answers()
        local_ray.kill(host, no_restart=False)
        return before, await answers()

    spec = EngineSpec(ModelConfig(id="fake"), EngineConfig(kind="fake"))
    with host_engine(spec, {"num_cpus": 0.1}, replicas=2) as source:
        before, after = asyncio.run(asked_before_and_after(source.open(), source.hosts[0]))
    assert before == after


def test_a_pool_grows_between_its_bounds(local_ray, beir, tmp_path, monkeypatch):
    # Chunks of one query each, so that there is more than one worker can begin.
    monkeypatch.setattr(reranking, "chunk_cost", lambda kind: 1)
    config = rerank_config(beir, tmp_path / "run", latency_ms=2500, max_in_flight=16)
    config = config.model_copy(update={"workers": _workers(replicas=[1, 2])})
    result, _ = rerank(config)
    assert result.failed == 0 and len(rows_of(tmp_path / "run")) == 120
    receipts = read_receipts(Storage(str(tmp_path / "run")))
    assert len({work.worker for receipt in receipts for work in receipt.work}) == 2


def _workers(**values):
    from limrank.config import WorkersConfig

    return WorkersConfig(**values)


def test_synthesis_gives_the_same_examples_again(local_ray, tmp_path):
    def run(name):
        values = {"job": "synthesize", "run_dir": str(tmp_path / name), "engine": {"kind": "fake"}}
        config = parse_config(values | {"synthesis": {"max_seeds": 4, "mined_negatives": 1}})
        synthesis.run(config, address="local", progress=Progress(Recorder()))
        return sorted(rows_of(tmp_path / name), key=lambda row: row["example_id"])

    first, second = run("one"), run("two")
    assert first == second
    # Four seeds, two kinds, and one positive, one written and one mined negative for each.
    assert len(first) == 24
    kept = [row for row in first if row["kept"]]
    lines = (tmp_path / "one" / "train.jsonl").read_text().splitlines()
    assert len(lines) == len(kept) > 0
    for line in map(json.loads, lines):
        assert line["prompt"].endswith("<think>")
        assert line["completion"].endswith(("</think> true", "</think> false"))
