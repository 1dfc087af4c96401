import asyncio
import json
from dataclasses import asdict, replace

import pytest
from helpers import fake_engine, planned, runner

from limrank.config import EngineConfig, ScoringConfig, SynthesisConfig, SynthesizeJob
from limrank.engines.base import Generation, Limits
from limrank.engines.fake import ByteTokenizer
from limrank.errors import EngineError, RowError
from limrank.plan import write_plan
from limrank.receipts import summarize
from limrank.records import (
    Judgment,
    PassageRole,
    Persona,
    QueryKind,
    ScoreStatus,
    Seed,
    SynthesisExample,
    synthesis_row_schema,
    synthesis_unit_schema,
)
from limrank.storage import Storage
from limrank.synthesis import job
from limrank.synthesis.export import export, training_pair
from limrank.synthesis.filters import judged, rejected_before_judging
from limrank.synthesis.steps import SynthesisInputs, synthesize_seed

SEEDS = [
    Seed("s1", "merge sorted lists", "heapq.merge merges several sorted inputs into one sorted stream"),
    Seed("s2", "count words", "collections.Counter counts hashable objects"),
]
PERSONAS = {QueryKind.DAILY: Persona("p1", "a nurse on night shift"), QueryKind.EXPERT: Persona("p2", "a geologist")}
INPUTS = SynthesisInputs(SynthesisConfig(negatives=2), ScoringConfig(mode="budget", max_think_tokens=16), seed=7)
POSITIVE, HARD, MINED = PassageRole.POSITIVE, PassageRole.HARD_NEGATIVE, PassageRole.MINED_NEGATIVE


def synthesize(seed=SEEDS[0], *, personas=None, mined=(), inputs=INPUTS, **engines):
    engine = fake_engine()
    roles = {"writer": engine, "judge": engine} | engines
    return asyncio.run(synthesize_seed(seed, personas or PERSONAS, mined, roles, inputs))


class Writer:
    """An engine that answers each step with what it is told; the judge in these tests is a
    fake engine of its own. A step is told apart by the JSON schema it asks for."""

    tokenizer = ByteTokenizer()
    limits = Limits(32768, 256)

    def __init__(self, query=None, describe=None, text=None):
        good_query = {"domain": "health", "difficulty": "direct", "query": "how do I keep my rota in order"}
        good_passages = {"positive": "one that helps", "hard_negatives": ["one", "two"]}
        self.query = json.dumps(good_query) if query is None else query
        self.describe = json.dumps(good_passages) if describe is None else describe
        self.text = text or "word " * 20
        self.prompts = []

    async def generate(self, prompt, *, max_tokens, schema=None, **sampling):
        self.prompts.append(prompt[0]["content"])
        if schema is None:
            answer = self.text(prompt[0]["content"]) if callable(self.text) else self.text
        else:
            answer = self.query if "query" in schema["properties"] else self.describe
        if isinstance(answer, Exception):
            raise answer
        return Generation(answer, "stop", 10, 0, 5)


# ---- the steps -----------------------------------------------------------------------


def test_a_seed_becomes_a_query_a_kind_and_its_pairs():
    outcome = synthesize(mined=["a mined passage"])
    assert outcome.failures == []
    assert [
        (each.example_id, each.query_kind, each.persona_id, each.passage_role, each.label) for each in outcome.examples
    ] == [
        (f"s1/{kind}/{number}-{role}", kind, persona, role, role is POSITIVE)
        for kind, persona in (("daily", "p1"), ("expert", "p2"))
        for number, role in enumerate([POSITIVE, HARD, HARD, MINED])
    ]
    for example in outcome.examples:
        assert example.seed_id == "s1"
        assert example.difficulty in ("direct", "indirect", "multi_hop")
        assert example.query and example.domain and len(example.domain) <= 40
        assert example.kept == (example.reject_reason is None)
    assert {each.passage for each in outcome.examples if each.passage_role is MINED} == {"a mined passage"}
    assert len({each.query for each in outcome.examples}) == 2


def test_the_same_seed_gives_the_same_examples_whatever_runs_beside_it():
    async def both():
        engine = fake_engine()
        return await asyncio.gather(
            *(synthesize_seed(seed, PERSONAS, (), {"writer": engine, "judge": engine}, INPUTS) for seed in SEEDS)
        )

    first, second = asyncio.run(both())
    assert first == synthesize(SEEDS[0])
    assert second == synthesize(SEEDS[1])
    assert first.examples != second.examples


