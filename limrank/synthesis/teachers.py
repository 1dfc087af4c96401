"""Teachers: what grades a query's passage and its candidates (``synthesis.teacher``).

A teacher's scores are compared within a query only, and may be in any unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from limrank import models, prompts
from limrank.batch.manifest import read_manifest
from limrank.batch.rows import read_rows
from limrank.config import DEFAULT_SEED, TeacherConfig
from limrank.data.trec import read_run
from limrank.engines.base import Usage
from limrank.errors import UserError, first_line
from limrank.files import is_folder, path_of
from limrank.records import Document, Query
from limrank.scoring import prompt_query
from limrank.scoring.fusion import clipped_log_odds
from limrank.storage import Storage
from limrank.synthesis.embeddings import check_embedder, sentence_embeddings
from limrank.synthesis.grades import Grade, KeptGrades, Teacher, kept_usage
from limrank.synthesis.listwise import ListwiseTeacher, check_endpoint, check_listwise_prompt

_BATCH = 32
_MAX_TOKENS = 512


_ASKED_AT_ONCE = 256
"""Queries of a listwise teacher whose grades are written together: whoever pays for the answers loses no more."""


def open_teacher(config: TeacherConfig, storage: Storage | None = None, seed: int = DEFAULT_SEED) -> Teacher:
    """Raises UserError if a run cannot be read; models are loaded when they grade.

    Args:
        storage: keeps a model's grades, so that mining with other settings grades nothing a second time.
        seed: draws the order in which a listwise teacher sees passages.
    """
    if config.kind == "run":
        return RunTeacher.read(config.path)
    if config.kind == "listwise":
        listwise = ListwiseTeacher(config, seed)
        if storage is None:
            return listwise
        return KeptGrades(listwise, storage, _graded_by(config), whole_lists=True, at_once=_ASKED_AT_ONCE)
    model = EmbedderTeacher(config.model) if config.kind == "embedder" else CrossEncoderTeacher(config.model)
    return model if storage is None else KeptGrades(model, storage, _graded_by(config))


def _graded_by(config: TeacherConfig) -> str:
    """What kept grades depend on."""
    name = f"{config.kind} {models.fingerprint(config.model)}"
    if config.kind != "listwise":
        return name
    digest = hashlib.sha256(prompts.load(config.prompt).encode()).hexdigest()
    return f"{name} {digest} {config.window} {config.passage_words} {config.answer_tokens}"


def teacher_usage(config: TeacherConfig | None, storage: Storage) -> Usage:
    """The tokens of a listwise teacher's requests for the grades that are kept; zeros for any other teacher."""
    if config is None or config.kind != "listwise":
        return Usage()
    return kept_usage(storage, _graded_by(config))


def check_teacher(config: TeacherConfig) -> None:
    """Raises UserError for a teacher that would fail after everything is written."""
    check_teacher_files(config)
    if config.kind == "embedder":
        check_embedder(config.model, key="synthesis.teacher.model")
    elif config.kind == "cross_encoder":
        try:
            _logits(config.model, [("a query", "a passage")], device="cpu")
        except UserError:
            raise
        except Exception as error:  # a model of another kind may raise anything
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"synthesis.teacher.model {config.model}: cannot score a pair: {what}") from error
    elif config.kind == "listwise":
        check_endpoint(config)


def check_teacher_files(config: TeacherConfig) -> None:
    """The part of :func:`check_teacher` that loads no model and asks no endpoint."""
    if config.kind == "run":
        RunTeacher.read(config.path)
    elif config.kind == "listwise":
        check_listwise_prompt(config.prompt)


def teacher_name(config: TeacherConfig) -> str:
    """For rows and reports: a model's name, or the last component of a path."""
    return models.served_name(config.model) if config.model else path_of(config.path).name


@dataclass(frozen=True)
class EmbedderTeacher(Teacher):
    """The cosine of a query and a passage, each text embedded once."""

    model: str

    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        asked = [prompt_query(query) for query in queries]
        texts = list(dict.fromkeys([*asked, *(each.contents for found in passages for each in found)]))
        if not texts:
            return []
        vectors = dict(zip(texts, sentence_embeddings(self.model, texts), strict=True))
        return [
            [Grade(float(vectors[query] @ vectors[each.contents])) for each in found]
            for query, found in zip(asked, passages, strict=True)
        ]


