"""Finds texts that repeat a benchmark's query, or a document that is judged relevant to one.

Training on such a text would teach what the benchmark asks. Case, punctuation, white space
and Unicode form do not matter; paraphrases and reordered words are not found.
:class:`~limrank.text.overlap.TextIndex` has the rule. In a script without spaces the rule counts
characters instead of words, and a run is twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limrank.data import beir, hub_benchmarks
from limrank.data.trec import read_qrels
from limrank.errors import UserError
from limrank.files import AnyPath, kind_of, path_of
from limrank.text.overlap import MIN_WORDS, TextIndex
from limrank.text.words import count, words

NAMED = "benchmark://"
"""Prefix of a benchmark that is given by name, not as a folder."""

QUERY_RUN = 8
"""A run of this many words quotes a query. Real passages shared runs of 7 words with unrelated
queries ("this is due to the fact that"), none of 8."""

DOCUMENT_RUN = 13
"""The run by which GPT-3's training data was checked (arXiv 2005.14165, appendix C). SciFact has
4,900 abstracts that are relevant to no query: 57 of them share a run of 8 words with a relevant one
("systematic review and meta analysis of randomised controlled"), one shares a run of 13."""

_Text = tuple[str, str, str]
"""(name of a benchmark, id, text) of one of its queries or documents."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A text repeats ``words`` words, in order, of the query or document ``id`` of ``benchmark``:
    a ``share`` in (0, 1] of its words. ``kind`` says which of the two it is."""

    benchmark: str
    kind: Literal["query", "document"]
    id: str
    words: int
    share: float

    def __str__(self) -> str:
        return f"{self.benchmark}, {self.kind} {self.id}: {self.share:.0%} of its words"


@dataclass(frozen=True)
class Benchmarks:
    """Texts that must not be trained on. Plain data, which can be pickled for a worker.

    ``warnings`` are sentences for the user about copies that cannot be found.
    """

    queries: _IndexedTexts
    documents: _IndexedTexts
    warnings: list[str]

    @classmethod
    def of(cls, sources: Iterable[str | AnyPath], split: str | None = None) -> Benchmarks:
        """The judged queries of benchmarks, and their relevant documents.

        Args:
            sources: BEIR folders, or ``benchmark://NAME`` for pydocs and for benchmarks of the hub
                (:data:`limrank.data.hub_benchmarks.NAMES`), the latter also with ``?revision=…``. A folder may
                lack ``corpus.jsonl``: only copies of its queries are then found, and a warning says so.
            split: the split of a folder whose judgements count; None: all but ``train``.

        Raises:
            UserError: a folder is missing, has no judgements (of that split), or none of its queries
                is judged; one of its files cannot be read; no benchmark has that name, or the hub
                does not have it.
        """
        queries: list[_Text] = []
        documents: list[_Text] = []
        warnings: list[str] = []
        for source in map(str, sources):
            if source.startswith(NAMED):
                of_queries, of_documents = _named(source.removeprefix(NAMED))
            else:
                folder = path_of(source)
                judged, relevant = _judgements(folder, split)
                of_queries, of_documents = _queries(folder, judged, warnings), _documents(folder, relevant, warnings)
            queries += of_queries
            documents += of_documents
            if short := sum(count(words(text)) < MIN_WORDS for _, _, text in of_queries):
                warnings.append(
                    f"{source}: {short} of {len(of_queries)} queries have fewer than {MIN_WORDS} words; of these "
                    "copies are found, and none with a word changed"
                )
        return cls(
            _IndexedTexts.of("query", queries, QUERY_RUN),
            _IndexedTexts.of("document", documents, DOCUMENT_RUN),
            warnings,
        )

    def overlap(self, text: str) -> Overlap | None:
        """The query, else the document, that ``text`` repeats; None if it repeats none."""
        return self.query_overlap(text) or self.passage_overlap(text)

    def example_overlap(self, query: str, instruction: str | None, passage: str) -> Overlap | None:
        """What a training example repeats: its texts are checked in order, and the first overlap is returned."""
        overlaps = (self.overlap(text) for text in (query, instruction, passage) if text)
        return next(filter(None, overlaps), None)

    def query_overlap(self, text: str) -> Overlap | None:
        """The query of which ``text`` repeats the largest share; the first of equals."""
        return self.queries.find(text)

    def passage_overlap(self, text: str) -> Overlap | None:
        """The relevant document of which ``text`` repeats the largest share; the first of equals."""
        return self.documents.find(text)


@dataclass(frozen=True)
class _IndexedTexts:
    """The queries, or the documents, of all benchmarks. ``ids`` are (benchmark, id) in the order of
    the index."""

    name: Literal["query", "document"]
    ids: list[tuple[str, str]]
    index: TextIndex

    @classmethod
    def of(cls, name: Literal["query", "document"], texts: list[_Text], run: int) -> _IndexedTexts:
        ids = [(benchmark, an_id) for benchmark, an_id, _ in texts]
        return cls(name, ids, TextIndex((text for _, _, text in texts), run))

    def find(self, text: str) -> Overlap | None:
        repeat = self.index.find(text)
        if repeat is None:
            return None
        benchmark, an_id = self.ids[repeat.index]
        return Overlap(benchmark, self.name, an_id, repeat.words, repeat.share)


def _judgements(folder: AnyPath, split: str | None) -> tuple[set[str], set[str]]:
    """The ids of the judged queries, and of the documents that are judged relevant."""
    if kind_of(folder) != "folder":
        raise UserError(f"{folder}: no such folder; a benchmark is a BEIR folder with queries.jsonl and qrels")
    files = _benchmark_files(folder) if split is None else [beir.find_qrels(folder, split)]
    judged: set[str] = set()
    relevant: set[str] = set()
    for file in filter(None, files):
        for query_id, grades in read_qrels(file).items():
            judged.add(query_id)
            relevant.update(doc_id for doc_id, grade in grades.items() if grade > 0)
    if not judged:
        raise UserError(f"{folder / 'qrels'}: no judgements there; they say which queries and documents are the test")
    return judged, relevant


def _benchmark_files(folder: AnyPath) -> list[Path]:
    """The judgements of all splits but ``train``, unless that is the only one."""
    files = beir.splits(folder)
    return [file for name, file in files.items() if name != "train" or len(files) == 1]


def _named(source: str) -> tuple[list[_Text], list[_Text]]:
    """The judged queries and relevant documents of a benchmark that limrank knows by name."""
    name, _, revision = source.partition("?revision=")
    if source == "pydocs":
        from limrank.data import pydocs

        benchmark = pydocs.benchmark("test")
    elif name in hub_benchmarks.NAMES:
        benchmark = hub_benchmarks.load(name, revision=revision or None)
    else:
        raise UserError(
            f"{NAMED}{source}: there is no such benchmark; there are: pydocs, {', '.join(hub_benchmarks.NAMES)}"
        )
    relevant = {doc_id for grades in benchmark.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    return (
        [(name, each.query_id, each.text) for each in benchmark.queries],
        [(name, each.doc_id, each.contents) for each in benchmark.documents if each.doc_id in relevant],
    )


def _queries(folder: AnyPath, judged: set[str], warnings: list[str]) -> list[_Text]:
    file = beir.find_file(folder, "queries.jsonl")
    found = [(folder.name, each.query_id, each.text) for each in beir.read_queries(file) if each.query_id in judged]
    if not found:
        raise UserError(f"{file}: none of these queries is judged in {folder / 'qrels'}")
    if lost := len(judged) - len(found):
        warnings.append(f"{file}: {lost} of {len(judged)} judged queries are not there; copies of them are not found")
    return found


def _documents(folder: AnyPath, relevant: set[str], warnings: list[str]) -> list[_Text]:
    file = next(
        (file for name in ("corpus.jsonl", "corpus.jsonl.gz") if kind_of(file := folder / name) == "file"), None
    )
    documents = beir.scan_corpus(file) if file else ()
    found = [(folder.name, each.doc_id, each.contents) for each in documents if each.doc_id in relevant]
    if lost := len(relevant) - len(found):
        warnings.append(
            f"{file or folder / 'corpus.jsonl'}: {lost} of {len(relevant)} relevant documents are not there; "
            "copies of them are not found"
        )
    return found
