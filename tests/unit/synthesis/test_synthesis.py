import asyncio
import hashlib
import json
import math
import re
from dataclasses import asdict, replace

import pyarrow as pa
import pytest

from helpers.beir import write_beir
from helpers.rundirs import rows
from helpers.units import fake_engine, planned, runner, write_embedder
from limrank.batch.plan import write_plan
from limrank.batch.receipts import summarize
from limrank.config import EngineConfig, FaultConfig, ScoringConfig, SynthesisConfig, SynthesisPrompts, SynthesizeJob
from limrank.engines.base import Generation, Limits, RequestLimiter, meter
from limrank.engines.fake import ByteTokenizer
from limrank.errors import EngineError, RowError, UserError
from limrank.progress import open_progress
from limrank.records import (
    Difficulty,
    PassageRole,
    Persona,
    QueryBrief,
    QueryKind,
    Seed,
    SynthesisExample,
    synthesis_row_schema,
    synthesis_unit_schema,
)
from limrank.storage import Storage
from limrank.synthesis import card, job
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.export import export, training_pair
from limrank.synthesis.filters import Verdict, chains_checked, judged, query_fault, rejected_before_judging
from limrank.synthesis.plan import (
    Inputs,
    most_generated,
    read_brief,
    read_inputs,
    synthesis_inputs,
    too_few_mined,
    units,
    unwritten,
)
from limrank.synthesis.pool import dedupe_and_select
from limrank.synthesis.preview import Traced
from limrank.synthesis.prompting import WrittenQuery, check_prompts, describe_prompt, with_prompt_texts
from limrank.synthesis.select import surprise
from limrank.synthesis.stats import tally
from limrank.synthesis.synthesizer import SynthesisInputs, contaminated_example, query_id, synthesize_seed

SEEDS = [
    Seed("s1", "merge sorted lists", "heapq.merge merges several sorted inputs into one sorted stream"),
    Seed("s2", "count words", "collections.Counter counts hashable objects"),
]
NURSE, GEOLOGIST = Persona("p1", "a nurse on night shift"), Persona("p2", "a geologist")
DAILY = QueryBrief(QueryKind.DAILY, NURSE, Difficulty.DIRECT)
EXPERT = QueryBrief(QueryKind.EXPERT, GEOLOGIST, Difficulty.MULTI_HOP)
BRIEFS = (DAILY, EXPERT)
INPUTS = SynthesisInputs(SynthesisConfig(negatives=2), ScoringConfig(mode="budget", max_think_tokens=16), seed=7)
WRITTEN = "Whoever plans a month of shifts begins with the nights, then fills the days that are left."
POSITIVE, HARD, MINED = PassageRole.POSITIVE, PassageRole.HARD_NEGATIVE, PassageRole.MINED_NEGATIVE


def synthesize(seed=SEEDS[0], *, briefs=BRIEFS, mined=(), inputs=INPUTS, **engines):
    engine = fake_engine()
    roles = {"writer": engine, "judge": engine} | engines
    return asyncio.run(synthesize_seed(seed, briefs, mined, roles, inputs))


class Writer:
    """An engine that answers each step with what it is told; the judge in these tests is a
    fake engine of its own. A step is told apart by the JSON schema it asks for."""

    tokenizer = ByteTokenizer()
    limits = Limits(32768, 256)

    def __init__(self, query=None, describe=None, text=None):
        self.limiter = RequestLimiter(256)
        good_query = {"domain": "health", "query": "how do I keep my rota in order"}
        good_passages = {"positive": "one that helps", "hard_negatives": ["one", "two"]}
        self.query = json.dumps(good_query) if query is None else query
        self.describe = json.dumps(good_passages) if describe is None else describe
        self.text = text or WRITTEN
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


def test_the_same_seed_gives_the_same_examples_whatever_runs_beside_it():
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


def test_a_person_s_own_description_prompt_does_without_chains():
    own = "{{ query }}:{% if chain %} from {{ chain }}{% endif %} {{ negatives }} of them"
    settings = SynthesisConfig(chains=False, prompts=SynthesisPrompts(describe=own))
    check_prompts(settings)
    asked = describe_prompt(WrittenQuery("a query", "a field"), None, with_prompt_texts(settings))
    assert asked == "a query: 1 of them"
    # One that nobody is asked with needs no place.
    check_prompts(SynthesisConfig(chains=False, prompts=SynthesisPrompts(chain="{{ nothing }}")))
    with pytest.raises(UserError):
        check_prompts(SynthesisConfig(prompts=SynthesisPrompts(chain="{{ nothing }}")))


def test_what_is_not_asked_is_not_planned_for(config):
    unreasoned = config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"chains": False})})
    longest = config.synthesis.chain_tokens
    assert most_generated(config, DAILY) - most_generated(unreasoned, DAILY) == longest
    given = Inputs(SEEDS, [NURSE], 2)
    for long, short in zip(units(config, given), units(unreasoned, given), strict=True):
        assert long["cost"] - short["cost"] == 2 * (4 * longest + 250)  # of two queries
    assert job.rows_hash(config, given) != job.rows_hash(unreasoned, given)
    assert "chains" not in config.synthesis.hashed(set())


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


def test_a_chain_before_label_tokens_does_not_say_its_verdict_too():
    """The verdict follows it in training: "</think> true"."""
    chains = iter(["It says where to begin. So the answer is: true", "**Final Answer**\n\\boxed{true}"])

    class Judge:
        tokenizer, limits = ByteTokenizer(), Limits(32768, 256)

        async def generate(self, prompt, **options):
            return Generation(next(chains), "stop", 10, 0, 5)

        async def label_logprobs(self, prompt, labels):
            return {" true": -0.1, " false": -3.0}

    alone = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"negatives": 0}))
    writer = Writer(describe='{"positive": "one that helps", "hard_negatives": []}')
    message = [
        (example.reasoning, example.kept, example.reject_reason)
        for _ in range(2)
        for example in synthesize(briefs=[DAILY], writer=writer, judge=Judge(), inputs=alone).examples
    ]
    assert message == [("It says where to begin.", True, None), ("", False, "bad_chain")]


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