def test_another_run_seed_writes_other_examples():
    other = synthesize(inputs=replace(INPUTS, seed=8))
    assert [each.query for each in other.examples] != [each.query for each in synthesize().examples]


def test_the_judge_sees_what_was_not_rejected_and_its_chain_is_kept():
    outcome = synthesize(writer=Writer())
    # All three passages of a query are the same text: the second and third need no judge.
    assert [each.reject_reason == "same_passages" for each in outcome.examples] == [False, True, True] * 2
    for example in outcome.examples:
        asked = example.reject_reason != "same_passages"
        assert (example.judge_score is not None) == asked
        assert bool(example.reasoning) == asked


def test_the_prompts_carry_seed_persona_query_and_description():
    writer = Writer()
    synthesize(personas={QueryKind.DAILY: PERSONAS[QueryKind.DAILY]}, writer=writer)
    query, chain, describe, *passages = writer.prompts
    assert "merge sorted lists" in query and "a nurse on night shift" in query and "daily life" in query
    assert "how do I keep my rota in order" in chain
    assert "word word" in describe and '2 "hard_negatives"' in describe
    assert [("one that helps" in text, "one\n" in text) for text in passages[:2]] == [(True, False), (False, True)]
    assert len(passages) == 3


@pytest.mark.parametrize(
    "query",
    [
        "garbage",
        "[1]",
        '{"domain": "x", "difficulty": "direct", "query": " "}',
        '{"domain": "x", "difficulty": "hard", "query": "how do I do that"}',
        '{"difficulty": "direct"}',
        # Half a surrogate pair is JSON, but no file can hold it.
        '{"domain": "\\ud83d", "difficulty": "direct", "query": "how do I do that"}',
    ],
)
def test_a_query_that_cannot_be_read_is_a_row_without_text(query):
    outcome = synthesize(writer=Writer(query=query))
    assert outcome.failures == []
    assert [asdict(each) for each in outcome.examples] == [
        asdict(SynthesisExample(f"s1/{kind}", "s1", persona.persona_id, kind, reject_reason="unparsable"))
        for kind, persona in PERSONAS.items()
    ]
    assert all(each.query is None and each.label is None and not each.kept for each in outcome.examples)


@pytest.mark.parametrize(
    "describe",
    ["garbage", "{}", '{"positive": "", "hard_negatives": ["a", "b"]}', '{"positive": "a", "hard_negatives": ["b"]}'],
)
def test_descriptions_that_cannot_be_read_keep_the_query(describe):
    outcome = synthesize(writer=Writer(describe=describe))
    assert [(each.reject_reason, each.query, each.passage) for each in outcome.examples] == [
        ("unparsable", "how do I keep my rota in order", None)
    ] * 2


def test_a_request_that_could_not_run_is_a_failure_of_its_kind_only():
    def write(prompt):
        return RowError("too long") if "EXPERT" in prompt else "word " * 20

    class TwoQueries(Writer):
        async def generate(self, prompt, *, schema=None, **sampling):
            generation = await super().generate(prompt, schema=schema, **sampling)
            if schema and "query" in schema["properties"] and "ask an expert" in prompt[0]["content"]:
                return replace(generation, text=generation.text.replace("my rota", "EXPERT things"))
            return generation

    outcome = synthesize(writer=TwoQueries(text=write))
    assert {each.query_kind for each in outcome.examples} == {QueryKind.DAILY}
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [("s1/expert", "write", "too long")]


def test_a_pair_that_the_judge_cannot_score_is_told_twice():
    outcome = synthesize(judge=fake_engine(fail_rate=1.0))
    assert {each.reject_reason for each in outcome.examples} == {"judge_failed"}
    assert {each.judge_score for each in outcome.examples} == {None}
    assert {each.unit_id for each in outcome.failures} == {each.example_id for each in outcome.examples}
    assert {each.step for each in outcome.failures} == {"judge"}


def test_a_dead_engine_ends_the_seed():
    with pytest.raises(EngineError):
        synthesize(judge=fake_engine(poison="passage is relevant"))


# ---- filters -------------------------------------------------------------------------

