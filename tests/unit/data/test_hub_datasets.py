"""Seeds and personas of the hub by name, read from local directories that are laid out like its repositories."""

import logging
from dataclasses import replace

import pytest

from helpers.beir import write_beir
from helpers.units import repository
from limrank.cli import main
from limrank.config.recipe import input_paths, parse_config
from limrank.data import seeds as seed_data
from limrank.data.hub_datasets import HubDataset
from limrank.data.seeds import load_corpus, load_personas, load_seeds
from limrank.errors import UnavailableError, UserError
from limrank.records import Document, Persona, Seed

pytestmark = pytest.mark.usefixtures("private_cache")

CORPUS = [
    {"_id": "d1", "title": "Bread", "text": "Dough rises."},
    {"_id": "d2", "title": "", "text": "Yeast feeds on sugar."},
    {"_id": "d3", "title": None, "text": "Salt slows it."},
]
QUERIES = [
    {"_id": "q2", "text": "why does dough rise"},
    {"_id": "q1", "text": "bread"},
    {"_id": "unjudged", "text": "tea"},
    {"_id": "gone", "text": "jam"},
]
TRAIN = [
    {"query-id": "q1", "corpus-id": "d3", "score": 1},
    {"query-id": "q2", "corpus-id": "d1", "score": 1},
    {"query-id": "q2", "corpus-id": "d2", "score": 2},
    {"query-id": "q2", "corpus-id": "d3", "score": 0},
    {"query-id": "gone", "corpus-id": "d9", "score": 1},
]
TEST = [{"query-id": "q1", "corpus-id": "d1", "score": 1}]
RETRIEVAL = {"corpus": {"corpus": CORPUS}, "queries": {"queries": QUERIES}}
SEEDS = [Seed("q2", "why does dough rise", "Yeast feeds on sugar."), Seed("q1", "bread", "Salt slows it.")]


@pytest.fixture
def by_name(monkeypatch):
    """Has the hub's names lead to local directories of its layout."""
    folders = {}
    named = HubDataset.of.__func__

    def of(cls, value, key):
        found = named(cls, value, key)
        if found is None:
            return None
        source = found.repository.source
        return replace(found, repository=replace(found.repository, source=folders.get(source, source)))

    monkeypatch.setattr(HubDataset, "of", classmethod(of))
    return folders


def test_seeds_of_a_retrieval_dataset_are_of_its_train_split(tmp_path, caplog):
    path = repository(tmp_path / "msmarco", RETRIEVAL | {"default": {"test": TEST, "train": TRAIN}})
    with caplog.at_level(logging.WARNING):
        assert load_seeds(path) == SEEDS
    assert "1 judged queries left out" in caplog.text
    assert load_corpus(path) == [
        Document("d1", "Dough rises.", title="Bread"),
        Document("d2", "Yeast feeds on sugar."),
        Document("d3", "Salt slows it."),
    ]


def test_the_same_by_name(by_name, tmp_path):
    by_name["mteb/msmarco"] = repository(tmp_path / "msmarco", RETRIEVAL | {"default": {"test": TEST, "train": TRAIN}})
    assert load_seeds("hub://mteb/msmarco") == SEEDS
    assert load_seeds("hub://mteb/msmarco", 1, seed=3)[0] in SEEDS
    assert len(load_corpus("hub://mteb/msmarco")) == 3


def test_judgements_may_be_in_a_repository_of_their_own(tmp_path):
    path = repository(tmp_path / "msmarco", RETRIEVAL)
    repository(tmp_path / "msmarco-qrels", {"default": {"validation": TEST, "train": TRAIN}})
    assert load_seeds(path) == SEEDS


@pytest.mark.parametrize(("splits", "taken"), [({"test": TEST, "dev": TRAIN}, "test"), ({"dev": TEST}, "dev")])
def test_where_there_is_no_train_split(tmp_path, splits, taken):
    path = repository(tmp_path / taken, RETRIEVAL | {"qrels": splits})
    assert load_seeds(path) == [Seed("q1", "bread", "Bread Dough rises.")]


