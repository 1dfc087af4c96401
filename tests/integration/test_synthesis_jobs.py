"""The synthesize job over a real Ray, with the fake engine; and once with a real model
that writes behind an endpoint and judges in a pool."""

import json
import random
from collections import Counter, defaultdict

import pyarrow.parquet as pq
import pytest

from limrank import pipeline
from limrank.batch import fanout
from limrank.batch.receipts import read_receipts
from limrank.config.recipe import parse_config
from limrank.engines import actor as served
from limrank.progress import Progress, SilentRenderer
from limrank.storage import Storage
from limrank.synthesis import job

SEEDS = 24
REAL = "smollm2-135m-instruct"
_MAY_BE_NONE = ("instruction", "reject_reason", "reject_detail", "base_score", "teacher_score", "teacher")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds") / "seeds.jsonl"
    lines = [
        {"query": f"how do number {n} and its like work", "passage": f"Number {n} works by counting {n} things."}
        for n in range(SEEDS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(job, "chunk_cost", lambda kind, token_budget: 1)


def synthesize(seeds, run_dir, *, workers=1, judge=None, reranker=None, **synthesis):
    config = parse_config(
        {
            "job": "synthesize",
            "run_dir": str(run_dir),
            "engine": {"kind": "fake"},
            "workers": {"replicas": workers, "cpus": 0.5},
            "synthesis": {"seeds": seeds, "near_duplicate": 1.0, **_judged(synthesis), **synthesis},
            **({"judge": {"id": judge}} if judge else {}),
            **({"reranker": {"id": reranker}} if reranker else {}),
        }
    )
    result = job.run(config, address="local", progress=Progress(SilentRenderer(), every_s=0))
    return result, json.loads((run_dir / "stats.json").read_text())


def _judged(synthesis):
    return {} if synthesis.get("source") == "passages" else {"agreement": "ranking"}


def in_order(run_dir):
    return pq.read_table(run_dir / "examples.parquet").to_pylist()


def examples(run_dir):
    return sorted(in_order(run_dir), key=lambda row: row["example_id"])


def test_what_is_trained_on_has_both_labels_of_each_query(local_ray, seeds, tmp_path):
    run = tmp_path / "run"
    result, stats = synthesize(seeds, run, negatives=2, instruction_rate=0.5, size=20)
    rows = examples(run)
    kept = [row for row in rows if row["kept"]]
    selected = [row for row in rows if row["selected"]]
    assert (result.failed, stats["seeds"], stats["examples"], stats["kept"]) == (0, SEEDS, len(rows), len(kept))
    assert stats["examples"] == stats["kept"] + sum(stats["rejected"].values())
    for row in kept:
        assert None not in {value for name, value in row.items() if name not in _MAY_BE_NONE}
    labels = defaultdict(Counter)
    for row in selected:
        labels[row["query"]][row["label"]] += 1
    assert len(selected) == 20 and all(count == {True: 1, False: 1} for count in labels.values())
    pairs = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    for pair, row in zip(pairs, (row for row in in_order(run) if row["selected"]), strict=True):
        assert f"Query: {row['query']}" in pair["prompt"] and row["passage"] in pair["prompt"]
        assert pair["completion"].endswith(f"</think> {str(row['label']).lower()}")
    assert len(json.loads((run / "alpaca.json").read_text())) == 20
    assert "<html" in (run / "report.html").read_text()
    assert "Selected for training: 20 examples." in (run / "DATASET.md").read_text()
    assert sum(row["instruction"] is not None for row in rows) > 0
    manifest = json.loads((run / "manifest.json").read_text())
    assert set(manifest["tokens"]["by_step"]) == {"query", "chain", "describe", "passage", "judge"}


def test_one_actor_or_four_and_one_pool_or_two_write_the_same(local_ray, seeds, tmp_path, monkeypatch):
    hosted = []

    original = served.host_engine

    def host_engine(spec, wanted, replicas):
        hosted.append(spec.model.id)
        return original(spec, wanted, replicas)

    monkeypatch.setattr(served, "host_engine", host_engine)
    synthesize(seeds, tmp_path / "one")
    synthesize(seeds, tmp_path / "four", workers=4)
    assert in_order(tmp_path / "one") == in_order(tmp_path / "four") and not hosted
    receipts = read_receipts(Storage(str(tmp_path / "four")))
    assert len({work.worker for receipt in receipts for work in receipt.work}) > 1
    # Another model judges, in a pool of its own; the fake one's answers depend only on the prompt.
    synthesize(seeds, tmp_path / "judged", judge="another")
    assert in_order(tmp_path / "one") == in_order(tmp_path / "judged") and hosted == ["another"]


@pytest.mark.parametrize("judge", [None, "another"])
def test_a_reranker_mines_and_says_what_is_hard(local_ray, seeds, tmp_path, judge):
    # Its pool is the judge's where they are one model, and else its own.
    run = tmp_path / "run"
    _, stats = synthesize(seeds, run, judge=judge, reranker="another", mined_negatives=1, mine_depth=3, size=2)
    kept = [row for row in examples(run) if row["kept"]]
    assert kept and all(0 <= row["base_score"] <= 1 for row in kept)
    assert any(row["passage_role"] == "mined_negative" for row in examples(run))
    assert stats["reranker"] == "another" and {"mine", "base"} <= set(stats["steps"])
    # Three neighbours of each query were scored, each by one label token.
    assert stats["steps"]["mine"]["generated"] == 3 * stats["queries"]


def test_a_budget_stops_the_run_and_goes_on_once_raised(local_ray, seeds, tmp_path, monkeypatch):
    # Two models and chunks of the size that a run has: all that begins at once is in the budget.
    monkeypatch.setattr(job, "chunk_cost", fanout.chunk_cost)
    _, whole = synthesize(seeds, tmp_path / "whole", judge="another")
    spent = sum(whole["tokens"].values())
    run = tmp_path / "run"
    result, stats = synthesize(seeds, run, judge="another", max_tokens=spent // 4)
    # What is expected of a chunk is a mean: the last one may take a little more.
    assert 0.6 * spent / 4 < sum(stats["tokens"].values()) < 1.1 * spent / 4
    assert 0 < stats["seeds"] < SEEDS and stats["queries"] == 2 * stats["seeds"]
    assert json.loads((run / "manifest.json").read_text())["status"] == "stopped"
    assert any("raise it, and the same command continues" in line for line in result.messages)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()}
    _, stats = synthesize(seeds, run, judge="another", max_tokens=spent // 4)  # nothing is left to spend
    assert {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()} == before
    _, stats = synthesize(seeds, run, judge="another", max_tokens=2 * spent)
    assert json.loads((run / "manifest.json").read_text())["status"] == "done"
    assert stats["seeds"] == SEEDS
    assert examples(run) == examples(tmp_path / "whole")


def test_a_run_ends_when_enough_is_kept_and_goes_on_once_more_is_asked_for(local_ray, seeds, tmp_path):
    _, whole = synthesize(seeds, tmp_path / "whole")
    run = tmp_path / "run"
    result, stats = synthesize(seeds, run, size=4, oversample=1.5)
    manifest = json.loads((run / "manifest.json").read_text())
    assert 6 <= manifest["counts"]["kept"] < whole["kept"] and stats["seeds"] < SEEDS
    # The run is done, not stopped.
    assert manifest["status"] == "done" and stats["selected"]["examples"] == 4
    assert any(f"enough after {stats['seeds']} of {SEEDS} seeds" in line for line in result.messages)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()}
    chosen = in_order(run)
    synthesize(seeds, run, size=4, oversample=1.5)  # enough is there
    assert {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()} == before
    assert in_order(run) == chosen
    _, more = synthesize(seeds, run, size=4, oversample=5)
    assert stats["seeds"] < more["seeds"] <= SEEDS and more["kept"] >= 20
    after = {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()}
    assert before.items() < after.items()  # none was written anew
    _, all_of_them = synthesize(seeds, run)
    assert all_of_them["seeds"] == SEEDS and examples(run) == examples(tmp_path / "whole")


def test_another_choice_needs_no_new_rows(local_ray, seeds, tmp_path):
    run = tmp_path / "run"
    synthesize(seeds, run)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()}
    _, coverage = synthesize(seeds, run, size=6)
    _, blind = synthesize(seeds, run, size=6, select="random")
    assert coverage["selected"]["examples"] == blind["selected"]["examples"] == 6
    assert {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()} == before


def test_passages_are_mined_anew_without_a_new_row(local_ray, tmp_path):
    """The fake writer's queries find nothing by BM25, so a run file decides."""
    corpus = tmp_path / "corpus.jsonl"
    texts = {f"d{number}": " ".join(f"boat{number}x{each}" for each in range(15)) for number in range(SEEDS)}
    corpus.write_text(
        "".join(json.dumps({"query": "q", "passage": text, "id": key}) + "\n" for key, text in texts.items())
    )
    run = tmp_path / "run"
    keys = {"source": "passages", "round_trip": {"retriever": "none"}, "queries_per_passage": 2}
    result, stats = synthesize(str(corpus), run, **keys)
    rows = examples(run)
    assert (result.failed, stats["queries"], len(rows)) == (0, 2 * SEEDS, 2 * SEEDS)
    assert all(row["passage"] == texts[row["seed_id"]] and row["source"] == "passages" for row in rows)
    assert set(stats["steps"]) == {"query"} and "judge" not in stats
    before = {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()}
    grades = tmp_path / "grades.json"
    grades.write_text(json.dumps({query["_id"]: {query["_id"].split("/")[0]: 1.0} for query in _queries(run)}))
    _, graded = synthesize(str(corpus), run, **keys, teacher={"kind": "run", "path": str(grades)})
    assert {path.name: path.stat().st_mtime_ns for path in (run / "rows").iterdir()} == before
    assert graded["teacher"] == "grades.json" and graded["kept"] == stats["kept"]
    assert {row["teacher_score"] for row in examples(run) if row["kept"]} == {1.0}
    assert "grades.json" in (run / "DATASET.md").read_text() and "<html" in (run / "report.html").read_text()


def _queries(run_dir):
    return [json.loads(line) for line in (run_dir / "candidates" / "queries.jsonl").read_text().splitlines()]


def test_planted_copies_of_a_benchmark_are_rejected(local_ray, shared_data, tmp_path):
    """All of SciFact's test queries, each as it is and with one word changed, among real
    queries that are none of them."""
    scifact = shared_data / "scifact"
    judged = {line.split("\t")[0] for line in (scifact / "qrels" / "test.tsv").read_text().splitlines()[1:]}
    queries = map(json.loads, (scifact / "queries.jsonl").read_text().splitlines())
    copies = [query["text"] for query in queries if query["_id"] in judged]
    draw = random.Random(1)
    changed = [text.split() for text in copies]
    for words in changed:
        words[draw.randrange(len(words))] = "zebra"
    others = (shared_data / "msmarco_seed_instructir" / "queries.jsonl").read_text().splitlines()[:200]
    asked = {
        "copy": copies,
        "changed": map(" ".join, changed),
        "other": (json.loads(line)["text"] for line in others),
    }
    lines = [
        {"id": f"{kind}-{number}", "query": text, "passage": f"Nobody has written anything about number {number} yet."}
        for kind, texts in asked.items()
        for number, text in enumerate(texts)
    ]
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, stats = synthesize(str(seeds), tmp_path / "run", decontaminate=[str(scifact)], kinds=["daily"])
    rows = examples(tmp_path / "run")
    contaminated = Counter(row["seed_id"].partition("-")[0] for row in rows if row["reject_reason"] == "contaminated")
    assert len(copies) == 300 and contaminated == {"copy": 300, "changed": 300}
    assert stats["rejected"]["contaminated"] == 600 and stats["queries"] == 200
    # Nothing was written for them, and something for every other seed.
    written = {row["seed_id"] for row in rows if row["query"] and row["reject_reason"] != "contaminated"}
    assert written == {f"other-{number}" for number in range(200)}
    assert all(row["passage"] is None for row in rows if row["reject_reason"] == "contaminated")


def test_a_writer_behind_an_endpoint_and_a_judge_in_a_pool(local_ray, vllm_server, shared_data, tmp_path):
    """vLLM's own server writes to three real seeds, and vLLM in an actor judges."""
    run = tmp_path / "run"
    config = parse_config(
        {
            "job": "synthesize",
            "run_dir": str(run),
            # The draw matters: so small a model can fill an answer with white space up to its limit, which the
            # server's grammar allows.
            "seed": 1,
            "model": {"id": REAL, "max_model_len": 2048},
            "engine": {"kind": "openai", "base_url": vllm_server},
            "judge_engine": {"kind": "vllm", "kv_cache_gib": 1},
            "scoring": {"mode": "budget", "max_think_tokens": 16},
            "synthesis": {
                "seeds": str(shared_data / "msmarco_seed_instructir"),
                "max_seeds": 3,
                "mined_negatives": 1,
                "query_tokens": 48,
                "chain_tokens": 32,
                "passage_tokens": 32,
                "temperature": 0.5,
            },
        }
    )
    result = job.run(config, address="local", progress=Progress(SilentRenderer(), every_s=0))
    rows, stats = examples(run), json.loads((run / "stats.json").read_text())
    assert (result.failed, stats["seeds"], stats["queries"]) == (0, 3, 6)
    assert {(row["seed_id"], row["query_kind"]) for row in rows} == {
        (seed, kind) for seed in {row["seed_id"] for row in rows} for kind in ("daily", "expert")
    }
    assert len({row["seed_id"] for row in rows}) == 3
    # The server held the writer to its schemas, and the judge's probability is of label tokens.
    assert "unparsable" not in stats["rejected"] and all(row["query"] for row in rows)
    judged = [row for row in rows if row["judge_score"] is not None]
    assert judged and all(0 < row["judge_score"] < 1 and row["reasoning"] is not None for row in judged)
    assert stats["steps"]["query"]["generated"] > 0 and stats["steps"]["judge"]["generated"] > 0


def test_a_judge_behind_an_endpoint_is_read_by_its_answer(local_ray, vllm_server, shared_data, tmp_path):
    """As one is that gives no log-probabilities: nothing but its chat is asked."""
    run = tmp_path / "run"
    values = {
        "job": "synthesize",
        "run_dir": str(run),
        "model": {"id": REAL, "max_model_len": 2048},
        "engine": {"kind": "openai", "base_url": vllm_server},
        "scoring": {"mode": "budget", "max_think_tokens": 24},
        "synthesis": {
            "seeds": str(shared_data / "msmarco_seed_instructir"),
            "max_seeds": 4,
            "judge_by": "answer",
            "mined_negatives": 2,
            "query_tokens": 48,
            "chain_tokens": 32,
            "passage_tokens": 32,
            "temperature": 0.5,
        },
    }
    result = job.run(parse_config(values), address="local", progress=Progress(SilentRenderer(), every_s=0))
    asked = [row for row in examples(run) if row["passage"] and (row["reasoning"] or row["verdict"] is not None)]
    assert result.failed == 0 and asked
    for row in asked:
        agrees = row["verdict"] == row["label"]
        message = ["unparsable"] if row["verdict"] is None else [None, "bad_chain"] if agrees else ["judge_disagrees"]
        assert row["judge_score"] is None and row["reject_reason"] in message
    stats = json.loads((run / "stats.json").read_text())
    assert stats["judged"] == sum(row["verdict"] is not None for row in asked)


def test_a_pipeline_trains_on_no_part_of_its_examples(local_ray, seeds, tmp_path):
    def config(max_tokens):
        values = {
            "job": "pipeline",
            "run_dir": str(tmp_path / "line"),
            "data": {"format": "pydocs", "max_queries": 2},
            "first_stage": {"depth": 2},
            "engine": {"kind": "fake"},
            "workers": {"cpus": 0.5},
            "synthesis": {"seeds": seeds, "max_tokens": max_tokens},
        }
        return parse_config(values)

    result = pipeline.run(config(1), address="local", progress=Progress(SilentRenderer(), every_s=0))
    manifest = json.loads((tmp_path / "line" / "manifest.json").read_text())
    assert manifest["status"] == "stopped" and not (tmp_path / "line" / "train").exists()
    assert any("stopped at synthesis.max_tokens" in str(line) for line in result.messages)
    # A larger budget is the same run: it is not refused, and stops later.
    pipeline.run(config(2), address="local", progress=Progress(SilentRenderer(), every_s=0))
