"""From a seed and its briefs to examples: what the writer is asked, and what comes of its answers."""

import asyncio
import json
from dataclasses import asdict, replace

import pytest

from helpers.synthesis import (
    BRIEFS,
    DAILY,
    GEOLOGIST,
    HARD,
    INPUTS,
    MINED,
    POSITIVE,
    SEEDS,
    WRITTEN,
    Writer,
    synthesize,
)
from helpers.units import fake_engine
from limrank.config import SynthesisPrompts
from limrank.engines.base import Generation, Limits, meter
from limrank.engines.fake import ByteTokenizer
from limrank.errors import EngineError, RowError
from limrank.records import (
    Difficulty,
    QueryBrief,
    QueryKind,
    Seed,
    SynthesisExample,
)
from limrank.synthesis.synthesizer import contaminated_example, query_id, synthesize_seed


def test_a_seed_becomes_a_query_a_kind_and_its_pairs():
    outcome = synthesize(mined=["a mined passage"])
    assert outcome.failures == []
    assert [
        (each.example_id, each.query_kind, each.persona_id, each.passage_role, each.label) for each in outcome.examples
    ] == [
        (f"s1/{kind}/{persona}/{number}-{role}", kind, persona, role, role is POSITIVE)
        for kind, persona in (("daily", "p1"), ("expert", "p2"))
        for number, role in enumerate([POSITIVE, HARD, HARD, MINED])
    ]
    for example in outcome.examples:
        assert example.seed_id == "s1"
        assert example.difficulty == ("direct" if example.query_kind is QueryKind.DAILY else "multi_hop")
        assert example.query and example.domain and len(example.domain) <= 40
        assert example.kept == (example.reject_reason is None)
    assert {each.passage for each in outcome.examples if each.passage_role is MINED} == {"a mined passage"}
    assert len({each.query for each in outcome.examples}) == 2


def test_the_same_seed_gives_the_same_examples_whatever_else_runs():
    async def both():
        engine = fake_engine()
        return await asyncio.gather(
            *(synthesize_seed(seed, BRIEFS, (), {"writer": engine, "judge": engine}, INPUTS) for seed in SEEDS)
        )

    first, second = asyncio.run(both())
    assert first == synthesize(SEEDS[0])
    assert second == synthesize(SEEDS[1])
    assert first.examples != second.examples


def test_another_run_seed_writes_other_examples():
    other = synthesize(inputs=replace(INPUTS, seed=8))
    assert [each.query for each in other.examples] != [each.query for each in synthesize().examples]


def test_the_prompts_carry_seed_persona_query_and_description():
    writer = Writer()
    synthesize(briefs=[DAILY], writer=writer)
    query, chain, describe, *passages = writer.prompts
    assert "merge sorted lists" in query and "a nurse on night shift" in query and "daily life" in query
    assert "how do I keep my rota in order" in chain
    assert WRITTEN in describe and '2 "hard_negatives"' in describe
    assert [("one that helps" in text, "one\n" in text) for text in passages[:2]] == [(True, False), (False, True)]
    assert len(passages) == 3


def test_a_brief_says_what_the_query_is_to_be():
    writer = Writer()
    brief = QueryBrief(QueryKind.EXPERT, GEOLOGIST, Difficulty.INDIRECT, domain="mining law")
    outcome = synthesize(briefs=[brief], writer=writer)
    assert "Its field is mining law." in writer.prompts[0] and '"domain"' not in writer.prompts[0]
    assert "would not say outright" in writer.prompts[0] and '"instruction"' not in writer.prompts[0]
    assert "narrow" not in "".join(writer.prompts)
    assert {(each.domain, each.difficulty, each.instruction) for each in outcome.examples} == {
        ("mining law", "indirect", None)
    }


