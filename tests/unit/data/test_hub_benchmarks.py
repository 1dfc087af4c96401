"""The hub's benchmarks, read from local directories that are laid out like the repositories."""

import json
from pathlib import Path

import pytest

from helpers.units import repository, silent
from limrank.batch.manifest import Data, read_manifest
from limrank.config import DataConfig, EvaluateJob, RerankJob
from limrank.data import benchmarks, hub_benchmarks
from limrank.errors import UserError
from limrank.evaluation.job import evaluate_job
from limrank.records import Document, Query
from limrank.reranking import job
from limrank.reranking.source import open_source
from limrank.storage import Storage

GOOD_EXAMPLE = {"query": "is it prime?", "id": "0", "excluded_ids": ["N/A"], "gold_ids": ["x"]}

pytestmark = pytest.mark.usefixtures("private_cache")


def test_bright(tmp_path):
    example = {"reasoning": "", "gold_ids_long": ["N/A"]}
    path = repository(
        tmp_path / "BRIGHT",
        {
            "examples": {
                "biology": [
                    {**example, "query": "other subset", "id": "0", "excluded_ids": ["N/A"], "gold_ids": ["x"]}
                ],
                "pony": [
                    {**example, "query": "is it prime?", "id": "0", "excluded_ids": ["N/A"], "gold_ids": ["a b.txt"]},
                    {**example, "query": "sort it", "id": "1", "excluded_ids": ["c.txt"], "gold_ids": ["gone.txt"]},
                ],
            },
            "documents": {
                "biology": [{"id": "x", "content": "y"}],
                "pony": [{"id": "a b.txt", "content": "Operators"}, {"id": "c.txt", "content": "Classes"}],
            },
        },
    )
    benchmark = hub_benchmarks.load("bright/pony", path=path)
    assert benchmark.documents == [Document("a b.txt", "Operators"), Document("c.txt", "Classes")]
    assert benchmark.queries == [
        Query("0", "is it prime?"),
        Query("1", "sort it", excluded=frozenset({"c.txt"})),
    ]
    assert benchmark.qrels == {"0": {"a b.txt": 1}, "1": {"gone.txt": 1}}
    assert "1 judgements name documents" in benchmark.warnings[0]
    with pytest.raises(UserError, match=r"no split 'aops'; there are: biology, pony"):
        hub_benchmarks.load("bright/aops", path=path)
    with pytest.raises(UserError, match="cannot load 'query'"):
        hub_benchmarks.load("litsearch", path=path)


def test_litsearch(tmp_path):
    path = repository(
        tmp_path / "LitSearch",
        {
            "query": {"full": [{"query": "papers on distillation", "corpusids": [7, 9], "specificity": 1}]},
            "corpus_clean": {
                "full": [
                    {"corpusid": 7, "title": "MiniLM", "abstract": "We compress."},
                    {"corpusid": 9, "title": None, "abstract": None},
                ]
            },
        },
    )
    benchmark = hub_benchmarks.load("litsearch", path=path)
    assert benchmark.documents == [Document("7", "We compress.", title="MiniLM"), Document("9", "")]
    assert benchmark.queries == [Query("0", "papers on distillation")]
    assert benchmark.qrels == {"0": {"7": 1, "9": 1}}


@pytest.mark.parametrize("name", ["run.json", "run.trec"])
def test_a_run_with_mteb_s_ids_of_litsearch(tmp_path, name):
    path = repository(
        tmp_path / "LitSearch",
        {
            "query": {
                "full": [{"query": f"papers on {each}", "corpusids": [7]} for each in ("distillation", "search")]
            },
            "corpus_clean": {"full": [{"corpusid": each, "title": "T", "abstract": "A"} for each in (7, 9)]},
        },
    )
    run = tmp_path / name
    lists = {"q0": {"d9": 2.0, "d7": 1.0}, "q1": {"d7": 1.0}}
    trec = [f"{query} Q0 {doc} 1 {score} x\n" for query, scores in lists.items() for doc, score in scores.items()]
    run.write_text(json.dumps(lists) if name.endswith("json") else "".join(trec))
    data = {"format": "hub", "name": "litsearch", "path": path}
    message = f"{run}: its ids are as mteb writes them, and read as litsearch's: 'q0' for '0', "
    source = open_source(RerankJob(run_dir="x", data=data, first_stage={"kind": "run", "path": str(run)}))
    found = {query.query_id: [each.doc_id for each in ranked] for query, ranked in source.queries()}
    assert found == {"0": ["9", "7"], "1": ["7"]}
    assert [warning.startswith(message) for warning in source.warnings] == [True]
    evaluation = {"run": str(run), "measures": ["RR"], "bootstrap_samples": 10}
    result = evaluate_job(EvaluateJob(run_dir=str(tmp_path / "out"), data=data, evaluation=evaluation))
    assert result.system.scores.per_query == {"RR": {"0": 0.5, "1": 1.0}}
    assert [warning.startswith(message) for warning in result.warnings] == [True]


