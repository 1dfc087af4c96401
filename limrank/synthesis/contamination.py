"""Whether a text repeats a benchmark's query, or a document that is judged relevant to one.

Training on such a text would teach what the benchmark asks. Case, punctuation, white space
and Unicode form do not matter; paraphrases and words in another order are not found.
:class:`~limrank.synthesis.repeats.TextIndex` has the rule. In a script without spaces one
character may be another where elsewhere one word may, and a run is of twice as many.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from limrank.data import beir
from limrank.data.trec import read_qrels
from limrank.errors import UserError
from limrank.synthesis.repeats import TextIndex

QUERY_RUN = 8
"""Words in a row that are a quotation of a query. Real passages had runs of 7 in common with
queries that they have nothing to do with ("this is due to the fact that"), none of 8."""

DOCUMENT_RUN = 13
"""As GPT-3 was checked (arXiv 2005.14165, appendix C). Of SciFact's 4,900 other abstracts 57
share a run of 8 with one that is relevant to a query ("systematic review and meta analysis
of randomised controlled"), one a run of 13."""

_Text = tuple[str, str, str]
"""The name of a benchmark, and the id and the text of a query or a document of it."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """A text repeats the query or document ``id`` of ``benchmark``: ``words`` of its words,
    in order, a ``share`` in (0, 1] of them."""

    benchmark: str
    part: Literal["query", "document"]
    id: str
    words: int
    share: float

    def __str__(self) -> str:
        return f"{self.benchmark}, {self.part} {self.id}: {self.share:.0%} of its words"


@dataclass(frozen=True)
class Benchmarks:
    """What must not be trained on. Plain data, which can be pickled for a worker.

    ``warnings`` are sentences for a person, about what cannot be found.
    """

    queries: _Part
    documents: _Part
    warnings: list[str]

    @classmethod
    def of(cls, folders: Iterable[str | Path], split: str | None = None) -> Benchmarks:
        """The queries that BEIR folders judge, and the documents that they judge relevant.

        Args:
            split: whose judgements count; None is all that a folder has. A folder may lack
                ``corpus.jsonl``: only its queries are found then, and a warning says so.

        Raises:
            UserError: a folder is missing, has no judgements or none of that split, or has
                no query that they judge; or one of its files cannot be read.
        """
        queries: list[_Text] = []
        documents: list[_Text] = []
        warnings: list[str] = []
        for folder in map(Path, folders):
            judged, relevant = _judgements(folder, split)
            queries += _queries(folder, judged, warnings)
            documents += _documents(folder, relevant, warnings)
        return cls(_Part.of("query", queries, QUERY_RUN), _Part.of("document", documents, DOCUMENT_RUN), warnings)

    def overlap(self, text: str) -> Overlap | None:
        """What ``text`` repeats, a query before a document; None where nothing."""
        return self.query_overlap(text) or self.passage_overlap(text)

    def query_overlap(self, text: str) -> Overlap | None:
        """The query that ``text`` repeats most of, by share; at a tie the first."""
        return self.queries.find(text)

    def passage_overlap(self, text: str) -> Overlap | None:
        """The relevant document that ``text`` repeats most of, by share; at a tie the first."""
        return self.documents.find(text)


@dataclass(frozen=True)
class _Part:
    """One of the two things a benchmark is made of; ``ids``, each with its benchmark's name,
    are in the order of the index."""

    name: Literal["query", "document"]
    ids: list[tuple[str, str]]
    index: TextIndex

    @classmethod
    def of(cls, name: Literal["query", "document"], texts: list[_Text], run: int) -> _Part:
        ids = [(benchmark, an_id) for benchmark, an_id, _ in texts]
        return cls(name, ids, TextIndex((text for _, _, text in texts), run))

    def find(self, text: str) -> Overlap | None:
        repeat = self.index.find(text)
        if repeat is None:
            return None
        benchmark, an_id = self.ids[repeat.place]
        return Overlap(benchmark, self.name, an_id, repeat.words, repeat.share)


def _judgements(folder: Path, split: str | None) -> tuple[set[str], set[str]]:
    """The ids of the queries that are judged, and of the documents judged relevant."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a benchmark is a BEIR folder with queries.jsonl and qrels")
    files = list(beir.splits(folder).values()) if split is None else [beir.find_qrels(folder, split)]
    judged: set[str] = set()
    relevant: set[str] = set()
    for file in filter(None, files):
        for query_id, grades in read_qrels(file).items():
            judged.add(query_id)
            relevant.update(doc_id for doc_id, grade in grades.items() if grade > 0)
    if not judged:
        raise UserError(f"{folder / 'qrels'}: no judgements there; they say which queries and documents are the test")
    return judged, relevant


def _queries(folder: Path, judged: set[str], warnings: list[str]) -> list[_Text]:
    file = beir.find_file(folder, "queries.jsonl")
    found = [(folder.name, each.query_id, each.text) for each in beir.read_queries(file) if each.query_id in judged]
    if not found:
        raise UserError(f"{file}: none of these queries is judged in {folder / 'qrels'}")
    if lost := len(judged) - len(found):
        warnings.append(f"{file}: {lost} of {len(judged)} judged queries are not there; copies of them are not found")
    return found


def _documents(folder: Path, relevant: set[str], warnings: list[str]) -> list[_Text]:
    file = next((file for name in ("corpus.jsonl", "corpus.jsonl.gz") if (file := folder / name).is_file()), None)
    documents = beir.scan_corpus(file) if file else ()
    found = [(folder.name, each.doc_id, each.contents) for each in documents if each.doc_id in relevant]
    if lost := len(relevant) - len(found):
        warnings.append(
            f"{file or folder / 'corpus.jsonl'}: {lost} of {len(relevant)} relevant documents are not there; "
            "copies of them are not found"
        )
    return found