@pytest.mark.parametrize("instructed", [False, True])
def test_without_chains_the_writer_does_not_reason_before_the_passages(instructed):
    """The paper's ablation: neither asked nor paid for."""
    rule = "Only rules that were made after 1990 count"
    query = {"query": "how do I keep my rota in order", "domain": "work", "instruction": rule}
    writer = Writer(query=json.dumps(query))
    unreasoned = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"chains": False}))
    outcome = synthesize(briefs=[replace(DAILY, instructed=instructed)], writer=writer, inputs=unreasoned)
    assert outcome.failures == [] and len(outcome.examples) == 3
    _, describe, *passages = writer.prompts
    assert len(passages) == 3 and not any("Think step by step" in prompt for prompt in writer.prompts)
    assert describe.startswith("A person asks: how do I keep my rota in order\n") and "otes" not in describe
    assert '2 "hard_negatives"' in describe and (f"narrowed: {rule}" in describe) == instructed
    # The judge's chain is another one, and stays.
    assert any(each.reasoning for each in outcome.examples)


def test_an_instruction_goes_through_all_steps_and_to_the_judge():
    asked = []

    class Judge:
        tokenizer, limits = ByteTokenizer(), Limits(32768, 256)

        async def generate(self, prompt, **options):
            asked.append(self.tokenizer.decode(prompt))
            return Generation("It says so.", "stop", 10, 0, 5)

        async def label_logprobs(self, prompt, labels):
            return dict.fromkeys(labels, -1.0)

    rule = "Only rules that were made after 1990 count"
    query = {"query": "how do I keep my rota in order", "domain": "work", "instruction": rule}
    writer = Writer(query=json.dumps(query))
    outcome = synthesize(briefs=[replace(DAILY, instructed=True)], writer=writer, judge=Judge())
    query, chain, describe, *passages = writer.prompts
    assert '"instruction" is one sentence' in query
    assert f"narrowed: {rule}" in chain and f"narrowed: {rule}" in describe
    assert "violates the narrower condition" in describe
    assert not any(rule in passage for passage in passages)
    assert f"Query: how do I keep my rota in order {rule}\n" in asked[0]
    assert {each.instruction for each in outcome.examples} == {rule}


def test_an_instruction_that_was_asked_for_and_is_missing_is_unparsable():
    outcome = synthesize(briefs=[replace(DAILY, instructed=True)], writer=Writer())
    assert [each.reject_reason for each in outcome.examples] == ["unparsable"]


def test_prompts_of_a_person_s_own(tmp_path):
    for step in ("query", "chain"):
        (tmp_path / f"{step}.txt").write_text(f"My own {step} prompt")
    own = SynthesisPrompts(query=str(tmp_path / "query.txt"), chain=str(tmp_path / "chain.txt"))
    writer = Writer()
    synthesize(
        briefs=[DAILY],
        writer=writer,
        inputs=replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"prompts": own})),
    )
    assert writer.prompts[:2] == ["My own query prompt", "My own chain prompt"]
    assert writer.prompts[2].startswith("A person asks: how do I keep")


def test_without_constrained_decoding_no_schema_is_asked_for():
    class Free(Writer):
        async def generate(self, prompt, *, schema=None, **options):
            assert schema is None
            return await super().generate(prompt, **options)

    loose = INPUTS.synthesis.model_copy(update={"constrained": False})
    outcome = synthesize(writer=Free(), inputs=replace(INPUTS, synthesis=loose))
    assert {each.reject_reason for each in outcome.examples} == {"unparsable"}


def test_tokens_are_counted_by_step():
    async def metered():
        engine = fake_engine()
        with meter() as usage:
            await synthesize_seed(SEEDS[0], [DAILY], (), {"writer": engine, "judge": engine}, INPUTS)
        return usage

    usage = asyncio.run(metered())
    assert set(usage.steps) == {"query", "chain", "describe", "passage", "judge"}
    assert sum(step.requests for step in usage.steps.values()) == usage.requests
    assert sum(step.generated for step in usage.steps.values()) == usage.generated > 0
    assert usage.steps["passage"].requests == 3


