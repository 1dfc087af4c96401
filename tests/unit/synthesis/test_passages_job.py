"""The synthesize job with passages as its source: what the recipe takes, the plan, the hash, retries."""

import json

import pytest
from pydantic import ValidationError

from helpers.beir import write_beir
from helpers.rundirs import rows
from helpers.synthesis import Writer
from helpers.units import runner
from limrank.batch.plan import write_plan
from limrank.config import SynthesizeJob
from limrank.config.recipe import parse_config
from limrank.errors import RowError, UserError
from limrank.records import synthesis_unit_schema
from limrank.storage import Storage
from limrank.synthesis import job
from limrank.synthesis.plan import read_inputs, units
from limrank.synthesis.task import PassageTask, task_of

SHORT = "too few words"


def text_of(number):
    return " ".join(f"boat{number}x{each}" for each in range(20))


@pytest.fixture
def corpus(tmp_path):
    lines = [{"_id": f"d{number}", "text": text} for number, text in enumerate([*map(text_of, range(6)), SHORT])]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "corpus")


def recipe(corpus, tmp_path, **synthesis):
    return {
        "job": "synthesize",
        "run_dir": str(tmp_path / "run"),
        "engine": {"kind": "fake"},
        "synthesis": {"source": "passages", "seeds": corpus, **synthesis},
    }


def config_of(corpus, tmp_path, **synthesis):
    return parse_config(recipe(corpus, tmp_path, **synthesis))


def test_a_dry_run_counts_passages_and_shows_the_first_prompt(corpus, tmp_path):
    config = config_of(corpus, tmp_path, queries_per_passage=2, max_seeds=4)
    plan = job.plan(config)
    assert plan["units"].startswith("4 passages, 8 queries, 7 documents to mine, ")
    assert any(text_of(number) in plan["first_prompt"] for number in range(6))
    tuned = config_of(
        corpus, tmp_path, writer="tuned", prompts={"passage_query": "Passage: {{ passage }}\nSearch query:"}
    )
    assert job.plan(tuned)["first_prompt"].endswith("\nSearch query:")