class Reranker:
    """Says how relevant a passage is by the mark in it: ``<3>`` is 3 in log-odds; one
    without a mark cannot be scored."""

    tokenizer = ByteTokenizer()
    limits = Limits(32768, 256)

    async def label_logprobs(self, prompt, labels):
        mark = re.search(r"<(-?\d)>", self.tokenizer.decode(prompt))
        if mark is None:
            raise RowError("no mark")
        return dict(zip(labels, (float(mark[1]), 0.0), strict=True))


NEIGHBOURS = ["one <-2>", "two <3>", "three <1>", "four <3>"]


def test_a_reranker_picks_what_misleads_it_most():
    settings = INPUTS.synthesis.model_copy(update={"mined_negatives": 3})
    outcome = synthesize(
        mined=NEIGHBOURS,
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=settings),
        writer=Writer(text="up <2> " * 9),
    )
    mined = [each for each in outcome.examples if each.passage_role is MINED]
    assert [each.passage for each in mined] == ["two <3>", "four <3>", "three <1>"] * 2
    assert all(each.judge_score is not None and not each.label for each in mined)


def test_a_reranker_says_how_hard_the_kept_examples_are():
    loose = INPUTS.synthesis.model_copy(update={"agreement": "ranking", "mined_negatives": 4})
    outcome = synthesize(
        mined=NEIGHBOURS,
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=loose),
        writer=Writer(text=lambda prompt: f"{WRITTEN} {hashlib.sha256(prompt.encode()).digest().hex(' ')} <2>"),
    )
    kept = [each for each in outcome.examples if each.kept]
    assert kept and len(kept) < len(outcome.examples)
    for each in outcome.examples:
        mark = re.search(r"<(-?\d)>", each.passage)
        assert each.base_score == (pytest.approx(1 / (1 + math.exp(-int(mark[1])))) if each.kept else None)
    # Sure and right is easy; sure and wrong is hard.
    assert surprise(asdict(replace(kept[0], label=True, base_score=0.9))) == pytest.approx(0.1)
    assert surprise(asdict(replace(kept[0], label=False, base_score=0.9, judge_score=0.0))) == pytest.approx(0.9)


def test_what_the_reranker_cannot_score_is_not_mined_and_told():
    settings = INPUTS.synthesis.model_copy(update={"mined_negatives": 2})
    outcome = synthesize(
        mined=["one", "two <1>", "three"],
        briefs=[DAILY],
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=settings),
        writer=Writer(text="up <2> " * 9),
    )
    assert [each.passage for each in outcome.examples if each.passage_role is MINED] == ["two <1>"]
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [
        ("s1/daily/p1", "mine", "no mark")
    ] * 2


def test_without_constrained_decoding_no_schema_is_asked_for():
    class Free(Writer):
        async def generate(self, prompt, *, schema=None, **options):
            assert schema is None
            return await super().generate(prompt, **options)

    loose = INPUTS.synthesis.model_copy(update={"constrained": False})
    outcome = synthesize(writer=Free(), inputs=replace(INPUTS, synthesis=loose))
    assert {each.reject_reason for each in outcome.examples} == {"unparsable"}


def test_tokens_are_told_by_step():
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


def test_a_pair_that_the_judge_cannot_score_is_told_twice():
    outcome = synthesize(judge=fake_engine(fail_rate=1.0))
    assert {each.reject_reason for each in outcome.examples} == {"judge_failed"}
    assert {each.judge_score for each in outcome.examples} == {None}
    assert {each.unit_id for each in outcome.failures} == {each.example_id for each in outcome.examples}
    assert {each.step for each in outcome.failures} == {"judge"}


def test_a_judge_is_read_by_what_it_writes_where_there_are_no_label_tokens():
    """As the paper's is: a chat model that gives its chain apart, and no probabilities."""
    passages = {
        "one that helps": "Whoever plans a month of shifts begins with the nights, then fills the days that are left.",
        "one": "The union's handbook tells since when nurses have had a right to eleven hours between two shifts.",
        "two": "Paper charts on the wall were replaced by spreadsheets in most wards during the last decade.",
    }
    answers = {
        "one that helps": ("true", "It tells where to begin."),
        "one": ("maybe", None),
        "two": ("It is much too short.\n\nFALSE", None),
    }

    class Judge(Writer):
        async def generate(self, prompt, *, max_tokens, **sampling):
            (message,) = prompt
            self.prompts.append(message["content"])
            assert sampling == {} and max_tokens == 32
            (asked,) = (name for name, text in passages.items() if f"Passage: {text}\n" in message["content"])
            text, reasoning = answers[asked]
            return Generation(text, "stop", 10, 0, 5, reasoning)

    def passage(prompt):
        described = re.search(r"The passage: (.*)", prompt)
        return passages[described[1]] if described else "A thought."

    inputs = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"judge_by": "answer"}))
    judge = Judge()
    outcome = synthesize(briefs=[DAILY], writer=Writer(text=passage), judge=judge, inputs=inputs)
    assert outcome.failures == [] and len(judge.prompts) == 3
    assert all(
        "Query: how do I keep my rota in order\n" in prompt and "<think>" not in prompt for prompt in judge.prompts
    )
    message = [(each.reject_reason, each.verdict, each.judge_score, each.reasoning) for each in outcome.examples]
    assert message == [
        (None, True, None, "It tells where to begin."),
        ("unparsable", None, None, "maybe"),
        (None, False, None, "It is much too short."),
    ]


