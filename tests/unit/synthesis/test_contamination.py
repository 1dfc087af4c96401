import gzip
import os
import pickle
import random
from pathlib import Path

import pytest

from helpers import REPOSITORY
from helpers.beir import write_beir
from limrank.config import PipelineJob
from limrank.config.stages import stage_configs
from limrank.data import beir, pydocs
from limrank.errors import UserError
from limrank.synthesis.contamination import DOCUMENT_RUN, Benchmarks, Overlap

SHARED = Path(os.environ.get("LIMRANK_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")

CORPUS = {
    "relevant": "Yeast feeds on the sugar in flour and gives off gas, and warmth makes it feed faster, so that "
    "dough rises sooner in a warm kitchen than it does in a cold one.",
    "irrelevant": "Salt slows yeast down, and a dough without any rises in half the time but tastes of nothing "
    "at all and spreads on the tray before it can be baked.",
    "unjudged": "Rye has little gluten, so a loaf of rye is held up by its starch, and is sticky until the day after.",
}
QUERIES = {
    "q1": "why does bread dough rise faster in a warm kitchen",
    "q2": "salt in dough",
    "unjudged": "how long does a loaf of rye have to rest",
}
QRELS = {"q1": {"relevant": 2, "irrelevant": 0}, "q2": {"irrelevant": 0}}


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "bread", CORPUS, QUERIES, QRELS)


def changed(text):
    """Every copy of a text in which one word is another."""
    parts = text.split()
    return [" ".join([*parts[:place], "zebra", *parts[place + 1 :]]) for place in range(len(parts))]


def refused(folder, split=None):
    """The one line of the UserError, without the folder's own place."""
    with pytest.raises(UserError) as error:
        Benchmarks.of([folder], split)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{folder.parent}{os.sep}", "")


# ---- what is found -------------------------------------------------------------------


def test_queries_that_are_judged(folder):
    index = Benchmarks.of([folder])
    assert index.query_overlap("Why does bread dough rise faster in a warm kitchen?") == Overlap(
        "bread", "query", "q1", words=10, share=1.0
    )
    for copy in changed(QUERIES["q1"]):
        assert index.query_overlap(copy) == Overlap("bread", "query", "q1", words=9, share=0.9)
    assert index.query_overlap("SALT in dough!") == Overlap("bread", "query", "q2", words=3, share=1.0)
    assert not any(map(index.query_overlap, changed(QUERIES["q2"])))
    assert index.query_overlap(QUERIES["unjudged"]) is None
    assert index.passage_overlap(QUERIES["q1"]) is None


def test_documents_that_are_relevant(folder):
    index = Benchmarks.of([folder])
    whole = len(CORPUS["relevant"].split())
    assert index.passage_overlap(CORPUS["relevant"]) == Overlap("bread", "document", "relevant", whole, 1.0)
    for copy in changed(CORPUS["relevant"]):
        assert index.passage_overlap(copy).words == whole - 1
    assert index.passage_overlap(CORPUS["irrelevant"]) is None
    assert index.passage_overlap(CORPUS["unjudged"]) is None
    assert index.query_overlap(CORPUS["relevant"]) is None


def test_a_passage_that_quotes(folder):
    index = Benchmarks.of([folder])
    parts = CORPUS["relevant"].split()
    for start in range(len(parts) - DOCUMENT_RUN):
        quoted, short = parts[start : start + DOCUMENT_RUN], parts[start : start + DOCUMENT_RUN - 1]
        found = index.passage_overlap(f"An old baker wrote: {' '.join(quoted)}. Nobody knows when or to whom.")
        assert (found.id, found.words) == ("relevant", DOCUMENT_RUN)
        assert index.passage_overlap(f"An old baker wrote: {' '.join(short)}. Nobody knows to whom.") is None
    # A passage that quotes the query gives the query away.
    assert index.query_overlap(f"You ask {QUERIES['q1']}, and here is why it does.").id == "q1"


@pytest.mark.parametrize("text", ["", " \n", "?", "🍞"])
def test_no_words_overlap_nothing(folder, text):
    index = Benchmarks.of([folder])
    assert index.query_overlap(text) is None
    assert index.passage_overlap(text) is None


