import gzip
import logging
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import REPOSITORY
from limrank.data import pydocs
from limrank.data.seeds import fingerprint, load_corpus, load_judged, load_personas, load_seeds
from limrank.errors import UserError
from limrank.records import Document, Persona, Seed

SHARED = Path(os.environ.get("LIMRANK_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")

CORPUS = """\
{"_id": "d1", "title": "Bread", "text": "Dough rises."}
{"_id": "d2", "text": "Yeast feeds on sugar."}
{"_id": "d3", "text": "Salt slows it."}
{"_id": "empty", "text": " "}
"""
QUERIES = """\
{"_id": "q2", "text": "why does dough rise"}
{"_id": "q1", "text": "bread"}
{"_id": "only-irrelevant", "text": "cake"}
{"_id": "no-passage", "text": "jam"}
{"_id": "blank", "text": " "}
{"_id": "unjudged", "text": "tea"}
"""
QRELS = """\
query-id	corpus-id	score
q1	d3	1
q1	d1	1
q2	gone	3
q2	d3	1
q2	d2	2
only-irrelevant	d1	0
no-passage	gone	1
no-passage	empty	1
blank	d1	1
"""
SEEDS = """\
{"query": "why does dough rise", "passage": "Yeast feeds on sugar.", "note": "no id: line 1"}

{"query": "what slows dough", "passage": "Salt slows it.", "id": 7}
{"query": "what is yeast fed", "passage": "Yeast feeds on sugar.", "seed_id": "yeast", "id": "not this"}
{"query": "bread", "passage": "Dough rises.", "seed_id": null, "id": null}
"""


def written(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refused(load, source):
    """The one line of the UserError, without the folder of the file."""
    with pytest.raises(UserError) as error:
        load(source)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{Path(source).parent}{os.sep}", "")


@pytest.fixture
def folder(tmp_path):
    written(tmp_path / "bread/corpus.jsonl", CORPUS)
    written(tmp_path / "bread/queries.jsonl", QUERIES)
    written(tmp_path / "bread/qrels/test.tsv", QRELS)
    return tmp_path / "bread"


# ---- Seeds ---------------------------------------------------------------------------


def test_seeds_of_pydocs():
    assert load_seeds("pydocs") == pydocs.seeds()
    assert load_corpus("pydocs") == pydocs.documents()


def test_seeds_of_a_beir_folder_have_the_highest_graded_passage_that_exists(folder, caplog):
    with caplog.at_level(logging.WARNING):
        seeds = load_seeds(str(folder))
    assert seeds == [
        Seed("q2", "why does dough rise", "Yeast feeds on sugar."),  # grade 2; grade 3 is not in the corpus
        Seed("q1", "bread", "Salt slows it."),  # of two with grade 1 the one judged first
    ]
    # "no-passage" and "blank"; nobody ever judged anything relevant to the others.
    assert "bread: 2 judged queries left out" in caplog.text


def test_seed_passage_is_title_and_text(folder):
    written(folder / "qrels/test.tsv", "q1\td1\t1\n")
    assert load_seeds(str(folder)) == [Seed("q1", "bread", "Bread Dough rises.")]


@pytest.mark.parametrize(
    ("splits", "taken"),
    [
        (["dev", "test", "train"], "train"),
        (["dev", "test"], "test"),
        (["dev", "zoo", "alpha.tsv.gz"], "alpha"),
    ],
)
def test_split_of_a_beir_folder(folder, splits, taken):
    (folder / "qrels/test.tsv").unlink()
    for split in splits:
        name = split.removesuffix(".tsv.gz")
        judgement = f"{'q1' if name == taken else 'q2'}\td1\t1\n"
        if split == name:
            written(folder / f"qrels/{name}.tsv", judgement)
        else:
            (folder / f"qrels/{split}").write_bytes(gzip.compress(judgement.encode()))
    assert [seed.seed_id for seed in load_seeds(str(folder))] == ["q1"]


def test_seeds_of_a_jsonl_file(tmp_path):
    plain = written(tmp_path / "seeds.jsonl", SEEDS)
    zipped = tmp_path / "seeds.jsonl.gz"
    zipped.write_bytes(gzip.compress(SEEDS.encode()))
    expected = [
        Seed("1", "why does dough rise", "Yeast feeds on sugar."),
        Seed("7", "what slows dough", "Salt slows it."),
        Seed("yeast", "what is yeast fed", "Yeast feeds on sugar."),
        Seed("5", "bread", "Dough rises."),
    ]
    assert load_seeds(plain) == load_seeds(str(zipped)) == expected


def test_seeds_of_a_parquet_file(tmp_path):
    path = str(tmp_path / "seeds.parquet")
    rows = {"passage": ["Dough rises.", "Salt slows it."], "query": ["bread", "salt"], "embedding": [[0.5], [0.25]]}
    pq.write_table(pa.table(rows), path)
    assert load_seeds(path) == [Seed("1", "bread", "Dough rises."), Seed("2", "salt", "Salt slows it.")]
    pq.write_table(pa.table(rows | {"id": pa.array([30, None])}), path)
    assert [seed.seed_id for seed in load_seeds(path)] == ["30", "2"]


def test_which_seeds_are_taken_is_drawn_by_the_run_s_seed(tmp_path):
    lines = [f'{{"query": "q{n}", "passage": "p{n}"}}\n' for n in range(1, 8)]
    path = written(tmp_path / "seeds.jsonl", "".join(lines))

    def ids(max_seeds, seed=1):
        return [each.seed_id for each in load_seeds(path, max_seeds, seed=seed)]

    assert ids(3) == ids(3) == sorted(ids(3)) and len(set(ids(3))) == 3
    assert {tuple(ids(3, seed)) for seed in range(8)} != {tuple(ids(3))}
    assert set().union(*(ids(1, seed) for seed in range(100))) == set("1234567")
    assert ids(7) == ids(8) == list("1234567")


def test_corpus_of_a_beir_folder_is_all_of_it(folder):
    assert [document.doc_id for document in load_corpus(str(folder))] == ["d1", "d2", "d3", "empty"]


def test_corpus_of_a_file_has_a_passage_once(tmp_path):
    path = written(tmp_path / "seeds.jsonl", SEEDS)
    assert load_corpus(path) == [
        Document("1", "Yeast feeds on sugar."),  # and not again for seed "yeast"
        Document("7", "Salt slows it."),
        Document("5", "Dough rises."),
    ]


def test_all_relevant_documents_of_a_query_are_known(folder, tmp_path):
    found = load_judged(str(folder))
    assert found["q1"] == {"d1", "d3"} and found["q2"] == {"gone", "d2", "d3"} and found["only-irrelevant"] == set()
    assert load_judged(written(tmp_path / "seeds.jsonl", SEEDS)) == load_judged("pydocs") == {}


@pytest.mark.parametrize("load", [load_seeds, load_corpus])
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"query": "a"', "not JSON: Expecting ',' delimiter (column 14)"),
        ('["a", "b"]', "not a JSON object, but list"),
        ('{"passage": "b"}', "query is missing"),
        ('{"query": "a", "passage": null}', "passage is missing"),
        ('{"query": ["a"], "passage": "b"}', "query is of type list; it should be a string"),
        ('{"query": "a", "passage": " "}', "passage is empty"),
        ('{"query": "a", "passage": "b", "id": " "}', "id is empty"),
        ('{"query": "a", "passage": "b", "seed_id": true}', "seed_id is of type bool; it should be a string"),
        ('{"query": "a", "passage": "b", "seed_id": 1.5}', "seed_id is of type float; it should be a string"),
        ('{"query": "a", "passage": "b", "id": 20}', "id '20' is there twice: first at seeds.jsonl:1"),
    ],
)
def test_bad_line_is_named(tmp_path, load, line, complaint):
    path = written(tmp_path / "seeds.jsonl", f'{{"query": "a", "passage": "b", "seed_id": "20"}}\n{line}\n')
    assert refused(load, path) == f"seeds.jsonl:2: {complaint}"


