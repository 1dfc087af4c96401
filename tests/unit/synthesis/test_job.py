"""The synthesize job: dry run, hash, retries, checks before it starts."""

import json

import pytest

from helpers.rundirs import rows
from helpers.synthesis import NURSE, SEEDS, Writer, with_settings
from helpers.units import fake_engine, runner
from limrank.batch.plan import write_plan
from limrank.config import EngineConfig, SynthesisConfig
from limrank.errors import RowError, UserError
from limrank.progress import open_progress
from limrank.records import (
    Persona,
    synthesis_unit_schema,
)
from limrank.storage import Storage
from limrank.synthesis import job
from limrank.synthesis.plan import (
    Inputs,
    units,
)
from limrank.synthesis.synthesizer import SynthesisInputs
from limrank.synthesis.task import SynthesisTask


def test_a_dry_run_counts_what_would_be_written(config, tmp_path):
    plan = job.plan(config)
    # Two seeds, two kinds; a positive and a negative a query.
    assert plan["units"].startswith("2 seeds, 4 queries, 8 pairs to judge, ")
    assert "Somebody searched for: merge sorted lists" in plan["first_prompt"]
    assert not (tmp_path / "run").exists()


def test_a_plan_says_what_ends_the_run(config):
    assert job.plan(config)["ends"] is None
    bounded = config.model_copy(
        update={"synthesis": config.synthesis.model_copy(update={"size": 6, "oversample": 1.5})}
    )
    plan = job.plan(bounded)
    assert plan["units"].startswith("at most 2 seeds, 4 queries, 8 pairs to judge, ")
    assert plan["ends"].startswith("when 9 examples are kept (synthesis.size × synthesis.oversample)")


def test_keys_that_came_later_change_no_hash_at_their_default():
    """A run directory of an earlier limrank can be resumed."""
    assert "oversample" not in SynthesisConfig().hashed(set()) and "size" in SynthesisConfig().hashed(set())
    assert SynthesisConfig(size=2, oversample=2).hashed({"size"})["oversample"] == 2


def test_the_hash(config):
    personas = [Persona("1", "a nurse")]

    def hashed(seeds=SEEDS, personas=personas, **changed):
        return job.rows_hash(config.model_copy(update=changed), Inputs(seeds, personas, 4))

    base = hashed()
    assert hashed(run_dir="/elsewhere", allow_failures=True) == base
    assert hashed(engine=EngineConfig(kind="fake", latency_ms=9)) == base
    assert hashed(synthesis=config.synthesis.model_copy(update={"seeds": "/moved.jsonl"})) == base
    assert hashed(synthesis=config.synthesis.model_copy(update={"size": 2, "embedder": "a/model"})) == base
    assert hashed(synthesis=config.synthesis.model_copy(update={"size": 2, "oversample": 1.5})) == base
    changed = [
        hashed(seeds=SEEDS[:1]),
        hashed(personas=[Persona("1", "a pilot")]),
        hashed(seed=1),
        hashed(synthesis=config.synthesis.model_copy(update={"negatives": 2})),
        hashed(synthesis=config.synthesis.model_copy(update={"agreement": "ranking"})),
        hashed(judge=config.model.model_copy(update={"id": "other/judge"})),
    ]
    assert len({base, *changed}) == 7


def test_a_second_try_writes_what_failed_and_nothing_else(config, tmp_path):
    class Lossy(Writer):
        """Loses the expert's query the first time, and would write another daily one the second."""

        lost = False

        async def generate(self, prompt, *, schema=None, **sampling):
            generation = await super().generate(prompt, schema=schema, **sampling)
            if schema and "query" in schema["properties"] and "ask an expert" in prompt[0]["content"] and not self.lost:
                self.lost = True
                raise RowError("lost")
            return generation

    storage, planned_units = Storage(str(tmp_path / "run")), list(units(config, Inputs(SEEDS[:1], [NURSE], 2)))
    write_plan(storage, ((unit, 1) for unit in planned_units), synthesis_unit_schema(), chunk_cost=10**6)
    task = SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
    writer = Lossy(describe=json.dumps({"positive": "one that helps", "hard_negatives": ["another"]}))
    engines = {"writer": writer, "judge": fake_engine()}
    first = runner(storage, task, engines).run(0, isolated=False)
    before = rows(storage)
    assert (first.failed, {row["query_kind"] for row in before}) == (1, {"daily"})
    asked = len(writer.prompts)
    second = runner(storage, task, engines, session="second").run(0, isolated=False)
    after = rows(storage)
    assert second.failed == 0 and {row["query_kind"] for row in after} == {"daily", "expert"}
    assert [row for row in after if row["query_kind"] == "daily"] == before
    # Its query, chain, descriptions and two passages.
    assert "ask an expert" in writer.prompts[asked] and len(writer.prompts) == asked + 5


def test_a_missing_embedder_is_refused_before_anything_starts(config, tmp_path):
    wrong = with_settings(config, size=2, embedder="/no/such/model")
    with pytest.raises(UserError, match="model /no/such/model: no such directory"):
        job.run(wrong, address="local", progress=open_progress())
    assert not (tmp_path / "run").exists()
    # Nothing is embedded for a choice at random, or without one.
    job.check_choice(wrong.synthesis.model_copy(update={"select": "random"}))
    job.check_choice(wrong.synthesis.model_copy(update={"size": None}))