def test_by_ranking_nobody_is_asked_about_what_has_nothing_to_be_compared_with():
    asked = []

    class Judge(Writer):
        async def label_logprobs(self, prompt, labels):
            asked.append(prompt)
            return dict.fromkeys(labels, math.log(0.5))

    # All passages are one text: only the positive is left.
    settings = INPUTS.synthesis.model_copy(update={"agreement": "ranking"})
    inputs = replace(INPUTS, synthesis=settings, judging=INPUTS.judging.model_copy(update={"mode": "direct"}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Judge(), inputs=inputs)
    assert [each.reject_reason for each in outcome.examples] == ["unpaired", "same_passages", "same_passages"]
    # And here the positive is gone, and two negatives are left.
    outcome = synthesize(
        briefs=[DAILY], writer=Writer(text="Too short."), judge=Judge(), mined=("a text", "another"), inputs=inputs
    )
    assert [each.reject_reason for each in outcome.examples] == ["length"] * 3 + ["unpaired"] * 2
    assert asked == []


def test_a_judge_s_answer_that_could_not_be_had_is_told_twice():
    class Judge(Writer):
        async def generate(self, prompt, *, max_tokens, **sampling):
            raise RowError("refused")

    inputs = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"judge_by": "answer", "negatives": 0}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Judge(), inputs=inputs)
    assert [(each.reject_reason, each.verdict) for each in outcome.examples] == [("judge_failed", None)]
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [
        ("s1/daily/p1/0-positive", "judge", "refused")
    ]


def test_a_writer_s_thought_is_no_part_of_what_it_writes():
    query = "<think>\nA nurse would ask {this}.\n</think>\n" + Writer().query
    outcome = synthesize(briefs=[DAILY], writer=Writer(query=query, text=f"<think>\nHm.\n</think>\n\n{WRITTEN}"))
    assert outcome.examples[0].query == "how do I keep my rota in order"
    assert outcome.examples[0].passage == WRITTEN
    outcome = synthesize(briefs=[DAILY], writer=Writer(text="<think>\nSo much to say about rotas that it never ends"))
    assert {each.reject_reason for each in outcome.examples} == {"length"}


def test_a_dead_engine_ends_the_seed():
    with pytest.raises(EngineError):
        synthesize(judge=fake_engine(poison="passage is relevant"))


# ---- filters -------------------------------------------------------------------------

LONG = "twelve words are the least that a text must have to be kept"


def example(name, query="a query of five words", passage=LONG, role=HARD):
    return SynthesisExample(
        name, "s1", "p1", QueryKind.DAILY, query=query, passage=passage, passage_role=role, label=role is POSITIVE
    )


SEED = Seed(
    "s1",
    "A seed's own  query",
    "What answers the seed is told here in one sentence of many words, so that some of them may be copied.",
)
ASKING = "Forest ranger who surveys bark beetles along the same transects every May"
TOLD = "Write one query.{% if a %} {{ persona }} who helps would say outright what is asked.{% endif %} A passage that helps would say outright what is asked."
RELEVANCE = "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'."
FRENCH = "Le texte ne dit rien de ce que demande l'infirmière, qui travaille la nuit et cherche un bon horaire."
GERMAN = "Wer nachts im Krankenhaus arbeitet und morgens die Kinder zur Schule bringt, der braucht einen guten Plan."


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("how do I keep my rota in order", None),
        ("three words only", "length"),
        ("query of a seed that I own", None),
        ("a  SEED's own query!", "copies_seed"),
        ("a seed's very own query", "copies_seed"),
        ("the answer is that nights come first, or is it?", "leaks"),
        ("is it what answers the seed is told here in one?", "leaks"),
        ("is it what answers the seed, told here in one?", None),
        ("what is said in the passage that tells how to keep a rota", "leaks"),
        ("how is the passage of blood through a language model of the heart shown", None),
        ("would they say outright what is asked, or tell how?", None),
        ("what do I do when I do " + "what I do when I do " * 3, "repetitive"),
        ("forest ranger who surveys bark beetles", "copies_prompt"),
        ("A ranger who surveys bark beetles along the same transects every May", "copies_prompt"),
        ("I am a forest ranger who surveys bark beetles: how do I tell them from others", None),
        ("would somebody who helps would say outright what is asked?", "copies_prompt"),
        (GERMAN, "language"),
        ("夜勤の看護師はどうやって", None),
    ],
)
def test_queries_that_need_no_passages(query, fault):
    assert query_fault(query, None, SEED, TOLD, ASKING) == fault


@pytest.mark.parametrize(
    ("query", "copied"),
    [
        ("what is the capital of australia please", True),
        ("what is the capital city of australia", True),
        ("What is the capital of Australia? What is the capital of Australia?", True),
        ("can you tell me what is the capital of australia", True),
        ("the capital of australia", True),
        ("what is the capital gains tax that I owe on a flat in australia", False),
        ("why did they not make sydney or melbourne the capital of australia", False),
    ],
)
def test_a_query_is_the_seed_s_though_a_word_differs_or_few_stand_around_it(query, copied):
    seed = replace(SEED, query="what is the capital of australia")
    assert query_fault(query, None, seed, TOLD, ASKING) == ("copies_seed" if copied else None)


def test_a_topic_of_few_words_may_stand_in_a_new_query():
    seed = replace(SEED, query="rotator cuff symptoms")
    asked = "could a night of rotator cuff symptoms be due to how I lift patients"
    assert query_fault(asked, None, seed, TOLD, ASKING) is None
    assert query_fault("what are rotator cuff symptoms", None, seed, TOLD, ASKING) == "copies_seed"