def test_seeds_of_rows(by_name, tmp_path):
    rows = [{"query": "bread", "passage": "Dough rises."}, {"query": "salt", "passage": "Salt slows it."}]
    others = [{"query": "a", "passage": "b", "id": 7, "vector": [0.5]}]
    path = repository(tmp_path / "pairs", {"plain": {"train": rows}, "numbered": {"test": others}})
    by_name["owner/pairs"] = path
    assert load_seeds("hub://owner/pairs/plain") == [
        Seed("1", "bread", "Dough rises."),
        Seed("2", "salt", "Salt slows it."),
    ]
    assert load_seeds("hub://owner/pairs/numbered") == [Seed("7", "a", "b")]
    assert load_corpus("hub://owner/pairs/numbered") == [Document("7", "b")]


def test_personas_of_the_hub(by_name, tmp_path):
    rows = [{"persona": "A nurse. "}, {"persona": "A geologist."}]
    path = repository(tmp_path / "PersonaHub", {"math": {"train": [{"x": 1}]}, "persona": {"train": rows}})
    by_name["proj-persona/PersonaHub"] = path
    assert load_personas("hub://proj-persona/PersonaHub/persona") == [
        Persona("1", "A nurse."),
        Persona("2", "A geologist."),
    ]
    with pytest.raises(UserError, match="PersonaHub/math: has none of the columns id, persona; it has x"):
        load_personas("hub://proj-persona/PersonaHub/math")
    with pytest.raises(UserError, match=r"synthesis.personas: cannot load '?.*") as error:
        load_personas("hub://proj-persona/PersonaHub/poets")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["hub://msmarco", "hub://a/b/c/d", "hub://", "hub://a b/c"])
def test_what_is_no_name(name):
    with pytest.raises(UserError, match="should be hub://OWNER/NAME or hub://OWNER/NAME/CONFIG") as error:
        load_seeds(name)
    assert str(error.value).startswith("synthesis.seeds: ")
    with pytest.raises(UserError, match="^synthesis.personas: "):
        load_personas(name)


def test_rows_that_are_not_as_published(tmp_path):
    lacking = [{"query-id": "q1", "score": 1}]
    path = repository(tmp_path / "lacking", RETRIEVAL | {"default": {"train": lacking}})
    with pytest.raises(UserError, match="lacking: row 1: judgements have query-id, corpus-id"):
        load_seeds(path)
    textless = {"corpus": {"corpus": [{"_id": "d1", "text": 5}]}, "queries": {"queries": QUERIES}}
    path = repository(tmp_path / "textless", textless | {"default": {"train": TEST}})
    with pytest.raises(UserError, match="textless: row 1: text is missing, or no text"):
        load_seeds(path)
    path = repository(tmp_path / "unrelated", RETRIEVAL | {"default": {"train": TRAIN[4:]}})
    with pytest.raises(UserError, match="unrelated: there are no seeds: no query has a relevant passage"):
        load_seeds(path)


def test_a_hub_out_of_reach_is_one_line_and_a_dry_run_goes_on(offline, tmp_path, capsys):
    for load, value in ((load_seeds, "hub://mteb/msmarco"), (load_personas, "hub://proj-persona/PersonaHub/persona")):
        with pytest.raises(UnavailableError) as error:
            load(value)
        assert "\n" not in str(error.value) and "cannot load" in str(error.value)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: synthesize\nrun_dir: {tmp_path}/run\nsynthesis: {{seeds: hub://mteb/msmarco}}\n")
    assert main(["synthesize", str(recipe), "--dry-run"]) == 0
    assert "not known on this machine: synthesis.seeds: cannot load mteb/msmarco: " in capsys.readouterr().out


def test_a_name_of_the_hub_is_no_path():
    names = {"seeds": "hub://mteb/msmarco", "personas": "hub://proj-persona/PersonaHub/persona"}
    config = parse_config({"job": "synthesize", "run_dir": "/tmp/run", "synthesis": names})
    assert (config.synthesis.seeds, config.synthesis.personas) == tuple(names.values())
    assert input_paths(config) == []


def test_of_a_beir_corpus_only_what_is_relevant_is_held(tmp_path, monkeypatch):
    """Of MS MARCO's 8.8 million passages half a million."""
    folder = write_beir(tmp_path / "beir")
    held = []
    kept = seed_data._judged_seeds
    monkeypatch.setattr(
        seed_data,
        "_judged_seeds",
        lambda queries, qrels, passages, source: held.extend(passages) or kept(queries, qrels, passages, source),
    )
    assert [seed.seed_id for seed in load_seeds(str(folder))] == ["q1", "q2"]
    assert held == ["d1", "d2"]