LONG = "twelve words are the least that a passage must have to be kept"


def example(name, query="a query of five words", passage=LONG, role=HARD):
    return SynthesisExample(
        name, "s1", "p1", QueryKind.DAILY, query=query, passage=passage, passage_role=role, label=role is POSITIVE
    )


def reasons(*examples):
    seed = Seed("s1", "A seed's own  query", LONG + " indeed")
    return [each.reject_reason for each in rejected_before_judging(examples, seed)]


def test_what_needs_no_judge():
    assert len(LONG.split()) == 13
    eleven = " ".join(LONG.split()[:11])
    assert reasons(example("ok")) == [None]
    assert reasons(example("a", query="three words only")) == ["length"]
    assert reasons(example("a", query="a  SEED's own query")) == ["copies_seed"]
    assert reasons(example("a", passage=eleven)) == ["length"]
    assert reasons(example("a", passage=None)) == ["length"]
    assert reasons(example("a", passage=LONG.upper() + " indeed")) == ["copies_seed"]
    assert reasons(example("a"), example("b", passage=LONG + " more"), example("c", passage=f" {LONG} ")) == [
        None,
        None,
        "same_passages",
    ]


def test_mined_passages_are_real_whatever_their_length():
    assert reasons(example("a", passage="short", role=MINED)) == [None]
    # But a passage that was written must not be one of them.
    assert reasons(example("a", role=MINED), example("b")) == [None, "same_passages"]


def ruling(agreement, scores):
    """Which are kept, and why not, where ``scores`` are of a positive and its negatives."""
    examples = [example(str(place), role=HARD if place else POSITIVE) for place in range(len(scores))]
    judgments = {
        str(place): Judgment(str(place), score, ScoreStatus.FAILED if score is None else ScoreStatus.DIRECT, "chain")
        for place, score in enumerate(scores)
        if score != "rejected"
    }
    examples = [
        replace(each, reject_reason="length") if score == "rejected" else each
        for each, score in zip(examples, scores, strict=True)
    ]
    result = judged(examples, judgments, agreement)
    assert all(each.kept == (each.reject_reason is None) for each in result)
    return [each.reject_reason or "kept" for each in result]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.1], ["kept", "kept"]),
        ([0.4, 0.6], ["judge_disagrees", "judge_disagrees"]),
        # Exactly one half is no "true".
        ([0.5, 0.5], ["judge_disagrees", "kept"]),
        ([None, 0.1], ["judge_failed", "kept"]),
        (["rejected", 0.1], ["length", "kept"]),
    ],
)
def test_agreement_by_verdict(scores, expected):
    assert ruling("verdict", scores) == expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Both above one half: only the order counts.
        ([0.9, 0.8], ["kept", "kept"]),
        ([0.2, 0.3], ["judge_disagrees", "judge_disagrees"]),
        ([0.5, 0.5], ["judge_disagrees", "judge_disagrees"]),
        ([0.5, 0.4, 0.6], ["kept", "kept", "judge_disagrees"]),
        ([None, 0.1], ["judge_failed", "judge_disagrees"]),
        ([0.9, "rejected"], ["judge_disagrees", "length"]),
        ([0.9, None, 0.1], ["kept", "judge_failed", "kept"]),
    ],
)
def test_agreement_by_ranking(scores, expected):
    assert ruling("ranking", scores) == expected


# ---- training pairs ------------------------------------------------------------------


@pytest.mark.parametrize("label", [True, False])
def test_a_training_pair_ends_in_its_label(label):
    row = asdict(example("a")) | {"reasoning": "It says so.", "label": label}
    pair = training_pair(row)
    assert pair["prompt"] == (
        "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
        f"Query: a query of five words\nPassage: {LONG}\n<think>"
    )
    assert pair["completion"] == f"\nIt says so.\n</think> {'true' if label else 'false'}"


def test_a_pair_without_a_chain_is_the_close_and_the_label():
    assert training_pair(asdict(example("a")))["completion"] == "\n</think> false"


# ---- the job -------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    seeds = [{"id": each.seed_id, "query": each.query, "passage": each.passage} for each in SEEDS]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in seeds))
    return SynthesizeJob(
        run_dir=str(tmp_path / "run"),
        engine=EngineConfig(kind="fake"),
        synthesis=SynthesisConfig(seeds=str(tmp_path / "seeds.jsonl"), judge_tokens=16),
    )