@pytest.mark.parametrize(
    ("passage", "fault"),
    [
        ("Canberra is the nation's seat", "leaks"),  # all of it
        ("The answer: Canberra", None),  # three words are no sign
    ],
)
def test_a_short_passage_is_given_away_by_all_of_its_words(passage, fault):
    query = f"I was told this, {passage}, but who of my class will believe it?"
    assert query_fault(query, None, replace(SEED, passage=passage), TOLD, ASKING) == fault


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("only what a hospital published counts", None),
        ("only passages that a hospital published", None),  # it may speak of what is to be found
        ("recent ones only", "length"),
        ("Say how do I keep my rota in order.", "copies_query"),
        ("my rota in order", "copies_query"),
        ("one that says what answers the seed is told here in one", "leaks"),
        ("a passage that helps would say outright what is asked", "copies_prompt"),
        (GERMAN, "language"),
    ],
)
def test_instructions_that_narrow_nothing(instruction, fault):
    assert query_fault("how do I keep my rota in order", instruction, SEED, TOLD, ASKING) == fault


def test_passages_that_need_no_judge():
    def reasons(*examples):
        return [each.reject_reason for each in rejected_before_judging(examples, SEED, TOLD)]

    assert len(LONG.split()) == 13
    assert reasons(example("a")) == [None]
    assert reasons(example("a", passage=" ".join(LONG.split()[:11]))) == ["length"]
    assert reasons(example("a", passage=None)) == ["length"]
    assert reasons(example("a", passage=SEED.passage.upper())) == ["copies_seed"]
    assert reasons(example("a", passage=f"{LONG}: A query, of five words.")) == ["leaks"]
    assert reasons(example("a", passage=f"This passage is relevant. {LONG}")) == ["leaks"]
    assert reasons(example("a", passage=GERMAN)) == ["language"]
    assert reasons(example("a", passage="it was said at 14:51:18 " + "14:51:18 " * 9)) == ["repetitive"]
    assert reasons(example("a", passage=f"{LONG}. Who helps would say outright what is asked.")) == ["copies_prompt"]
    copied = "As was said, what answers the seed is told here in one sentence of many words, which is short."
    assert reasons(example("a", passage=copied)) == ["copies_seed"]
    other = "nothing in this text is like the first but for its length which is as great"
    assert reasons(example("a"), example("b", passage=other), example("c", passage=f"{LONG} more")) == [
        None,
        None,
        "same_passages",
    ]


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        # 19 words, one of them a number that differs.
        ("The lighthouse was built in 1874 by masons from the village and burned oil until it was electrified.", True),
        # A sentence more.
        (
            "The lighthouse was built in 1847 by masons from the village and burned oil until it was electrified. "
            "Today its keeper's house is a hostel for people who walk along the whole coast in summer.",
            True,
        ),
        ("The lighthouse in the village is open to walkers, who climb it until the light is lit at seven.", False),
    ],
)
def test_passages_that_are_nearly_one(other, fault):
    first = "The lighthouse was built in 1847 by masons from the village and burned oil until it was electrified."
    pair = [example("a", passage=first, role=POSITIVE), example("b", passage=other)]
    reasons = [each.reject_reason for each in rejected_before_judging(pair, SEED, TOLD)]
    assert reasons == [None, "same_passages" if fault else None]
    seed = replace(SEED, passage=first)
    assert rejected_before_judging(pair[1:], seed, TOLD)[0].reject_reason == ("copies_seed" if fault else None)


def test_a_positive_that_repeats_much_of_its_query_needs_no_reasoning():
    query = "I have to plan a month of shifts for nine nurses: where do I begin"
    passage = "Whoever has to plan a month of shifts for nine nurses should begin with the nights."
    pair = [example("a", query, passage, POSITIVE), example("b", query, passage.replace("nights", "days"), HARD)]
    assert [rejected_before_judging([each], SEED, TOLD)[0].reject_reason for each in pair] == ["leaks", None]


def test_mined_passages_are_real_whatever_their_length():
    def reasons(*examples):
        return [each.reject_reason for each in rejected_before_judging(examples, SEED, TOLD)]

    assert reasons(example("a", passage="short", role=MINED)) == [None]
    # But a passage that was written must not be one of them, wherever it stands.
    assert reasons(example("a", role=MINED), example("b")) == [None, "same_passages"]
    assert reasons(example("b"), example("a", role=MINED)) == ["same_passages", None]


def verdict(score):
    """By a p(true); of a judge that could not be asked (None), that wrote true or false and
    no probability, or that wrote neither ("?")."""
    if score is None:
        return Verdict(None, failed=True)
    if isinstance(score, float):
        return Verdict(score > 0.5, score, "chain")
    return Verdict(None if score == "?" else score, reasoning="chain")


@pytest.mark.parametrize(
    ("chain", "fault"),
    [
        ("It tells where to begin, as was asked.", None),
        (None, "bad_chain"),
        (" \n", "bad_chain"),
        ("It is relevant.", "bad_chain"),
        ("The answer is: True\n\nSo the final verdict is true", "bad_chain"),
        ("The answer is true. " * 4, "bad_chain"),
        (GERMAN, "bad_chain"),
    ],
)
def test_chains_that_nothing_can_be_learned_from(chain, fault):
    (checked,) = chains_checked([replace(example("a"), reasoning=chain, kept=True)], SEED, RELEVANCE)
    assert (checked.kept, checked.reject_reason) == (fault is None, fault)
    # The judge's ruling is told first.
    rejected = replace(example("a"), reasoning=chain, reject_reason="judge_disagrees")
    assert chains_checked([rejected], SEED, RELEVANCE) == [rejected]