@dataclass(frozen=True)
class CrossEncoderTeacher(Teacher):
    """The logit of a sequence classifier with one label, or the last one's log-odds against the first's with two."""

    model: str

    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        pairs = [
            (prompt_query(query), each.contents)
            for query, found in zip(queries, passages, strict=True)
            for each in found
        ]
        scores = iter(_logits(self.model, pairs))
        return [[Grade(next(scores)) for _ in found] for found in passages]


def _logits(model: str, pairs: Sequence[tuple[str, str]], *, device: str | None = None) -> list[float]:
    """The score of each pair."""
    import torch
    from transformers import AutoModelForSequenceClassification

    if not pairs:
        return []
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    directory = models.resolve(model)
    tokenizer = models.tokenizer(directory)
    classifier, loaded = AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    if lacking := sorted(loaded["missing_keys"]):
        raise UserError(f"synthesis.teacher.model {model}: is no cross-encoder: its weights lack {lacking[0]}")
    classifier.to(device).eval()
    if classifier.config.num_labels > 2:
        raise UserError(
            f"synthesis.teacher.model {model}: {classifier.config.num_labels} labels, and a cross-encoder has one or two"
        )
    scores = [0.0] * len(pairs)
    # Of similar length, a batch has little padding.
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        inputs = tokenizer(
            [pairs[index][0] for index in batch],
            [pairs[index][1] for index in batch],
            padding=True,
            truncation="longest_first",
            max_length=min(_MAX_TOKENS, tokenizer.model_max_length),
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            logits = classifier(**inputs).logits.float()
        found = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        for index, score in zip(batch, found.tolist(), strict=True):
            scores[index] = score
    return scores


@dataclass(frozen=True)
class RunTeacher(Teacher):
    """The scores of a run over ``candidates/``, by query id and document id."""

    grades: Mapping[str, Mapping[str, Grade]] = field(repr=False)

    @classmethod
    def read(cls, path: str) -> RunTeacher:
        """A TREC or JSON run; of a rerank job's run directory the log-odds of its scores, with their chains.

        Raises:
            UserError: there is no such file, it cannot be read, or the job there is another one or not finished.
        """
        if is_folder(path):
            return cls(_of_rerank_run(path))
        run = read_run(path)
        return cls(
            {query_id: {doc_id: Grade(score) for doc_id, score in found.items()} for query_id, found in run.items()}
        )

    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        found = [
            [self.grades.get(query.query_id, {}).get(each.doc_id) for each in candidates]
            for query, candidates in zip(queries, passages, strict=True)
        ]
        if queries and not any(grade for grades in found for grade in grades):
            raise UserError(
                "synthesis.teacher.path: no score for any of the candidates: the run should be over this run "
                "directory's candidates/"
            )
        return found


def _of_rerank_run(path: str) -> dict[str, dict[str, Grade]]:
    storage = Storage(path)
    manifest = read_manifest(storage)
    if manifest is None or manifest.job != "rerank":
        raise UserError(f"synthesis.teacher.path {path}: is not the run directory of a rerank job")
    if manifest.status != "done":
        raise UserError(f"synthesis.teacher.path {path}: that job is not finished: {manifest.status}")
    grades: dict[str, dict[str, Grade]] = {}
    for table in read_rows(storage, "rows"):
        for row in table.select(_columns(table.column_names)).to_pylist():
            if row["score"] is not None:
                # A calibration may make scores equal; pairs are ranked by the score before it.
                raw = row.get("raw_score")
                odds = clipped_log_odds(row["score"] if raw is None else raw)
                grade = Grade(odds, row["score"], row["reasoning"])
                grades.setdefault(row["query_id"], {})[row["doc_id"]] = grade
    return grades


def _columns(names: Sequence[str]) -> list[str]:
    wanted = ("query_id", "doc_id", "score", "reasoning", "raw_score")
    return [name for name in wanted if name in names]
