"""The hub's benchmarks, read from local directories that are laid out like the repositories."""

import pytest
from helpers import repository

from limrank.config import DataConfig
from limrank.data import benchmarks, hub
from limrank.errors import UserError
from limrank.records import Document, Query

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
    benchmark = hub.load("bright/pony", path=path)
    assert benchmark.documents == [Document("a b.txt", "Operators"), Document("c.txt", "Classes")]
    assert benchmark.queries == [
        Query("0", "is it prime?"),
        Query("1", "sort it", excluded=frozenset({"c.txt"})),
    ]
    assert benchmark.qrels == {"0": {"a b.txt": 1}, "1": {"gone.txt": 1}}
    assert "1 judgements name documents" in benchmark.warnings[0]
    with pytest.raises(UserError, match=r"no split 'aops'; there are: biology, pony"):
        hub.load("bright/aops", path=path)
    with pytest.raises(UserError, match="cannot load 'query'"):
        hub.load("litsearch", path=path)


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
    benchmark = hub.load("litsearch", path=path)
    assert benchmark.documents == [Document("7", "We compress.", title="MiniLM"), Document("9", "")]
    assert benchmark.queries == [Query("0", "papers on distillation")]
    assert benchmark.qrels == {"0": {"7": 1, "9": 1}}


def test_followir(tmp_path):
    path = repository(
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
    benchmark = benchmarks.load(DataConfig(format="hub", name="followir/core17", path=path))
    assert benchmark.queries == [
        Query("310-og", "phones", "Any study."),
        Query("310-changed", "phones", "Only studies of mice."),
    ]
    assert benchmark.documents[0] == Document("d1", "one", title="T")
    assert benchmark.qrels == {"310-og": {"d1": 1, "d2": 1}, "310-changed": {"d2": 1}}
    assert hub.flipped("followir/core17", path) == {"310": ["d1"]}
    assert hub.top_ranked("followir/core17", path) == {"310-og": {"d2": -1.0, "d1": -2.0}}


def test_what_is_unknown_is_refused():
    with pytest.raises(UserError, match="'bright/bio' is none of bright/biology, "):
        hub.load("bright/bio")
    with pytest.raises(UserError, match="litsearch has no split 'dev', only test"):
        hub.load("litsearch", split="dev")
    with pytest.raises(UserError, match="has no changed instructions"):
        hub.flipped("litsearch")


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        hub.load("bright/biology")
    assert "cannot load 'examples' of xlangai/BRIGHT: Couldn't reach" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_fingerprint_asks_nobody(tmp_path):
    data = DataConfig(format="hub", name="bright/pony")
    assert benchmarks.fingerprint(data) == benchmarks.fingerprint(data)
    assert benchmarks.fingerprint(data) != benchmarks.fingerprint(DataConfig(format="hub", name="bright/aops"))


GOOD_EXAMPLE = {"query": "a", "id": "0", "excluded_ids": ["N/A"], "gold_ids": ["x"]}


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
        hub.load("bright/pony", path=repository(tmp_path / "BRIGHT", configs))