def test_a_chain_may_be_in_the_language_of_the_seed_or_of_the_judge_s_prompt():
    seed = Seed("s1", "Wie plane ich meine Nächte", GERMAN)
    english = "The passage says what a nurse needs who works at night, and that is what was asked."
    kept = replace(example("a"), kept=True)
    for chain, fault in ((english, None), (GERMAN, None), (FRENCH, "bad_chain")):
        (checked,) = chains_checked([replace(kept, reasoning=chain)], seed, RELEVANCE)
        assert checked.reject_reason == fault


@pytest.mark.parametrize(("mode", "reason"), [("direct", None), ("budget", "bad_chain")])
def test_a_chain_is_looked_at_where_one_is_asked_for(mode, reason):
    class Silent(Writer):
        """Writes nothing, and answers true."""

        async def generate(self, prompt, *, max_tokens, **sampling):
            return Generation("", "stop", 10, 0, 0)

        async def label_logprobs(self, prompt, labels):
            return dict(zip(labels, (math.log(0.9), math.log(0.1)), strict=True))

    settings = INPUTS.synthesis.model_copy(update={"negatives": 0})
    inputs = replace(INPUTS, synthesis=settings, judging=INPUTS.judging.model_copy(update={"mode": mode}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Silent(), inputs=inputs)
    assert [each.reject_reason for each in outcome.examples] == [reason]


def test_a_pair_that_the_judge_did_not_see_all_of_is_not_kept():
    pair = [example("a", role=POSITIVE), example("b")]
    verdicts = {"a": Verdict(True, 0.9, "chain", truncated=True), "b": Verdict(False, 0.1, "chain")}
    for agreement, other in (("verdict", None), ("ranking", "unpaired")):
        result = judged(pair, verdicts, SynthesisConfig(agreement=agreement))
        assert [each.reject_reason for each in result] == ["length", other]
        assert result[0].judge_score == 0.9


@pytest.mark.parametrize(("context", "cut"), [(300, False), (230, True)])
def test_a_judge_with_too_little_context_keeps_nothing(context, cut):
    settings = INPUTS.synthesis.model_copy(update={"negatives": 0})
    inputs = replace(INPUTS, synthesis=settings, judging=ScoringConfig(mode="direct"))
    (judged_one,) = synthesize(
        briefs=[DAILY], writer=Writer(), judge=fake_engine(context=context), inputs=inputs
    ).examples
    assert judged_one.judge_score is not None
    assert (judged_one.reject_reason == "length") == cut


def ruling(agreement, scores):
    """Which are kept, and why not, where ``scores`` are of a positive and its negatives."""
    examples = [example(str(place), role=HARD if place else POSITIVE) for place in range(len(scores))]
    verdicts = {str(place): verdict(score) for place, score in enumerate(scores) if score != "rejected"}
    examples = [
        replace(each, reject_reason="length") if score == "rejected" else each
        for each, score in zip(examples, scores, strict=True)
    ]
    result = judged(examples, verdicts, SynthesisConfig(agreement=agreement))
    assert all(each.kept == (each.reject_reason is None) for each in result)
    return [each.reject_reason or "kept" for each in result]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.1], ["kept", "kept"]),
        ([0.3, 0.7], ["judge_disagrees", "judge_disagrees"]),
        ([0.41, 0.59], ["judge_unsure", "judge_unsure"]),
        ([None, 0.1], ["judge_failed", "kept"]),
        (["rejected", 0.1], ["length", "kept"]),
        ([True, False], ["kept", "kept"]),
        ([False, True], ["judge_disagrees", "judge_disagrees"]),
        (["?", False], ["unparsable", "kept"]),
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
        # With nothing left to be compared with the judge says nothing.
        ([None, 0.1], ["judge_failed", "unpaired"]),
        ([0.9, "rejected"], ["unpaired", "length"]),
        (["?", 0.1, 0.2], ["unparsable", "unpaired", "unpaired"]),
        ([0.9, None, 0.1], ["kept", "judge_failed", "kept"]),
    ],
)
def test_agreement_by_ranking(scores, expected):
    assert ruling("ranking", scores) == expected


# ---- training pairs ------------------------------------------------------------------


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


# ---- the job -------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    seeds = [{"id": each.seed_id, "query": each.query, "passage": each.passage} for each in SEEDS]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in seeds))
    return SynthesizeJob(
        run_dir=str(tmp_path / "run"),
        engine=EngineConfig(kind="fake"),
        synthesis=SynthesisConfig(seeds=str(tmp_path / "seeds.jsonl"), judge_tokens=16, license="CC0"),
    )


def test_the_same_recipe_plans_the_same_queries(config):
    personas = [Persona(str(number), f"persona {number}") for number in range(100)]
    both = list(units(config, Inputs(SEEDS, personas, 4)))
    assert both == list(units(config, Inputs(SEEDS, personas, 4)))
    assert [each["kind"] for each in both[0]["briefs"]] == ["daily", "expert"]
    assert len({each["persona_id"] for each in both[0]["briefs"]}) == 1
    assert list(units(config.model_copy(update={"seed": 1}), Inputs(SEEDS, personas, 4))) != both


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
    """A run directory that an earlier limrank made goes on."""
    assert "oversample" not in SynthesisConfig().hashed(set()) and "size" in SynthesisConfig().hashed(set())
    assert SynthesisConfig(size=2, oversample=2).hashed({"size"})["oversample"] == 2


def test_the_judge_s_chain_is_as_long_as_the_synthesis_section_says(config):
    assert job.judging(config).think_tokens == 16
    direct = config.model_copy(update={"scoring": ScoringConfig(mode="direct")})
    assert job.judging(direct).think_tokens == 0
    own = config.model_copy(update={"scoring": ScoringConfig(mode="budget", max_think_tokens=3)})
    assert job.judging(own).think_tokens == 3


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


