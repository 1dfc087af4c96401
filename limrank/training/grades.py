"""Graded labels in training files: the shapes of their records, and what is read from them.

With ``training.labels``, the shape of a file is the first of these whose keys are all in the first record (for
Parquet: in the columns). Every record may also have ``instruction``; other keys are ignored.

==========================================  ==================================================
``query, passage, label``                   pairs; the label is text or a number, such as a
                                            grade of BEIR's qrels
``query, passages, labels``                 lists, one record a query
``query, passage`` and ``teacher_score``    pairs that a teacher scored
or ``score``
``query, passages, scores``                 lists that a teacher scored
==========================================  ==================================================

``teacher.py`` says which label a teacher's score becomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from limrank.errors import UserError
from limrank.parsing import brief
from limrank.training.shapes import (
    SCORE_KEYS,
    TAKEN_BY,
    Passage,
    Shape,
    asking,
    listed,
    number_of,
    shown,
    text_of,
)


def graded_shape(keys: Sequence[str], what: str, labels: tuple[str, ...]) -> Shape:
    """The shape of records with these keys. Raises UserError if there is none; ``what`` names the keys."""
    shape = next((each for each in _shapes(labels) if set(each.needed) <= set(keys)), None)
    if shape is None:
        raise UserError(
            f"{what} {shown(keys)}: training.labels learns from query, passage and label (or score, or teacher_score), "
            "or from query, passages and labels (or scores)"
        )
    return shape


@cache
def _shapes(labels: tuple[str, ...]) -> tuple[Shape, ...]:
    def shape(*needed: str, read: Any) -> Shape:
        taken_by = () if "passages" in needed else TAKEN_BY
        return Shape(needed, ("instruction",), taken_by, needed[-1], partial(read, labels))

    return (
        shape("query", "passage", "label", read=_of_pair),
        shape("query", "passages", "labels", read=_of_list),
        *(shape("query", "passage", key, read=_of_scored_pair) for key in SCORE_KEYS),
        shape("query", "passages", "scores", read=_of_scored_list),
    )


def _of_pair(labels: tuple[str, ...], record: dict[str, Any], where: str, _: float | None) -> list[Passage]:
    if "label" not in record:
        raise UserError(f"{where}: label is missing")
    grade = grade_of(record["label"], "label", where, labels)
    return [_passage(labels, record, where)._replace(grade=grade)]


def _of_scored_pair(labels: tuple[str, ...], record: dict[str, Any], where: str, score: float | None) -> list[Passage]:
    return [_passage(labels, record, where)._replace(score=score)]


def _passage(labels: tuple[str, ...], record: dict[str, Any], where: str) -> Passage:
    query, passage = text_of(record, "query", where), text_of(record, "passage", where)
    instruction = text_of(record, "instruction", where, needed=False)
    return Passage((query, instruction), asking(query, instruction, passage, labels), None)


def _of_list(labels: tuple[str, ...], record: dict[str, Any], where: str, _: float | None) -> list[Passage]:
    asked = text_of(record, "query", where), text_of(record, "instruction", where, needed=False)
    return [
        Passage(asked, asking(*asked, text, labels), None, grade=grade_of(value, name, where, labels))
        for text, value, name in listed(record, "labels", where)
    ]


def _of_scored_list(labels: tuple[str, ...], record: dict[str, Any], where: str, _: float | None) -> list[Passage]:
    asked = text_of(record, "query", where), text_of(record, "instruction", where, needed=False)
    return [
        Passage(asked, asking(*asked, text, labels), None, number_of(value, name, where))
        for text, value, name in listed(record, "scores", where)
    ]


def grade_of(value: Any, key: str, where: str, labels: tuple[str, ...]) -> str:
    """The label that a value of a record names: by its text, or as a number with the label's value.

    Raises:
        UserError: it names none. The message has the labels.
    """
    if isinstance(value, bool):
        value = str(value).lower()
    known = _known(labels)
    found = (
        known.get(value.strip() if isinstance(value, str) else value) if isinstance(value, str | int | float) else None
    )
    if found is None:
        shown_value = "null" if value is None else brief(value, 40)
        raise UserError(f"{where}: {key} is {shown_value}: it should be one of training.labels: {', '.join(labels)}")
    return found


@cache
def _known(labels: tuple[str, ...]) -> dict[str | float, str]:
    """Each label by its text and, if it is a finite number, by that."""
    known: dict[str | float, str] = {label: label for label in labels}
    for label in labels:
        try:
            number = float(label)
        except ValueError:
            continue
        if math.isfinite(number):
            known.setdefault(number, label)
    return known