def test_several_benchmarks(folder, tmp_path):
    other = write_beir(
        tmp_path / "other", {"relevant": "c"}, {"q1": "an other query of one's own"}, {"q1": {"relevant": 1}}
    )
    index = Benchmarks.of([folder, str(other)])
    assert index.query_overlap(QUERIES["q1"]).benchmark == "bread"
    assert index.query_overlap("another query of one's own") is None
    assert index.query_overlap("an other query of one's own").benchmark == "other"
    namesake = write_beir(
        tmp_path / "elsewhere" / "bread", {"d": "c"}, {"q1": "rye or wheat for pizza"}, {"q1": {"d": 1}}
    )
    index = Benchmarks.of([folder, namesake])
    assert index.query_overlap(QUERIES["q1"]) and index.query_overlap("rye or wheat for pizza")
    assert Benchmarks.of([]).query_overlap(QUERIES["q1"]) is None


def test_it_can_be_sent_to_a_worker(folder):
    index = Benchmarks.of([folder])
    copy = pickle.loads(pickle.dumps(index))
    for text in [*changed(QUERIES["q1"]), *changed(CORPUS["relevant"]), *CORPUS.values(), *QUERIES.values()]:
        assert copy.query_overlap(text) == index.query_overlap(text)
        assert copy.passage_overlap(text) == index.passage_overlap(text)


# ---- the folder ----------------------------------------------------------------------


def test_all_splits_or_one(folder):
    (folder / "qrels/dev.tsv.gz").write_bytes(gzip.compress(b"unjudged\tunjudged\t1\n"))
    every, test = Benchmarks.of([folder]), Benchmarks.of([folder], "test")
    assert every.query_overlap(QUERIES["unjudged"]).id == every.passage_overlap(CORPUS["unjudged"]).id == "unjudged"
    assert every.query_overlap(QUERIES["q1"]).id == "q1"
    assert test.query_overlap(QUERIES["unjudged"]) is test.passage_overlap(CORPUS["unjudged"]) is None
    assert test.query_overlap(QUERIES["q1"]).id == "q1"


def test_what_is_there_to_be_trained_on_is_no_benchmark(folder):
    (folder / "qrels/train.tsv").write_text("unjudged\tunjudged\t1\n")
    assert Benchmarks.of([folder]).query_overlap(QUERIES["unjudged"]) is None
    assert Benchmarks.of([folder], "train").query_overlap(QUERIES["unjudged"]).id == "unjudged"
    (folder / "qrels/test.tsv").unlink()  # a folder of one split means that one
    assert Benchmarks.of([folder]).query_overlap(QUERIES["unjudged"]).id == "unjudged"


def test_a_benchmark_that_has_a_name(tmp_path):
    index = Benchmarks.of(["benchmark://pydocs"])
    query, document = pydocs.queries("test")[0], next(iter(pydocs.benchmark("test").qrels.values()))
    assert index.query_overlap(query.text).benchmark == "pydocs"
    contents = {each.doc_id: each.contents for each in pydocs.documents()}
    assert index.passage_overlap(contents[next(iter(document))]).kind == "document"
    assert index.query_overlap(pydocs.queries("dev")[0].text) is None
    with pytest.raises(UserError, match="benchmark://msmarco: there is no such benchmark; there are: pydocs, bright/"):
        Benchmarks.of(["benchmark://msmarco"])
    with pytest.raises(UserError, match=r"benchmark://pydocs\?revision=main: there is no such benchmark"):
        Benchmarks.of(["benchmark://pydocs?revision=main"])


def test_a_benchmark_of_the_hub_is_read_at_its_revision(monkeypatch):
    asked = []

    def load(name, revision):
        asked.append((name, revision))
        return pydocs.benchmark("test")

    monkeypatch.setattr("limrank.synthesis.contamination.hub_benchmarks.load", load)
    Benchmarks.of(["benchmark://litsearch", "benchmark://litsearch?revision=mteb"])
    assert asked == [("litsearch", None), ("litsearch", "mteb")]


@pytest.mark.parametrize(("revision", "source"), [(None, "litsearch"), ("mteb", "litsearch?revision=mteb")])
def test_a_pipeline_is_kept_apart_from_the_revision_that_it_is_evaluated_on(tmp_path, revision, source):
    data = {"format": "hub", "name": "litsearch", "revision": revision}
    stages = stage_configs(PipelineJob(run_dir=str(tmp_path / "run"), data=data, engine={"kind": "fake"}))
    assert stages.synthesize.synthesis.decontaminate == (f"benchmark://{source}",)


def test_a_title_is_part_of_a_document(folder):
    (folder / "corpus.jsonl").write_text(
        '{"_id": "relevant", "title": "On Yeast", "text": "what it feeds on in flour"}\n'
    )
    index = Benchmarks.of([folder])
    assert index.passage_overlap("On yeast: what it feeds on in flour").share == 1.0


