"""pydocs: the corpus is large and the same everywhere; the judgements fit it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys

import pytest

from limrank.data import pydocs
from limrank.errors import UserError

FINGERPRINT = """
import hashlib
from limrank.data import pydocs
print(hashlib.sha256(repr([(d.doc_id, d.title, d.text) for d in pydocs.documents()]).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def by_id():
    return {doc.doc_id: doc for doc in pydocs.documents()}


def judgements(split):
    return [(query, pydocs.qrels(split)[query.query_id]) for query in pydocs.queries(split)]


def test_thousands_of_documents_sorted_by_unique_ids():
    ids = [doc.doc_id for doc in pydocs.documents()]
    assert len(ids) >= 3000
    assert ids == sorted(set(ids))


def test_no_text_is_short_or_given_twice():
    texts = [doc.text for doc in pydocs.documents()]
    assert min(map(len, texts)) >= 40
    assert len(set(texts)) == len(texts)


def test_a_document_has_id_signature_and_docstring(by_id):
    merge = by_id["heapq.merge"]
    assert merge.title == "heapq.merge(*iterables, key=None, reverse=False)"
    assert merge.text.startswith("Merge multiple sorted inputs into a single sorted output.\n\nSimilar to")


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("str.split", "builtins.str.split"),
        ("open", "io.open"),
        ("random.sample", "random.Random.sample"),
        ("concurrent.futures.as_completed", "concurrent.futures._base.as_completed"),
        ("os.path.join", "posixpath.join"),
        ("functools.lru_cache", "re.functools.lru_cache"),
    ],
)
def test_a_thing_is_given_once_under_its_public_name(by_id, better, worse):
    assert better in by_id
    assert worse not in by_id


def test_private_and_special_names_are_left_out(by_id):
    assert [doc_id for doc_id in by_id if any(part.startswith("_") for part in doc_id.split("."))] == []


def test_nothing_of_this_process_or_machine_gets_in(by_id):
    contents = [doc.contents for doc in by_id.values()]
    assert not any(re.search(r" at 0x[0-9a-f]{6}", text) for text in contents)
    assert not any(sys.prefix in text or sys.base_prefix in text for text in contents)
    assert not any(os.environ["PATH"] in text for text in contents)


def test_another_process_with_another_hash_seed_sees_the_same():
    here = repr([(d.doc_id, d.title, d.text) for d in pydocs.documents()])
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-W", "error", "-c", FINGERPRINT],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()
    assert there.stderr == ""


def test_a_python_without_docstrings_still_has_the_corpus():
    code = "from limrank.data import pydocs; print(len(pydocs.documents()))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(pydocs.documents())


def test_splits_are_large_and_disjoint():
    ids = {split: [query.query_id for query in pydocs.queries(split)] for split in pydocs.SPLITS}
    texts = [query.text for split in pydocs.SPLITS for query in pydocs.queries(split)]
    assert len(ids["dev"]) >= 20 and len(ids["test"]) >= 40
    assert len(set(ids["dev"] + ids["test"])) == len(ids["dev"]) + len(ids["test"])
    assert len(set(texts)) == len(texts) >= 60


def test_every_query_is_judged_with_known_grades_and_one_that_satisfies():
    for split in pydocs.SPLITS:
        for query, grades in judgements(split):
            assert set(grades.values()) <= {1, 2}, query.query_id
            assert 2 in grades.values(), query.query_id


def test_many_queries_have_several_relevant_documents():
    several = [query for split in pydocs.SPLITS for query, grades in judgements(split) if len(grades) > 1]
    assert len(several) >= 50


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the judgements name the documents of Python 3.11")
def test_every_judged_document_exists(by_id):
    judged = {doc_id for split in pydocs.SPLITS for _, grades in judgements(split) for doc_id in grades}
    assert judged - by_id.keys() == set()


def test_no_query_gives_its_answer_away():
    for split in pydocs.SPLITS:
        for query, grades in judgements(split):
            words = set(re.findall(r"\w+", query.text.lower()))
            names = {doc_id.rpartition(".")[2].lower() for doc_id, grade in grades.items() if grade == 2}
            assert not words & names, query.query_id


def test_a_known_need_has_its_known_answer():
    found = next(query for query in pydocs.queries("test") if "several feeds" in query.text)
    assert pydocs.qrels("test")[found.query_id] == {"heapq.merge": 2}


def test_the_benchmark_is_complete_where_everything_exists(monkeypatch):
    entry = {"id": "q", "split": "test", "query": "need", "relevant": {"heapq.merge": 2}}
    monkeypatch.setattr(pydocs, "_read", lambda name: [entry])
    benchmark = pydocs.benchmark("test")
    assert benchmark.name == "pydocs/test"
    assert benchmark.documents == pydocs.documents()
    assert [(q.query_id, q.text) for q in benchmark.queries] == [("q", "need")]
    assert benchmark.qrels == {"q": {"heapq.merge": 2}}
    assert benchmark.warnings == []


def test_a_relevant_document_that_is_missing_is_reported_not_scored(monkeypatch):
    entries = [
        {"id": "part", "split": "test", "query": "a", "relevant": {"heapq.merge": 2, "heapq.no_such": 1}},
        {"id": "all", "split": "test", "query": "b", "relevant": {"no.such": 2}},
    ]
    monkeypatch.setattr(pydocs, "_read", lambda name: entries)
    benchmark = pydocs.benchmark("test")
    assert benchmark.qrels == {"part": {"heapq.merge": 2}}
    assert [query.query_id for query in benchmark.queries] == ["part"]
    assert [warning.split(": ")[0] for warning in benchmark.warnings] == ["part", "all", "all"]
    assert "heapq.no_such" in benchmark.warnings[0]
    assert "no.such" in benchmark.warnings[1]
    assert "dropped" in benchmark.warnings[2]


@pytest.mark.parametrize("ask", [pydocs.queries, pydocs.qrels, pydocs.benchmark])
def test_an_unknown_split_is_refused_with_the_known_ones(ask):
    with pytest.raises(UserError, match="'train'.*dev, test"):
        ask("train")


def test_seeds_are_short_needs_with_the_passage_that_answers(by_id):
    seeds = pydocs.seeds()
    assert len(seeds) >= 40
    assert len({seed.seed_id for seed in seeds}) == len({seed.query for seed in seeds}) == len(seeds)
    assert max(len(seed.query.split()) for seed in seeds) <= 10
    partial = next(seed for seed in seeds if seed.query == "freeze some arguments of a function")
    assert partial.passage == by_id["functools.partial"].contents


def test_seeds_share_nothing_with_the_test_split(by_id):
    seeds = pydocs.seeds()
    judged = {doc_id for grades in pydocs.qrels("test").values() for doc_id in grades}
    tested = {by_id[doc_id].contents for doc_id in judged & by_id.keys()}
    assert not {seed.passage for seed in seeds} & tested
    assert not {seed.query for seed in seeds} & {query.text for query in pydocs.queries("test")}


def test_a_seed_without_its_document_is_left_out_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(pydocs, "_read", lambda name: [{"id": "s", "query": "a", "doc": "no.such"}])
    assert pydocs.seeds() == []
    assert "no.such" in caplog.text