def test_what_is_exported(config, tmp_path):
    personas = [Persona("p1", "a nurse"), Persona("p2", "a geologist")]
    storage = Storage(str(tmp_path / "run"))
    weighed = ((unit, 1) for unit in units(config, Inputs(SEEDS, personas, 4)))
    plan = write_plan(storage, weighed, synthesis_unit_schema(), chunk_cost=10**6)
    task = job.SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
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
    assert re.search(r"- query: synth_query, [0-9a-f]{12}\n", shown) and "Of the seeds: CC0." in shown
    assert str(tmp_path) not in shown + storage.read_text("stats.json")


def test_a_card_shows_generated_text_as_text():
    row = dict.fromkeys(("instruction", "reasoning")) | {"query": "# not a heading\u202e", "passage": "one\n- two"}
    stats = tally([])
    facts = dict.fromkeys(("seeds", "queries"), 0) | dict.fromkeys(
        ("seed_source", "writer", "judge", "agreement", "license")
    )
    text = card.render(stats | facts | {"prompts": {}, "steps": {}}, [row | {"label": True}])
    assert "\n    query: # not a heading⟨U+202E⟩\n    passage: one\n    - two\n    label: True\n" in text
    assert "Of the seeds: not told" in text


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
    task = job.SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
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


def test_a_query_is_written_anew_where_anything_of_it_is_missing(config):
    config = config.model_copy(update={"reranker": config.model})
    unit = next(units(config, Inputs(SEEDS[:1], [NURSE], 2))) | {"mined": ["a", "b", "c"]}

    def row(**values):
        return asdict(SynthesisExample("e", "s1", "p1", QueryKind.DAILY, passage="text", kept=True)) | values

    def again(*rows, reranked=True):
        return [brief.kind for brief in unwritten(unit, rows, reranked=reranked, mined=1)]

    mined = row(passage_role=MINED, base_score=0.5)
    assert again() == ["daily", "expert"]
    assert again(mined) == ["expert"]
    assert again(row(base_score=0.5)) == ["daily", "expert"]  # none was mined
    assert again(row(base_score=0.5), reranked=False) == ["expert"]
    assert again(mined, row(reject_reason="judge_failed", kept=False)) == ["daily", "expert"]
    assert again(mined, row(base_score=None)) == ["daily", "expert"]
    assert again(mined, row(base_score=None, kept=False)) == ["expert"]
    assert again(row(passage=None, kept=False, reject_reason="unparsable")) == ["expert"]


@pytest.mark.parametrize(
    ("step", "text", "message"),
    [
        ("chain", "{{ question }}", "'question' is undefined; its places are query, instruction"),
        ("describe", "{% if instruction %}{{ query }}", "Unexpected end of template"),
        ("query", "{% if instructed %}{{ instructions }}{% endif %}", "'instructions' is undefined"),
        ("passage", "{{ description }} {{ 1/0 }}", "division by zero"),
        ("passage", "Write a passage.", "has no {{ description }}"),
        ("judge", "Is {{ passage }} relevant?", "has no {{ query }}"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused_before_anything_is_asked(config, tmp_path, step, text, message):
    own = tmp_path / "own.txt"
    own.write_text(text)
    settings = config.synthesis.model_copy(update={"prompts": SynthesisPrompts(**{step: str(own)})})
    with pytest.raises(UserError) as caught:
        job.plan(config.model_copy(update={"synthesis": settings}))
    assert str(caught.value).startswith(f"prompt {own}: ") and message in str(caught.value)


def test_a_prompt_that_is_no_text_is_refused(config, tmp_path):
    own = tmp_path / "own.txt"
    own.write_bytes("Qu'est-ce qui répondrait à {{ query }}".encode("latin-1"))
    settings = config.synthesis.model_copy(update={"prompts": SynthesisPrompts(chain=str(own))})
    with pytest.raises(UserError, match=f"prompt {own}: cannot be read: 'utf-8' codec"):
        job.plan(config.model_copy(update={"synthesis": settings}))


def test_workers_are_given_the_texts_of_prompts(config, tmp_path):
    """A file may lie on another node, or be another one by the time an actor starts again."""
    own = tmp_path / "own.txt"
    own.write_text("What would answer {{ query }}?\n")
    prompts = SynthesisPrompts(chain=str(own), describe="Describe what answers {{ query }}.")
    inputs = synthesis_inputs(
        config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"prompts": prompts})})
    )
    own.unlink()
    writer = Writer()
    synthesize(briefs=[DAILY], writer=writer, inputs=inputs)
    asked = "how do I keep my rota in order"
    assert writer.prompts[1:3] == [f"What would answer {asked}?", f"Describe what answers {asked}."]


def test_nothing_kept_is_still_exported(config, tmp_path):
    storage, _ = planned(tmp_path / "run", [])
    funnel = export(
        storage, config, summarize([], 0), dedupe_and_select(storage, config.synthesis, None, seed=1), queries_a_seed=2
    )
    assert (funnel["examples"], funnel["kept"], funnel["rejected"]) == (0, 0, {})
    assert storage.read_text("train.jsonl") == ""
    assert json.loads(storage.read_text("alpaca.json")) == []


def previewed(config, count=1):
    shown = []
    job.preview(config, count, shown.append)
    return "\n".join(shown)


def write_benchmark(folder, query, document="unlike anything"):
    """A BEIR folder of query 7 and document d, which is relevant to it."""
    write_beir(folder, corpus={"d": document}, queries={"7": query}, qrels={"7": {"d": 1}})
    return str(folder)


def with_settings(config, **changed):
    """A config with other values in its synthesis section."""
    return config.model_copy(update={"synthesis": config.synthesis.model_copy(update=changed)})