def test_a_persona_is_drawn_for_each_kind_by_the_seed_s_id_alone(config):
    personas = [Persona(str(number), f"persona {number}") for number in range(100)]
    both = list(job._units(config, SEEDS, personas))
    (alone,) = job._units(config, SEEDS[1:], personas)
    assert both[1] == alone
    assert [each["kind"] for each in both[0]["personas"]] == ["daily", "expert"]
    assert both[0]["personas"] != both[1]["personas"]
    other = config.model_copy(update={"seed": 1})
    assert list(job._units(other, SEEDS, personas)) != both


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
    assert job._mined(mining, seeds) == {"s1": [seeds[1].passage], "s2": [seeds[0].passage], "s3": []}
    assert job._mined(config, seeds) == {}


def test_a_dry_run_counts_what_would_be_written(config, tmp_path):
    plan = job.plan(config)
    # Two seeds, two kinds; a positive and a negative a query.
    assert plan["units"].startswith("2 seeds, 4 queries, 8 pairs to judge, ")
    assert "Somebody searched for: merge sorted lists" in plan["first_prompt"]
    assert not (tmp_path / "run").exists()


def test_the_judge_s_chain_is_as_long_as_the_synthesis_section_says(config):
    assert job.judging(config).think_tokens == 16
    direct = config.model_copy(update={"scoring": ScoringConfig(mode="direct")})
    assert job.judging(direct).think_tokens == 0
    own = config.model_copy(update={"scoring": ScoringConfig(mode="budget", max_think_tokens=3)})
    assert job.judging(own).think_tokens == 3


def test_the_hash(config):
    personas = [Persona("1", "a nurse")]

    def hashed(seeds=SEEDS, personas=personas, **changed):
        return job.rows_hash(config.model_copy(update=changed), seeds, personas)

    base = hashed()
    assert hashed(run_dir="/elsewhere", allow_failures=True) == base
    assert hashed(engine=EngineConfig(kind="fake", latency_ms=9)) == base
    assert hashed(synthesis=config.synthesis.model_copy(update={"seeds": "/moved.jsonl"})) == base
    changed = [
        hashed(seeds=SEEDS[:1]),
        hashed(personas=[Persona("1", "a pilot")]),
        hashed(seed=1),
        hashed(synthesis=config.synthesis.model_copy(update={"negatives": 2})),
        hashed(synthesis=config.synthesis.model_copy(update={"agreement": "ranking"})),
        hashed(judge=config.model.model_copy(update={"id": "other/judge"})),
    ]
    assert len({base, *changed}) == 7


def test_what_is_exported(config, tmp_path):
    personas = [Persona("p1", "a nurse"), Persona("p2", "a geologist")]
    storage = Storage(str(tmp_path / "run"))
    units = ((unit, 1) for unit in job._units(config, SEEDS, personas))
    plan = write_plan(storage, units, synthesis_unit_schema(), chunk_cost=10**6)
    task = job.SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
    engine = fake_engine()
    receipt = runner(storage, task, {"writer": engine, "judge": engine}).run(0, alone=False)
    funnel = export(storage, config, summarize([receipt], plan.weight))

    table = storage.read_table("rows/chunk-000000.parquet")
    assert table.schema.names == synthesis_row_schema().names
    found = table.to_pylist()
    kept = [row for row in found if row["kept"]]
    assert (funnel.examples, funnel.kept, funnel.kept_positive) == (
        len(found),
        len(kept),
        sum(row["label"] for row in kept),
    )
    assert funnel.kept + sum(funnel.rejected.values()) == funnel.examples == 8
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
    card = storage.read_text("DATASET.md")
    assert f"{len(kept)} of 8 examples were kept, {funnel.kept_positive} of them relevant, from 2 seeds." in card


def test_nothing_kept_is_still_exported(config, tmp_path):
    storage, _ = planned(tmp_path / "run", [])
    funnel = export(storage, config, summarize([], 0))
    assert (funnel.examples, funnel.kept, funnel.rejected) == (0, 0, {})
    assert storage.read_text("train.jsonl") == ""
    assert json.loads(storage.read_text("alpaca.json")) == []