def test_what_cannot_be_found_is_reported(folder):
    index = Benchmarks.of([folder])
    short = "{}: 1 of {} queries have fewer than 4 words; of these copies are found, and none with a word changed"
    assert index.warnings == [short.format(folder, 2)]
    (folder / "qrels/test.tsv").write_text("q1\trelevant\t1\nq1\tgone\t1\ngone\trelevant\t1\n")
    (folder / "corpus.jsonl").unlink()
    index = Benchmarks.of([folder])
    assert index.query_overlap("salt in bread") is None
    assert [warning.replace(f"{folder}{os.sep}", "") for warning in index.warnings] == [
        "queries.jsonl: 1 of 2 judged queries are not there; copies of them are not found",
        "corpus.jsonl: 2 of 2 relevant documents are not there; copies of them are not found",
    ]
    assert index.query_overlap(QUERIES["q1"]).id == "q1"
    assert index.passage_overlap(CORPUS["relevant"]) is None


def test_folders_that_are_no_benchmark(folder):
    none = "bread/qrels: no judgements there; they say which queries and documents are the test"
    missing = "gone: no such folder; a benchmark is a BEIR folder with queries.jsonl and qrels"
    assert refused(folder.parent / "gone") == missing
    assert refused(folder, "dev") == "bread/qrels/dev.tsv: no such split; there are: test"
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nelsewhere\trelevant\t1\n")
    assert refused(folder) == "bread/queries.jsonl: none of these queries is judged in bread/qrels"
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    assert refused(folder) == none
    (folder / "qrels/test.tsv").unlink()
    assert refused(folder) == refused(folder, "test") == none
    write_beir(folder, CORPUS, QUERIES, QRELS)
    (folder / "queries.jsonl").unlink()
    assert refused(folder).startswith("bread/queries.jsonl: no such file")


# ---- many queries --------------------------------------------------------------------


VOCABULARY = [f"{start}{vowel}{number}" for number in range(60) for start in "bdfgklmnpr" for vowel in "aeiou"]


def made_up(seed):
    """200 texts of 1 to 25 words, some words common and most rare, as in a language."""
    draw = random.Random(seed)
    weights = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]
    return [" ".join(draw.choices(VOCABULARY, weights, k=1 + number % 25)) for number in range(200)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    queries = {f"q{number}": text for number, text in enumerate(made_up(seed=11))}
    qrels = {query_id: {"d1": 1} for query_id in queries}
    return queries, Benchmarks.of([write_beir(tmp_path_factory.mktemp("many"), queries=queries, qrels=qrels)])


def test_every_planted_copy_is_found(many):
    queries, index = many
    for text in queries.values():
        assert index.query_overlap(text).share == 1.0
        assert index.query_overlap(f"{text.upper()}?").share == 1.0


def test_every_copy_with_one_word_changed_is_found(many):
    queries, index = many
    texts = [text for text in queries.values() if len(text.split()) >= 4]
    assert len(texts) == 176
    assert all(index.query_overlap(copy) for text in texts for copy in changed(text))


def test_other_queries_in_the_same_words_are_not_found(many):
    queries, index = many
    others = [text for text in made_up(seed=12) if text not in queries.values()]
    assert len(others) > 190
    assert not any(map(index.query_overlap, others))


# ---- the data of the project, where it is at hand ------------------------------------


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here; LIMRANK_SHARED_DATA names its folder")
    return path


def test_scifact():
    folder = shared("scifact")
    index = Benchmarks.of([folder], "test")
    queries = [query.text for query in beir.read_queries(folder / "queries.jsonl")]
    assert len(queries) == 300
    assert all(index.query_overlap(text).share == 1.0 for text in queries)
    assert all(index.query_overlap(copy) for text in queries for copy in changed(text))


def test_scifact_is_not_found_in_real_queries():
    index = Benchmarks.of([shared("scifact"), shared("cranfield")])
    source = shared("msmarco_seed_instructir")
    queries = [query.text for query in beir.read_queries(source / "queries.jsonl")]
    passages = [document.contents for document in beir.read_corpus(source / "corpus.jsonl")]
    assert not any(map(index.query_overlap, queries))
    assert not any(map(index.passage_overlap, passages[:500]))


def test_bright_queries_have_no_documents_here():
    folder = shared("bright_topics_qrels_runs") / "biology"
    index = Benchmarks.of([folder])
    assert "375 of 375 relevant documents are not there" in index.warnings[0]
    query = beir.read_queries(folder / "queries.jsonl")[0]
    assert index.query_overlap(query.text).id == query.query_id
