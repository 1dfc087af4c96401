"""The training pairs and the files of a run."""

import json
import re
from dataclasses import asdict

import pytest

from helpers.synthesis import LONG, SEEDS, example
from helpers.units import fake_engine, planned, runner
from limrank.batch.plan import write_plan
from limrank.batch.summary import summarize
from limrank.records import (
    Persona,
    synthesis_row_schema,
    synthesis_unit_schema,
)
from limrank.storage import Storage
from limrank.synthesis.export import export, training_pair
from limrank.synthesis.plan import (
    Inputs,
    judging,
    units,
)
from limrank.synthesis.pool import dedupe_and_select
from limrank.synthesis.synthesizer import SynthesisInputs
from limrank.synthesis.task import SynthesisTask


@pytest.mark.parametrize("label", [True, False])
def test_a_training_pair_ends_in_its_label(label):
    row = asdict(example("a")) | {"reasoning": "It says so.", "label": label, "verdict": label}
    pair = training_pair(row)
    assert pair["prompt"] == (
        "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
        f"Query: a query of five words\nPassage: {LONG}\n<think>"
    )
    assert pair["completion"] == f"\nIt says so.\n</think> {'true' if label else 'false'}"


def test_a_pair_without_a_chain_is_the_close_and_the_label():
    assert training_pair(asdict(example("a")))["completion"] == "\n</think> false"
    # By ranking a pair may be kept of which the judge's own chain says the opposite.
    ranked = asdict(example("a")) | {"reasoning": "It says so.", "label": False, "verdict": True}
    assert training_pair(ranked)["completion"] == "\n</think> false"


def test_what_is_exported(config, tmp_path):
    personas = [Persona("p1", "a nurse"), Persona("p2", "a geologist")]
    storage = Storage(str(tmp_path / "run"))
    weighed = ((unit, 1) for unit in units(config, Inputs(SEEDS, personas, 4)))
    plan = write_plan(storage, weighed, synthesis_unit_schema(), chunk_cost=10**6)
    task = SynthesisTask(SynthesisInputs(config.synthesis, judging(config), config.seed))
    engine = fake_engine()
    receipt = runner(storage, task, {"writer": engine, "judge": engine}).run(0, isolated=False)
    pool = dedupe_and_select(storage, config.synthesis, None, seed=1)
    funnel = export(storage, config, summarize([receipt], plan.size), pool, queries_a_seed=2)

    table = storage.read_table("rows/chunk-000000.parquet")
    assert table.schema.names == synthesis_row_schema().names
    found = table.to_pylist()
    kept = [row for row in found if row["kept"]]
    assert (funnel["examples"], funnel["kept"]) == (len(found), len(kept))
    assert funnel["kept_positive"] == sum(row["label"] for row in kept)
    assert funnel["kept"] + sum(funnel["rejected"].values()) == funnel["examples"] == 8
    lines = [json.loads(line) for line in storage.read_text("train.jsonl").splitlines()]
    assert lines == [training_pair(row) for row in kept]
    assert 0 < len(lines) < 8
    for line, row in zip(lines, kept, strict=True):
        assert line["completion"].endswith("</think> true" if row["label"] else "</think> false")
    alpaca = json.loads(storage.read_text("alpaca.json"))
    assert [(each["instruction"], each["output"]) for each in alpaca] == [
        (line["prompt"], line["completion"]) for line in lines
    ]
    stats = json.loads(storage.read_text("stats.json"))
    assert (stats["seeds"], stats["examples"], stats["kept"], stats["failed"]) == (2, 8, len(kept), 0)
    assert sum(stats["passage_role"].values()) == len(kept)
    shown = storage.read_text("DATASET.md")
    assert f"{len(kept)} of 8 examples were kept ({len(kept) / 8:.0%}), " in shown
    assert f"{funnel['kept_positive']} of them relevant, from 2 seeds (seeds.jsonl) and 4" in shown
    assert re.search(r"- query: synth_query, [0-9a-f]{12}\n", shown) and "License of the seeds: CC0." in shown
    assert str(tmp_path) not in shown + storage.read_text("stats.json")


def test_nothing_kept_is_still_exported(config, tmp_path):
    storage, _ = planned(tmp_path / "run", [])
    funnel = export(
        storage, config, summarize([], 0), dedupe_and_select(storage, config.synthesis, None, seed=1), queries_a_seed=2
    )
    assert (funnel["examples"], funnel["kept"], funnel["rejected"]) == (0, 0, {})
    assert storage.read_text("train.jsonl") == ""
    assert json.loads(storage.read_text("alpaca.json")) == []
