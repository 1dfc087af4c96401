"""The units of a run: briefs, mined negatives, costs."""

import asyncio
import json
from dataclasses import asdict

from helpers.synthesis import (
    DAILY,
    MINED,
    NURSE,
    SEEDS,
    with_settings,
    write_benchmark,
)
from limrank.config import ScoringConfig
from limrank.records import (
    Persona,
    QueryKind,
    Seed,
    SynthesisExample,
)
from limrank.synthesis import job
from limrank.synthesis.plan import (
    Inputs,
    most_generated,
    read_inputs,
    too_few_mined,
    units,
    unwritten,
)
from limrank.synthesis.synthesizer import SynthesisInputs
from limrank.synthesis.task import SynthesisTask


def test_the_same_recipe_plans_the_same_queries(config):
    personas = [Persona(str(number), f"persona {number}") for number in range(100)]
    both = list(units(config, Inputs(SEEDS, personas, 4)))
    assert both == list(units(config, Inputs(SEEDS, personas, 4)))
    assert [each["kind"] for each in both[0]["briefs"]] == ["daily", "expert"]
    assert len({each["persona_id"] for each in both[0]["briefs"]}) == 1
    assert list(units(config.model_copy(update={"seed": 1}), Inputs(SEEDS, personas, 4))) != both


def test_what_is_not_asked_is_not_planned_for(config):
    unreasoned = config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"chains": False})})
    longest = config.synthesis.chain_tokens
    assert most_generated(config, DAILY) - most_generated(unreasoned, DAILY) == longest
    given = Inputs(SEEDS, [NURSE], 2)
    for long, short in zip(units(config, given), units(unreasoned, given), strict=True):
        assert long["cost"] - short["cost"] == 2 * (4 * longest + 250)  # of two queries
    assert job.rows_hash(config, given) != job.rows_hash(unreasoned, given)
    assert "chains" not in config.synthesis.hashed(set())


def test_mined_negatives_are_the_nearest_other_passages(config):
    seeds = [
        Seed("s1", "merge sorted lists", "merge sorted lists with heapq"),
        Seed("s2", "sorted lists", "keep sorted lists with bisect"),
        Seed("s3", "words", "count words with a counter"),
    ]
    path = config.synthesis.seeds
    lines = [{"id": each.seed_id, "query": each.query, "passage": each.passage} for each in seeds]
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    mining = config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"mined_negatives": 1})})
    assert [unit["mined"] for unit in units(mining, Inputs(seeds, [NURSE], 6))] == [
        [seeds[1].passage],
        [seeds[0].passage],
        [],
    ]
    assert [unit["mined"] for unit in units(config, Inputs(seeds, [NURSE], 6))] == [[], [], []]
    planned = list(units(mining, Inputs(seeds, [NURSE], 6)))
    assert too_few_mined(mining, planned) == ["synthesis.mined_negatives: BM25 finds fewer than 1 for 1 of 3 seeds"]
    assert not too_few_mined(mining, planned[:2]) and not too_few_mined(config, planned)


def test_the_judge_s_chain_is_as_long_as_the_synthesis_section_says(config):
    assert job.judging(config).think_tokens == 16
    direct = config.model_copy(update={"scoring": ScoringConfig(mode="direct")})
    assert job.judging(direct).think_tokens == 0
    own = config.model_copy(update={"scoring": ScoringConfig(mode="budget", max_think_tokens=3)})
    assert job.judging(own).think_tokens == 3


def test_a_query_is_written_anew_where_anything_of_it_is_missing(config):
    config = config.model_copy(update={"reranker": config.model})
    unit = next(units(config, Inputs(SEEDS[:1], [NURSE], 2))) | {"mined": ["a", "b", "c"]}

    def row(**values):
        return asdict(SynthesisExample("e", "s1", "p1", QueryKind.DAILY, passage="text", kept=True)) | values

    def rewritten(*rows, reranked=True):
        return [brief.kind for brief in unwritten(unit, rows, reranked=reranked, mined=1)]

    mined = row(passage_role=MINED, base_score=0.5)
    assert rewritten() == ["daily", "expert"]
    assert rewritten(mined) == ["expert"]
    assert rewritten(row(base_score=0.5)) == ["daily", "expert"]  # none was mined
    assert rewritten(row(base_score=0.5), reranked=False) == ["expert"]
    assert rewritten(mined, row(reject_reason="judge_failed", kept=False)) == ["daily", "expert"]
    assert rewritten(mined, row(base_score=None)) == ["daily", "expert"]
    assert rewritten(mined, row(base_score=None, kept=False)) == ["expert"]
    assert rewritten(row(passage=None, kept=False, reject_reason="unparsable")) == ["expert"]


def test_a_seed_that_repeats_a_benchmark_costs_nothing(config, tmp_path):
    decontaminate = (write_benchmark(tmp_path / "bench", "Merge sorted lists!"),)
    given = read_inputs(with_settings(config, decontaminate=decontaminate))
    assert (given.queries_a_seed, list(given.repeated)) == (2, ["s1"])
    assert job.rows_hash(config, given) != job.rows_hash(config, read_inputs(config))
    first, second = units(config, given)
    assert (first["briefs"], first["cost"], len(second["briefs"])) == ([], 0, 2)
    assert first["contaminated"] == "bench, query 7: 100% of its words"
    task = SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
    (row,) = asyncio.run(task.run(first, {})).rows  # no engine is asked
    assert (row["example_id"], row["kept"], row["reject_reason"]) == ("s1", False, "contaminated")