@pytest.mark.parametrize(
    "query",
    [
        "garbage",
        "[1]",
        '{"domain": "x", "difficulty": "direct", "query": " "}',
        '{"difficulty": "direct"}',
        '{"domain": "x", "query": ["how do I do that", "and this"]}',
        '{"domain": " ", "query": "how do I do that"}',
        '{"query": "how do I do that"}',
        # Half a surrogate pair is JSON, but no file can hold it.
        '{"domain": "\\ud83d", "difficulty": "direct", "query": "how do I do that"}',
    ],
)
def test_a_query_that_cannot_be_read_is_a_row_without_text(query):
    outcome = synthesize(writer=Writer(query=query))
    assert outcome.failures == []
    assert [asdict(each) for each in outcome.examples] == [
        asdict(
            SynthesisExample(
                f"s1/{brief.kind}/{brief.persona.persona_id}",
                "s1",
                brief.persona.persona_id,
                brief.kind,
                difficulty=brief.difficulty,
                reject_reason="unparsable",
            )
        )
        for brief in BRIEFS
    ]
    assert all(each.query is None and each.label is None and not each.kept for each in outcome.examples)


@pytest.mark.parametrize(
    "describe",
    [
        "garbage",
        "{}",
        '{"positive": "", "hard_negatives": ["a", "b"]}',
        '{"positive": "a", "hard_negatives": ["b"]}',
        '{"positive": {"title": "a"}, "hard_negatives": ["a", "b"]}',
        '{"positive": "a", "hard_negatives": ["b", null]}',
    ],
)
def test_descriptions_that_cannot_be_read_keep_the_query(describe):
    outcome = synthesize(writer=Writer(describe=describe))
    assert [(each.reject_reason, each.query, each.passage) for each in outcome.examples] == [
        ("unparsable", "how do I keep my rota in order", None)
    ] * 2


def test_a_request_that_could_not_run_is_a_failure_of_its_kind_only():
    def write(prompt):
        return RowError("too long") if "EXPERT" in prompt else WRITTEN

    class TwoQueries(Writer):
        async def generate(self, prompt, *, schema=None, **sampling):
            generation = await super().generate(prompt, schema=schema, **sampling)
            if schema and "query" in schema["properties"] and "ask an expert" in prompt[0]["content"]:
                return replace(generation, text=generation.text.replace("my rota", "EXPERT things"))
            return generation

    outcome = synthesize(writer=TwoQueries(text=write))
    assert {each.query_kind for each in outcome.examples} == {QueryKind.DAILY}
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [
        ("s1/expert/p2", "write", "too long")
    ]


def test_a_writer_s_thought_is_no_part_of_what_it_writes():
    query = "<think>\nA nurse would ask {this}.\n</think>\n" + Writer().query
    outcome = synthesize(briefs=[DAILY], writer=Writer(query=query, text=f"<think>\nHm.\n</think>\n\n{WRITTEN}"))
    assert outcome.examples[0].query == "how do I keep my rota in order"
    assert outcome.examples[0].passage == WRITTEN
    outcome = synthesize(briefs=[DAILY], writer=Writer(text="<think>\nSo much to say about rotas that it never ends"))
    assert {each.reject_reason for each in outcome.examples} == {"length"}


def test_a_crashed_engine_ends_the_seed():
    with pytest.raises(EngineError):
        synthesize(judge=fake_engine(poison="passage is relevant"))


def test_no_two_queries_have_one_name():
    assert query_id("s1", "daily", "p1") == "s1/daily/p1"
    assert query_id("a", "daily", "b/expert/c") != query_id("a/daily/b", "expert", "c")
    assert query_id("a%2Fb", "daily", "p") != query_id("a/b", "daily", "p")
    names = [contaminated_example(Seed(an_id, "q", "p"), "").example_id for an_id in ("a/daily/p", "a")]
    assert names == ["a%2Fdaily%2Fp", "a"]