@pytest.fixture
def core17(tmp_path):
    return repository(
        tmp_path / "core17",
        {
            "corpus": {
                "corpus": [{"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "title": "", "text": "two"}]
            },
            "queries": {"queries": [{"_id": "310-og", "text": "phones"}, {"_id": "310-changed", "text": "phones"}]},
            "instruction": {
                "instruction": [
                    {"query-id": "310-og", "instruction": "Any study."},
                    {"query-id": "310-changed", "instruction": "Only studies of mice."},
                ]
            },
            "default": {
                "test": [
                    {"query-id": "310-og", "corpus-id": "d1", "score": 1},
                    {"query-id": "310-og", "corpus-id": "d2", "score": 1},
                    {"query-id": "310-changed", "corpus-id": "d2", "score": 1},
                ]
            },
            "qrel_diff": {"qrel_diff": [{"query-id": "310", "corpus-ids": ["d1"]}]},
            "top_ranked": {"top_ranked": [{"query-id": "310-og", "corpus-ids": ["d2", "d1"]}]},
        },
    )


def test_followir(core17):
    benchmark = benchmarks.load(DataConfig(format="hub", name="followir/core17", path=core17))
    assert benchmark.queries == [
        Query("310-og", "phones", "Any study."),
        Query("310-changed", "phones", "Only studies of mice."),
    ]
    assert benchmark.documents[0] == Document("d1", "one", title="T")
    assert benchmark.qrels == {"310-og": {"d1": 1, "d2": 1}, "310-changed": {"d2": 1}}
    assert hub_benchmarks.flipped("followir/core17", core17) == {"310": ["d1"]}
    assert hub_benchmarks.top_ranked("followir/core17", core17) == {"310-og": {"d2": -1.0, "d1": -2.0}}


def test_a_query_without_an_instruction_is_reported(core17):
    file = Path(core17) / "instruction" / "instruction.jsonl"
    file.write_text(file.read_text().replace("310-changed", "310-Changed"))
    benchmark = hub_benchmarks.load("followir/core17", path=core17)
    assert benchmark.warnings == ["followir/core17: 1 of 2 queries have no instruction, such as '310-changed'"]


def test_instructions_that_are_of_no_query_are_refused(core17):
    """Without them the two queries of a topic are one, and p-MRR is 0."""
    file = Path(core17) / "instruction" / "instruction.jsonl"
    file.write_text(file.read_text().replace("310-", "311-"))
    message = "2 of 2 queries have no instruction, such as '310-og'; 'instruction' is for '311-og', '311-changed'"
    with pytest.raises(UserError, match=message):
        hub_benchmarks.load("followir/core17", path=core17)


# ---- first stages --------------------------------------------------------------------


@pytest.fixture
def pony(tmp_path):
    """BRIGHT's Pony, with its queries as a model rewrote them."""
    examples = [{**GOOD_EXAMPLE, "id": number, "query": f"query {number}"} for number in "012"]
    rewritten = [{"id": number, "query": f"operators and classes, for query {number}"} for number in "210"]
    return repository(
        tmp_path / "BRIGHT",
        {
            "examples": {"pony": examples},
            "gpt4_reason": {"pony": rewritten},
            "grit_reason": {"pony": rewritten[:1]},
            "documents": {"pony": [{"id": "x", "content": "Operators"}, {"id": "y", "content": "A query, of Pony"}]},
        },
    )


def test_bm25_is_asked_bright_s_rewritten_queries_and_nobody_else(pony, tmp_path):
    data = {"format": "hub", "name": "bright/pony", "path": pony}
    config = RerankJob(
        run_dir=str(tmp_path / "run"),
        data=data | {"first_stage_queries": "gpt4_reason", "max_queries": 1},
        first_stage={"depth": 1},
        scoring={"mode": "direct"},
    )
    source = open_source(config)
    ((query, (candidate,)),) = source.queries()
    assert (query.text, query.retrieval_text) == ("query 0", "operators and classes, for query 0")
    assert candidate.doc_id == "x"  # which the query itself does not find
    assert "Problem: query 0\n" in job.plan(config)["first_prompt"]
    source.keep_selection(Storage(str(tmp_path / "kept")))
    assert (tmp_path / "kept" / "queries.jsonl").read_text() == '{"_id": "0", "text": "query 0"}\n'
    plain = config.model_copy(update={"data": DataConfig(**data, max_queries=1)})
    assert [each.doc_id for _, (each,) in open_source(plain).queries()] == ["y"]
    assert job.rows_hash(config, source) != job.rows_hash(plain, open_source(plain))


def test_rewritten_queries_that_are_not_all_there(pony):
    data = {"format": "hub", "name": "bright/pony", "path": pony}
    with pytest.raises(UserError, match="grit_reason has no text for 2 of the 3 queries of bright/pony, such as '0'"):
        benchmarks.load(DataConfig(**data, first_stage_queries="grit_reason"))
    with pytest.raises(UserError, match="cannot load 'llama3-70b_reason' of "):
        benchmarks.load(DataConfig(**data, first_stage_queries="llama3-70b_reason"))
    for name in ("litsearch", "followir/core17"):
        with pytest.raises(UserError, match=f"{name} has no gpt4_reason, only bright/<subset> has"):
            hub_benchmarks.rewritten(name, "gpt4_reason")


def test_what_bm25_is_asked_is_in_the_fingerprint():
    asked = (None, "gpt4_reason", "grit_reason")
    data = [DataConfig(format="hub", name="bright/pony", first_stage_queries=each) for each in asked]
    assert len({benchmarks.fingerprint(each) for each in data}) == 3


def test_followir_s_own_candidates_are_a_first_stage(core17, tmp_path):
    def source(**first_stage):
        data = {"format": "hub", "name": "followir/core17", "path": core17}
        return open_source(RerankJob(run_dir=str(tmp_path / "run"), data=data, first_stage=first_stage))

    published = source(kind="published", depth=1)
    published.check()
    ranked = {query.query_id: [(each.doc_id, each.rank) for each in found] for query, found in published.queries()}
    assert ranked == {"310-og": [("d2", 1)], "310-changed": []}
    assert published.warnings == [
        "1 of 2 queries have no candidate by what the benchmark publishes, such as '310-changed': they count 0 in evaluation"
    ]
    assert published.hash_parts() != source(kind="bm25", depth=1).hash_parts()


def test_what_is_unknown_is_refused():
    with pytest.raises(UserError, match="'bright/bio' is none of bright/biology, "):
        hub_benchmarks.load("bright/bio")
    with pytest.raises(UserError, match="litsearch has no split 'dev', only test"):
        hub_benchmarks.load("litsearch", split="dev")
    with pytest.raises(UserError, match="has no changed instructions"):
        hub_benchmarks.flipped("litsearch")


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        hub_benchmarks.load("bright/biology")
    assert "cannot load 'examples' of xlangai/BRIGHT: Couldn't reach" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_fingerprint_asks_nobody(tmp_path):
    data = DataConfig(format="hub", name="bright/pony")
    assert benchmarks.fingerprint(data) == benchmarks.fingerprint(data)
    assert benchmarks.fingerprint(data) != benchmarks.fingerprint(DataConfig(format="hub", name="bright/aops"))


# ---- revisions -----------------------------------------------------------------------

BRIGHT_AT_MTEB = "a75a0eb483f6a5233a6efc2d63d71540a4443dfb"


@pytest.fixture
def asked(monkeypatch):
    """What `datasets` is asked for: the hub itself is out of reach here."""
    import datasets

    calls = []

    def load_dataset(repository, config, revision):
        calls.append((repository, config, revision))
        rows = {
            "examples": [GOOD_EXAMPLE],
            "documents": [{"id": "x", "content": "prime numbers"}],
            "qrel_diff": [{"query-id": "310", "corpus-ids": ["d1"]}],
            "top_ranked": [{"query-id": "310-og", "corpus-ids": ["d1"]}],
        }
        return {"pony": rows[config]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("revision", "resolved"), [("mteb", BRIGHT_AT_MTEB), ("some-branch", "some-branch"), (None, None)]
)
def test_every_config_is_read_at_the_revision(asked, revision, resolved):
    data = DataConfig(format="hub", name="bright/pony", revision=revision)
    benchmarks.load(data)
    assert asked == [("xlangai/BRIGHT", config, resolved) for config in ("examples", "documents")]
    assert benchmarks.provenance(data) == {"name": "bright/pony", "revision": resolved}


def test_followir_s_other_configs_too(asked):
    core17 = "7030c7efc3585d9020f243b12862997889243b78"
    hub_benchmarks.flipped("followir/core17", revision="mteb")
    hub_benchmarks.top_ranked("followir/core17", revision="mteb")
    repository = "jhu-clsp/core17-instructions-mteb"
    assert asked == [(repository, "qrel_diff", core17), (repository, "top_ranked", core17)]


def test_mteb_pins_every_benchmark():
    assert all(len(hub_benchmarks.pinned(name, "mteb")) == 40 for name in hub_benchmarks.NAMES)
    assert {hub_benchmarks.pinned(name, "mteb") for name in hub_benchmarks.NAMES} == set(
        hub_benchmarks.MTEB_REVISIONS.values()
    )


def test_the_fingerprint_is_of_the_revision_and_not_of_its_name():
    prints = [
        benchmarks.fingerprint(DataConfig(format="hub", name="bright/pony", revision=revision))
        for revision in (None, "mteb", BRIGHT_AT_MTEB, "main")
    ]
    assert prints[1] == prints[2] and len(set(prints)) == 3


def test_a_revision_that_is_not_there_is_named(monkeypatch):
    import datasets

    def load_dataset(*arguments, **options):
        raise FileNotFoundError("Revision 'gone' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="cannot load 'examples' of xlangai/BRIGHT at gone: Revision 'gone' doesn't"):
        hub_benchmarks.load("bright/pony", revision="gone")


def test_a_manifest_tells_the_revision(asked, tmp_path):
    data = {"format": "hub", "name": "bright/pony", "revision": "mteb"}
    config = RerankJob(run_dir=str(tmp_path / "run"), data=data, scoring={"mode": "none"})
    common = {"address": "local", "progress": silent()}
    job.run(config, **common)
    manifest = read_manifest(Storage(str(tmp_path / "run")))
    assert manifest.data == Data(name="bright/pony", revision=BRIGHT_AT_MTEB)
    with pytest.raises(UserError, match="another config"):
        job.run(config.model_copy(update={"data": DataConfig(**data | {"revision": None})}), **common)


# ---- rows that are damaged -----------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({key: value for key, value in GOOD_EXAMPLE.items() if key != "gold_ids"}, "a row without 'gold_ids'"),
        (GOOD_EXAMPLE | {"query": None}, "query should be text, not None"),
        (GOOD_EXAMPLE | {"query": 5}, "query should be text, not 5"),
        (GOOD_EXAMPLE | {"gold_ids": 5}, "a row cannot be read: 'int' object is not iterable"),
    ],
)
def test_rows_that_are_not_as_published(tmp_path, example, message):
    configs = {"examples": {"pony": [example]}, "documents": {"pony": [{"id": "x", "content": "y"}]}}
    with pytest.raises(UserError, match=message):
        hub_benchmarks.load("bright/pony", path=repository(tmp_path / "BRIGHT", configs))