def test_given_id_that_is_the_number_of_another_line(tmp_path):
    path = written(tmp_path / "seeds.jsonl", '{"query": "a", "passage": "b", "id": 2}\n{"query": "a", "passage": "b"}')
    complaint = "the number '2', in place of a missing id, is there twice: first at seeds.jsonl:1"
    assert refused(load_seeds, path) == f"seeds.jsonl:2: {complaint}"


def test_bad_parquet_row_is_named(tmp_path):
    path = str(tmp_path / "seeds.parquet")
    pq.write_table(pa.table({"query": ["a", "b"], "passage": ["c", None]}), path)
    assert refused(load_seeds, path) == "seeds.parquet: row 2: passage is missing"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    assert refused(load_seeds, path) == "seeds.parquet: row 1: query is missing"
    pq.write_table(pa.table({"query": ["a", "b"], "passage": ["c", "d"], "id": ["x", "x"]}), path)
    assert refused(load_seeds, path) == "seeds.parquet: row 2: id 'x' is there twice: first at seeds.parquet: row 1"


def test_what_is_not_parquet_is_refused(tmp_path):
    path = written(tmp_path / "seeds.parquet", SEEDS)
    assert refused(load_seeds, path).startswith("seeds.parquet: cannot be read as Parquet: Parquet magic bytes")
    text = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"query": text, "passage": ["b"]}), path)
    assert refused(load_seeds, path).startswith("seeds.parquet: cannot be read as Parquet: 'utf-8' codec")