def test_only_the_writer_s_engine_is_started(corpus, tmp_path):
    assert list(config_of(corpus, tmp_path).roles()) == ["writer"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("synthesis", {"mined_negatives": 1}, "every negative is mined: set negatives"),
        ("synthesis", {"chains": False}, "synthesis.chains is for synthesis.source=seeds"),
        ("synthesis", {"agreement": "ranking"}, "synthesis.agreement is for synthesis.source=seeds"),
        ("synthesis", {"round_trip": {"retriever": "both"}}, "needs a model: synthesis.embedder"),
        ("synthesis", {"round_trip": {"k": 0}}, "synthesis.round_trip.k"),
        ("synthesis", {"round_trip": {"retriever": "dense"}}, "synthesis.round_trip.retriever"),
        ("synthesis", {"teacher": {"kind": "embedder"}}, "synthesis.teacher.model is needed"),
        ("synthesis", {"teacher": {"kind": "run"}}, "synthesis.teacher.path is needed"),
        ("synthesis", {"teacher": {"kind": "run", "path": "r", "model": "m"}}, "model is not for kind=run"),
        ("synthesis", {"teacher": {"kind": "embedder", "model": "m", "margin": "nan"}}, "synthesis.teacher.margin"),
        ("synthesis", {"teacher": {"kind": "embedder", "model": "m", "min_score": float("inf")}}, "min_score"),
        ("synthesis", {"list_size": 1}, "synthesis.list_size"),
        ("synthesis", {"queries_per_passage": 0}, "synthesis.queries_per_passage"),
        ("synthesis", {"source": "queries"}, "synthesis.source"),
        ("synthesis", {"writer": "nobody"}, "synthesis.writer"),
        ("synthesis", {"writer": None}, "synthesis.writer"),
        ("synthesis", {"writer": "none", "queries_per_passage": 2}, "synthesis.queries_per_passage: with"),
        ("synthesis", {"writer": "none", "max_tokens": 9}, "synthesis.max_tokens: with"),
        ("synthesis", {"writer": "none", "size": 2, "oversample": 2}, "synthesis.oversample: with"),
        ("synthesis", {"writer": "none", "personas": "p.txt"}, "synthesis.personas: with"),
        ("synthesis", {"writer": "none", "kinds": ["daily"]}, "synthesis.kinds: with"),
        ("synthesis", {"writer": "none", "domains": {"law": 1}}, "synthesis.domains: with"),
        ("synthesis", {"writer": "none", "temperature": 0}, "nothing is written: unset it"),
        ("synthesis", {"writer": "none", "prompts": {"passage_query": "{{ passage }}"}}, "synthesis.prompts: with"),
        ("synthesis", {"writer": "none", "chains": False}, "synthesis.chains is for synthesis.source=seeds"),
        ("synthesis", {"writer": "none", "source": "seeds"}, "synthesis.writer is for synthesis.source=passages"),
        ("synthesis", {"writer": "none", "mined_negatives": 1}, "every negative is mined: set negatives"),
        *(
            ("synthesis", {"round_trip": {"filter": value}}, "synthesis.round_trip.filter")
            for value in (None, "", "perhaps", 2, [], float("nan"))
        ),
        *(
            ("synthesis", {"teacher": {"kind": "run", "path": "r", "bm25_weight": value}}, "teacher.bm25_weight")
            for value in (None, "", "half", True, 2, 1.0001, -0.1, float("nan"), float("inf"), [0.5], 10**30)
        ),
        *(
            ("synthesis", {"teacher": {"kind": "run", "path": "r", "passage_first": value}}, "teacher.passage_first")
            for value in (None, "", "maybe", 2, [True])
        ),
        ("synthesis", {"teacher": {"kind": "run", "path": "r", "bm25weight": 0.5}}, "teacher.bm25"),
        ("judge", {"id": "another"}, "nothing is judged: set synthesis.teacher"),
        ("reranker", {"id": "another"}, "nothing is judged: set synthesis.teacher"),
    ],
)
def test_what_does_not_belong_to_passages_is_refused_in_one_line(corpus, tmp_path, section, values, message):
    given = recipe(corpus, tmp_path)
    given[section] = {**given.get(section, {}), **values}
    with pytest.raises(UserError) as refused:
        parse_config(given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"writer": "tuned"},
        {"queries_per_passage": 2},
        {"list_size": 9},
        {"round_trip": {"k": 3}},
        {"round_trip": {"filter": False}},
        {"writer": "none"},
        {"teacher": {"kind": "embedder", "model": "m"}},
    ],
)
def test_what_belongs_to_passages_is_refused_with_seeds(values):
    with pytest.raises(ValidationError, match="is for synthesis.source=passages"):
        SynthesizeJob.model_validate({"run_dir": "r", "synthesis": values})


def test_an_unusable_prompt_or_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match="has no {{ passage }}"):
        job.plan(config_of(corpus, tmp_path, prompts={"passage_query": "what is asked? {{ persona }}"}))
    (tmp_path / "corpus" / "corpus.jsonl").write_text(json.dumps({"_id": "a", "text": SHORT}) + "\n")
    with pytest.raises(UserError, match="no passage has 12 words or more"):
        job.plan(config_of(corpus, tmp_path))
    (tmp_path / "corpus" / "corpus.jsonl").write_text(json.dumps({"_id": "a\tb", "text": text_of(1)}) + "\n")
    with pytest.raises(UserError, match=r"a.tb"):
        job.plan(config_of(corpus, tmp_path))
    (tmp_path / "corpus" / "corpus.jsonl").write_text(json.dumps({"_id": "/" * 400, "text": text_of(1)}) + "\n")
    with pytest.raises(UserError, match="has more than 1000 characters"):
        job.plan(config_of(corpus, tmp_path))