def with_fault(config, **fault):
    return config.model_copy(update={"engine": config.engine.model_copy(update={"fault": FaultConfig(**fault)})})


def test_a_preview_shows_every_step_and_writes_nothing(config, tmp_path):
    text = previewed(config)
    for part in ("# seed s1", "query: merge sorted lists", "## query", "## describe", "## judge", "→ p(true) 0."):
        assert part in text
    assert text.count("## passage") == 4
    assert "s1/daily/" in text and "s1/expert/" in text and "# seed s2" not in text
    assert text.count("twice") == 1
    assert text.endswith("Queries that are there twice are found, and rejected, only in a whole run.")
    assert not (tmp_path / "run").exists()


def test_a_preview_tells_a_contaminated_seed_and_takes_the_next(config, tmp_path):
    decontaminate = (write_benchmark(tmp_path / "bench", "Merge sorted lists!"),)
    text = previewed(with_settings(config, decontaminate=decontaminate))
    first, second = text.index("# seed s1"), text.index("# seed s2")
    assert text[first:second].endswith("\n\ncontaminated: bench, query 7: 100% of its words\n\n")
    assert text[second:].count("## query") == 2


@pytest.mark.parametrize("repeated", ["query", "passage"])
def test_a_preview_keeps_nothing_that_repeats_a_benchmark(config, tmp_path, repeated):
    config = with_settings(config, agreement="ranking")
    unit = next(units(config, read_inputs(config)))
    inputs = SynthesisInputs(config.synthesis, job.judging(config), config.seed)
    examples = synthesize(briefs=list(map(read_brief, unit["briefs"])), inputs=inputs).examples
    kept = next(each for each in examples if each.kept)
    message = f"{kept.example_id}: rejected: contaminated (bench, "
    assert f"{kept.example_id}: kept" in previewed(config)
    benchmark = (
        write_benchmark(tmp_path / "bench", kept.query)
        if repeated == "query"
        else write_benchmark(tmp_path / "bench", "unlike anything", document=kept.passage)
    )
    text = previewed(with_settings(config, decontaminate=(benchmark,)))
    assert message + ("query 7: 100%" if repeated == "query" else "document d: 100%") in text
    assert f"{kept.example_id}: kept" not in text


def test_a_preview_says_which_benchmarks_it_cannot_look_through(config, tmp_path):
    folder = write_benchmark(tmp_path / "bench", "unlike anything in these seeds")
    (tmp_path / "bench" / "corpus.jsonl").unlink()
    (warning,) = read_inputs(with_settings(config, decontaminate=(folder,))).benchmarks.warnings
    assert f"\nwarning: {warning}\n" in previewed(with_settings(config, decontaminate=(folder,)))


def test_a_preview_shows_the_prompt_of_a_request_that_failed(config):
    text = previewed(with_fault(config, fail_rate=1.0))
    asked = text[text.index("## query") : text.index("failed: ")]
    assert "Somebody searched for: merge sorted lists" in asked
    error = "the fake engine failed this request (engine.fault.fail_rate)"
    assert f"\n\nfailed: RowError: {error}\n" in text
    assert re.search(rf"\nfailed: s1/daily/\S+: write: {re.escape(error)}\n", text)


def test_a_preview_shows_what_an_engine_died_of(config):
    shown = []
    with pytest.raises(EngineError, match="poisoned"):
        job.preview(with_fault(config, poison="merge sorted lists"), 1, shown.append)
    assert shown[-1].startswith("## query\n\n") and "merge sorted lists" in shown[-1]
    assert shown[-1].endswith("\n\nfailed: EngineError: the fake engine was poisoned\n")


def test_what_is_asked_is_kept_whether_or_not_it_is_answered():
    def asked(engine):
        traced = Traced(engine)

        async def ask():
            requests = (
                traced.generate([{"role": "user", "content": "write"}], max_tokens=4),
                traced.label_logprobs("judge", (" true", " false")),
            )
            await asyncio.gather(*requests, return_exceptions=True)

        asyncio.run(ask())
        return [(each.prompt, each.failed) for each in traced.requests], traced.requests[1].outcome

    answered, outcome = asked(fake_engine())
    assert answered == [("write", False), ("judge", False)]
    assert re.fullmatch(r"p\(true\) 0\.\d+, p\(false\) 0\.\d+", outcome)
    failed, outcome = asked(fake_engine(fail_rate=1.0))
    assert failed == [("write", True), ("judge", True)]
    assert outcome == "RowError: the fake engine failed this request (engine.fault.fail_rate)"


@pytest.mark.parametrize("fail_rate", [0.0, 1.0])
def test_a_preview_spells_out_control_characters_wherever_they_are(config, fail_rate):
    with open(config.synthesis.seeds, "w") as file:
        file.write(json.dumps({"id": "s\x1b[31m1", "query": "merge \x07lists", "passage": "a \x9b passage"}) + "\n")
    text = previewed(with_fault(config, fail_rate=fail_rate))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert "# seed s⟨U+001B⟩[31m1" in text
    assert re.search(r"\n(failed: )?s⟨U\+001B⟩\[31m1/daily/\S+: (kept|rejected|write)", text)


def test_a_seed_that_repeats_a_benchmark_costs_nothing(config, tmp_path):
    decontaminate = (write_benchmark(tmp_path / "bench", "Merge sorted lists!"),)
    given = read_inputs(with_settings(config, decontaminate=decontaminate))
    assert (given.queries_a_seed, list(given.repeated)) == (2, ["s1"])
    assert job.rows_hash(config, given) != job.rows_hash(config, read_inputs(config))
    first, second = units(config, given)
    assert (first["briefs"], first["cost"], len(second["briefs"])) == ([], 0, 2)
    assert first["contaminated"] == "bench, query 7: 100% of its words"
    task = job.SynthesisTask(SynthesisInputs(config.synthesis, job.judging(config), config.seed))
    (row,) = asyncio.run(task.run(first, {})).rows  # no engine is asked
    assert (row["example_id"], row["kept"], row["reject_reason"]) == ("s1", False, "contaminated")