@pytest.mark.parametrize("load", [load_seeds, load_corpus])
def test_files_that_are_no_seeds(tmp_path, load):
    missing = (
        "no such file or folder; seeds are pydocs, a BEIR folder, a .jsonl or .parquet file, a saved dataset, "
        "or hub://OWNER/NAME"
    )
    assert refused(load, str(tmp_path / "gone.jsonl")) == f"gone.jsonl: {missing}"
    assert refused(load, str(tmp_path / "gone")) == f"gone: {missing}"
    unknown = "seeds are not read from this kind of file; give a .jsonl or a .parquet file"
    assert refused(load, written(tmp_path / "seeds.csv", "query,passage\n")) == f"seeds.csv: {unknown}"
    assert refused(load, written(tmp_path / "seeds.jsonl", "\n\n")) == "seeds.jsonl: there are no seeds"
    empty = str(tmp_path / "empty.parquet")
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "passage": pa.array([], pa.string())}), empty)
    assert refused(load, empty) == "empty.parquet: there are no seeds"


def test_folders_that_are_no_seeds(folder):
    written(folder / "qrels/test.tsv", "q1\tgone\t1\n")
    assert refused(load_seeds, str(folder)) == (
        "bread/qrels/test.tsv: there are no seeds: no query of queries.jsonl has a relevant passage in corpus.jsonl; "
        "give the queries and passages of this split"
    )
    written(folder / "qrels/test.tsv", "q1\td1\n")
    assert refused(load_seeds, str(folder)).startswith("bread/qrels/test.tsv:1: 2 columns")
    (folder / "qrels/test.tsv").unlink()
    assert refused(load_seeds, str(folder)) == (
        "bread/qrels: no judgements (.tsv) there; a seed is a query with a relevant passage"
    )
    written(folder / "queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    written(folder / "qrels/test.tsv", QRELS)
    assert refused(load_seeds, str(folder)) == "bread/queries.jsonl:2: _id 'q1' is there twice: first on line 1"
    (folder / "corpus.jsonl").unlink()
    complaint = "bread/corpus.jsonl: no such file; a BEIR folder has corpus.jsonl and queries.jsonl"
    assert refused(load_seeds, str(folder)) == refused(load_corpus, str(folder)) == complaint


# ---- Personas ------------------------------------------------------------------------


def test_built_in_personas():
    personas = load_personas(None)
    texts = [persona.text for persona in personas]
    assert len(texts) >= 100
    assert [persona.persona_id for persona in personas] == [str(n) for n in range(1, len(texts) + 1)]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 200
    assert all(text == text.strip() for text in texts)
    openings = Counter(" ".join(text.split()[:2]).lower() for text in texts)
    assert max(openings.values()) <= 3


def test_personas_of_a_text_file_are_numbered_by_line(tmp_path):
    path = written(tmp_path / "personas.txt", "A nurse \n\n  A beekeeper, {not} JSON\n")
    assert load_personas(path) == [Persona("1", "A nurse"), Persona("3", "A beekeeper, {not} JSON")]


def test_personas_of_a_jsonl_file(tmp_path):
    path = written(
        tmp_path / "personas.jsonl",
        '{"id": 0, "persona": "A nurse"}\n\n{"persona": " A beekeeper"}\n{"id": "p", "persona": "A poet"}\n',
    )
    assert load_personas(path) == [Persona("0", "A nurse"), Persona("3", "A beekeeper"), Persona("p", "A poet")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("A nurse", "not JSON: Expecting value (column 1)"),
        ('{"text": "A poet"}', "persona is missing"),
        ('{"persona": 3}', "persona is of type int; it should be a string"),
        ('{"persona": ""}', "persona is empty"),
        ('{"persona": "A poet", "id": ""}', "id is empty"),
        ('{"persona": "A poet", "id": []}', "id is of type list; it should be a string"),
        ('{"persona": "A poet", "id": "0"}', "id '0' is there twice: first at personas.jsonl:1"),
    ],
)
def test_bad_persona_line_is_named(tmp_path, line, complaint):
    path = written(tmp_path / "personas.jsonl", f'{{"id": 0, "persona": "A nurse"}}\n{line}\n')
    assert refused(load_personas, path) == f"personas.jsonl:2: {complaint}"