def test_mining_may_change_and_writing_may_not(corpus, tmp_path):
    def hashed(**values):
        config = config_of(corpus, tmp_path, **values)
        return job.rows_hash(config, read_inputs(config))

    base = hashed()
    teacher = {"kind": "run", "path": "run.json"}
    for values in (
        {"round_trip": {"k": 3}},
        {"negatives": 5},
        {"mine_depth": 50},
        {"teacher": teacher},
        {"teacher": teacher | {"bm25_weight": 0.2}},
        {"teacher": teacher | {"passage_first": True}},
        {"round_trip": {"filter": False}},
        {"list_size": 12},
        {"size": 4},
    ):
        assert hashed(**values) == base, values
    for values in (
        {"max_seeds": 3},
        {"queries_per_passage": 2},
        {"temperature": 0.1},
        {"kinds": ["daily"]},
        {"writer": "tuned"},
    ):
        assert hashed(**values) != base, values


def test_a_passage_of_a_benchmark_is_not_written_for(corpus, tmp_path):
    repeated = text_of(3)
    folder = write_beir(tmp_path / "test", {"d": repeated}, {"q": "where do the boats go"}, {"q": {"d": 1}})
    planned = units_of(config_of(corpus, tmp_path, decontaminate=[str(folder)]))
    assert [unit["unit_id"] for unit in planned if unit["contaminated"]] == ["d3"]
    assert all(bool(unit["briefs"]) != bool(unit["contaminated"]) for unit in planned)


def units_of(config):
    return list(units(config, read_inputs(config)))


def test_a_passage_whose_query_failed_is_written_once_more(corpus, tmp_path):
    config = config_of(corpus, tmp_path, queries_per_passage=2, max_seeds=2)
    storage = Storage(str(tmp_path / "run"))
    planned = ((unit, 1) for unit in units_of(config))
    write_plan(storage, planned, synthesis_unit_schema(), chunk_cost=10**6)

    class Lossy(Writer):
        """Fails the requests of these numbers, from 0."""

        def __init__(self, *failing):
            super().__init__()
            self.failing, self.asked = failing, 0

        async def generate(self, prompt, **options):
            self.asked += 1
            if self.asked - 1 in self.failing:
                raise RowError("the endpoint did not answer")
            return await super().generate(prompt, **options)

    task = task_of(config)
    assert isinstance(task, PassageTask)
    assert runner(storage, task, {"writer": Lossy(0, 2)}).run(0, isolated=False).failed == 2
    first = {row["example_id"] for row in rows(storage)}
    assert len(first) == 2
    # The retry asks for what is missing only, and keeps what is there while it fails.
    again = Lossy(0, 1)
    assert runner(storage, task, {"writer": again}, session="second").run(0, isolated=False).failed == 2
    assert again.asked == 2 and {row["example_id"] for row in rows(storage)} == first
    assert runner(storage, task, {"writer": Writer()}, session="third").run(0, isolated=False).failed == 0
    assert len({row["example_id"] for row in rows(storage)}) == len(rows(storage)) == 4


def test_a_tuned_writer_s_own_prompt_is_taken(corpus, tmp_path):
    writer = tmp_path / "writer"
    writer.mkdir()
    (writer / "config.json").write_text("{}")
    (writer / "limrank.json").write_text(json.dumps({"task": "writer", "prompt": "Text: {{ passage }}\nAsked:"}))

    def planned(**synthesis):
        given = recipe(corpus, tmp_path, **synthesis) | {"model": {"id": str(writer)}}
        return job.plan(parse_config(given))["first_prompt"]

    assert planned(writer="tuned").startswith("Text: boat") and planned(writer="tuned").endswith("\nAsked:")
    own = planned(writer="tuned", prompts={"passage_query": "{{ passage }} ->"})
    assert own.endswith(" ->")
    for other in ({}, {"source": "seeds"}):
        with pytest.raises(UserError, match=r"model writer: was trained to write queries.*synthesis.writer=tuned"):
            planned(**other)


def test_a_file_of_passages_needs_no_queries(tmp_path):
    file = tmp_path / "passages.jsonl"
    file.write_text("".join(json.dumps({"id": f"d{number}", "passage": text_of(number)}) + "\n" for number in range(3)))
    config = config_of(str(file), tmp_path)
    assert [unit["unit_id"] for unit in units_of(config)] == ["d0", "d1", "d2"]
    file.write_text(json.dumps({"id": "d0"}) + "\n")
    with pytest.raises(UserError, match=r"passages.jsonl:1: passage is missing"):
        units_of(config)
