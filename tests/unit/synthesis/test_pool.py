"""Duplicates, contamination and the selection over a whole run."""

from dataclasses import asdict, replace

import pyarrow as pa

from helpers.beir import write_beir
from helpers.synthesis import HARD, POSITIVE, with_settings
from helpers.units import write_embedder
from limrank.batch.summary import summarize
from limrank.config import SynthesisConfig
from limrank.records import (
    QueryKind,
    SynthesisExample,
    synthesis_row_schema,
)
from limrank.storage import Storage
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.export import export
from limrank.synthesis.pool import dedupe_and_select


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