def test_the_pool_rejects_repeated_queries_and_contaminated_texts(tmp_path):
    def row(seed, query, passage="a text of its own", kept=True, **other):
        example = SynthesisExample(f"{seed}/daily/p1/0-positive", seed, "p1", QueryKind.DAILY, query=query)
        return asdict(replace(example, passage=passage, passage_role=POSITIVE, label=True, kept=kept, **other))

    judged = "which oil does a chain of a racing bicycle need in the rain"
    benchmark = write_beir(tmp_path / "bikes", {"d": "wax"}, {"q": judged}, {"q": {"d": 1}})
    rows = [
        row("s1", "how do I keep my rota in order this winter"),
        row("s2", "How do I keep my rota in order, this winter?"),
        row("s3", "what keeps rust off a bicycle chain", passage=judged),
        row("s4", "what keeps rust off a bicycle chain"),
        row("s5", "where does the sun set on a june evening", instruction=judged.replace("racing", "fast")),
        row("s6", "what keeps rust off a bicycle chain", kept=False, reject_reason="length"),
    ]
    storage = Storage(str(tmp_path))
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=synthesis_row_schema()))
    pool = dedupe_and_select(storage, SynthesisConfig(), Benchmarks.of([benchmark]), seed=1)
    assert {each["seed_id"]: (each["reject_reason"], each["reject_detail"]) for each in pool.rows()} == {
        "s1": (None, None),
        "s2": ("duplicate_query", "s1/daily/p1"),
        "s3": ("contaminated", "bikes, query q: 100% of its words"),
        "s4": (None, None),
        "s5": ("contaminated", "bikes, query q: 92% of its words"),
        "s6": ("length", None),
    }
    assert [each["seed_id"] for each in pool.rows() if each["selected"]] == ["s1", "s4"]


def test_of_two_queries_that_are_one_the_one_that_can_be_trained_on_stays(tmp_path):
    def row(seed, label):
        role = POSITIVE if label else HARD
        example = SynthesisExample(f"{seed}/daily/p1/{role}", seed, "p1", QueryKind.DAILY, "bikes", "direct")
        query = "what keeps rust off a bicycle chain"
        return asdict(replace(example, query=query, passage=str(role), passage_role=role, label=label, kept=True))

    rows = [row("alone", False), row("whole", True), row("whole", False)]
    storage = Storage(str(tmp_path))
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=synthesis_row_schema()))
    pool = dedupe_and_select(storage, SynthesisConfig(size=2), None, seed=1)
    assert [(each["seed_id"], each["reject_reason"], each["selected"]) for each in pool.rows()] == [
        ("alone", "duplicate_query", False),
        ("whole", None, True),
        ("whole", None, True),
    ]


def test_an_embedder_of_the_recipe_says_which_queries_are_near(config, tmp_path):
    """A model to which heat and warmth are one word; by words any two of three are as far apart."""

    def row(query, label):
        example = SynthesisExample(f"{query}/{label}", query, "p1", QueryKind.DAILY, "home", "direct", query=query)
        role = POSITIVE if label else HARD
        return asdict(replace(example, passage=str(role), passage_role=role, label=label, kept=True))

    rows = [row(query, label) for query in ("heat", "warmth", "salt") for label in (True, False)]
    storage = Storage(str(tmp_path / "run"))
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=synthesis_row_schema()))
    model = write_embedder(tmp_path / "minilm", ["heat", "warmth", "salt"], ["heat", "warmth"])

    def chosen(seed, embedder):
        pool = dedupe_and_select(storage, SynthesisConfig(size=4, embedder=embedder), None, seed)
        return frozenset(each["query"] for each in pool.rows() if each["selected"])

    assert frozenset(("heat", "warmth")) in {chosen(seed, None) for seed in range(20)}
    assert {chosen(seed, model) for seed in range(20)} == {frozenset(("heat", "salt")), frozenset(("warmth", "salt"))}

    def message(**changed):
        settings = with_settings(config, **changed)
        pool = dedupe_and_select(storage, settings.synthesis, None, seed=1)
        return export(storage, settings, summarize([], 0), pool, queries_a_seed=2).get("embedding")

    assert message(size=4, embedder=model) == "minilm"
    assert str(tmp_path) not in storage.read_text("DATASET.md") + storage.read_text("report.html")
    assert message(size=4) == "by words"
    assert message(embedder=model) is message(size=4, select="random", embedder=model) is None


def test_an_embedder_that_is_not_there_is_told_before_anything_is_started(config, tmp_path):
    wrong = with_settings(config, size=2, embedder="/no/such/model")
    with pytest.raises(UserError, match="model /no/such/model: no such directory"):
        job.run(wrong, address="local", progress=open_progress())
    assert not (tmp_path / "run").exists()
    # Nothing is embedded for a choice at random, or without one.
    job.check_choice(wrong.synthesis.model_copy(update={"select": "random"}))
    job.check_choice(wrong.synthesis.model_copy(update={"size": None}))


def test_no_two_queries_have_one_name():
    assert query_id("s1", "daily", "p1") == "s1/daily/p1"
    assert query_id("a", "daily", "b/expert/c") != query_id("a/daily/b", "expert", "c")
    assert query_id("a%2Fb", "daily", "p") != query_id("a/b", "daily", "p")
    names = [contaminated_example(Seed(an_id, "q", "p"), "").example_id for an_id in ("a/daily/p", "a")]
    assert names == ["a%2Fdaily%2Fp", "a"]