def test_files_that_are_no_personas(tmp_path):
    assert refused(load_personas, str(tmp_path / "gone.txt")) == "gone.txt: no such file"
    assert refused(load_personas, written(tmp_path / "blank.txt", " \n\n")) == "blank.txt: there are no personas"
    assert refused(load_personas, written(tmp_path / "e.jsonl", "")) == "e.jsonl: there are no personas"
    (tmp_path / "bytes.txt").write_bytes(b"A nurse\n\xff\n")
    assert refused(load_personas, str(tmp_path / "bytes.txt")) == "bytes.txt:2: not UTF-8 text"


# ---- Fingerprint ---------------------------------------------------------------------


def test_fingerprint_is_of_the_content(tmp_path):
    here, there = written(tmp_path / "a.jsonl", SEEDS), written(tmp_path / "elsewhere/b.jsonl", SEEDS)
    personas = [Persona("1", "A nurse"), Persona("2", "A poet")]
    same = fingerprint(load_seeds(here), personas)
    assert same == fingerprint(load_seeds(there), iter(personas))
    assert len(same) == 64


def test_fingerprint_changes_with_every_field():
    variants = [
        ([Seed("1", "ab", "c")], [Persona("1", "A nurse")]),
        ([Seed("2", "ab", "c")], [Persona("1", "A nurse")]),
        ([Seed("1", "a", "bc")], [Persona("1", "A nurse")]),
        ([Seed("1", "ab", "d")], [Persona("1", "A nurse")]),
        ([Seed("1", "ab", "c")], [Persona("2", "A nurse")]),
        ([Seed("1", "ab", "c")], [Persona("1", "A poet")]),
        ([Seed("1", "ab", "c")], []),
        ([], [Persona("1", "A nurse")]),
        ([Seed("1", "ab", "c"), Seed("2", "ab", "c")], []),
        ([Seed("2", "ab", "c"), Seed("1", "ab", "c")], []),
    ]
    assert len({fingerprint(seeds, personas) for seeds, personas in variants}) == len(variants)


# ---- The data of the project, where it is at hand ------------------------------------


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here; LIMRANK_SHARED_DATA names its folder")
    return str(path)


def test_msmarco_seeds():
    source = shared("msmarco_seed_instructir")
    seeds = load_seeds(source)
    assert len(seeds) == 1743
    assert seeds[0].query == "how much is a cost to run disneyland"
    assert seeds[0].passage.startswith("Disney's Theme Parks had an operating cost of 571 million dollars")
    contents = {document.contents for document in load_corpus(source)}
    assert all(seed.passage in contents for seed in seeds)


def test_many_personas():
    personas = load_personas(shared("personas/personas.jsonl"))
    assert len(personas) == 5000
    assert personas[2] == Persona("2", "A WWII veteran who didn't finish high school.")


def test_seeds_of_a_saved_dataset(tmp_path):
    from datasets import Dataset, DatasetDict

    saved = Dataset.from_dict({"id": [7, 8], "query": ["a", "b"], "passage": ["one", "two"], "other": [0.5, 0.5]})
    saved.save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(str(tmp_path / "two"))
    DatasetDict({"test": saved}).save_to_disk(str(tmp_path / "three"))
    expected = [Seed("7", "a", "one"), Seed("8", "b", "two")]
    assert load_seeds(str(tmp_path / "one")) == load_seeds(str(tmp_path / "two")) == expected
    assert [document.contents for document in load_corpus(str(tmp_path / "two"))] == ["one", "two"]
    with pytest.raises(UserError, match="no split 'train'; there are: test"):
        load_seeds(str(tmp_path / "three"))
