"""The shapes of the records in a training file: which keys they have, and what is read from them.

The *shape* of a file is the first of these whose keys are all in the first record (for Parquet: in the
columns). Every record must have them; other keys are ignored.

==============================  ==========================================================
``prompt, completion``          as in the ``train.jsonl`` of ``limrank synthesize``
``instruction, output``         LLaMA-Factory's alpaca; ``input`` is appended to the
                                instruction after a newline
``query, passage, label``       pairs, such as the synthesizer's ``examples.parquet``; also
                                ``instruction``, ``reasoning`` and ``verdict``
==============================  ==========================================================

An objective that learns from a teacher's scores reads these keys, too:

==============================  ==========================================================
``teacher_score`` or ``score``  in any shape above; the first of the two that a record of
                                the file has. A record without a label needs it
``query, passage`` and a score  pairs without labels; also ``instruction``
``query, passages, scores``     lists, one record a query; also ``instruction``
==============================  ==========================================================

The shapes of graded labels (``training.labels``) are in ``grades.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

from limrank.config import ScoringConfig
from limrank.errors import UserError
from limrank.parsing import brief
from limrank.records import Query
from limrank.scoring import THINK_OPEN, completion, pair_text, prompt_template

PASSAGE_MARK = "\nPassage: "

SCORE_KEYS = ("teacher_score", "score")

TAKEN_BY = ("selected", "kept")
"""A record of pairs is taken if the first of these that the file has is true."""

_LARGEST = 1_000_000_000
"""No teacher's score is larger, of either sign. Sums of their squares stay finite."""

_TRUTHS = {"true": True, "false": False}
_COLUMNS_SHOWN = 12


class Passage(NamedTuple):
    """What a record says of one passage.

    ``written`` is what the model is to write, None if the passage has no label of true or false. ``score`` is the
    teacher's, None if it has none or none is read. ``grade`` is a graded label, None if it has none.
    """

    query: tuple[str, ...]
    prompt: str
    written: str | None
    score: float | None = None
    grade: str | None = None


class Shape(NamedTuple):
    """The keys of a shape, and its reader: ``(record, where, score) → passages``.

    ``written`` is the key of the completion. A record is taken if the first of ``taken_by`` that the
    file has is true.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    taken_by: tuple[str, ...]
    written: str
    read: Callable[[dict[str, Any], str, float | None], list[Passage]]

    @property
    def is_list(self) -> bool:
        """Whether a record holds all passages of a query."""
        return "passages" in self.needed

    @property
    def has_score(self) -> bool:
        """Whether a record is a pair that has a teacher's score."""
        return not set(SCORE_KEYS).isdisjoint(self.needed)

    def keys(self, scored: bool) -> set[str]:
        return {*self.needed, *self.optional, *self.taken_by, *(SCORE_KEYS if scored or self.has_score else ())}


def shape_of(keys: Sequence[str], what: str, scored: bool = False) -> Shape:
    """The shape of records with these keys. Raises UserError if there is none; ``what`` names the keys.

    Args:
        scored: whether a teacher's scores are read.
    """
    having = [shape for shape in (*_LABELLED, *_SCORED) if set(shape.needed) <= set(keys)]
    if having and (scored or having[0] in _LABELLED):
        return having[0]
    if having:
        raise UserError(
            f"{what} {shown(keys)}: a teacher's scores without labels: take training.objective=margin_mse or listnet, "
            "or give a label to each passage"
        )
    more = ", or a teacher's scores: query, passage and score, or query, passages and scores" if scored else ""
    raise UserError(
        f"{what} {shown(keys)} are not known: "
        f"give prompt and completion, instruction and output, or query, passage and label{more}"
    )


def shown(keys: Sequence[str]) -> str:
    """The first keys of a record, for messages."""
    more = ", …" if len(keys) > _COLUMNS_SHOWN else ""
    return ", ".join(f"{key:.40}" for key in keys[:_COLUMNS_SHOWN]) + more or "(none)"


class ScoreReader:
    """Reads the teacher's score of each record of a file, from the first of :data:`SCORE_KEYS` that a record has."""

    def __init__(self) -> None:
        self._key: str | None = None

    def read(self, record: dict[str, Any], where: str) -> float | None:
        """None if the score is missing or null. Raises UserError if it is no number, or has another key than
        the scores before it: these may be of another teacher."""
        found = next((key for key in SCORE_KEYS if key in record), None)
        self._key = self._key or found
        if found and self._key not in record:
            raise UserError(f"{where}: has {found}, and records before it have {self._key}: give one of them")
        value = record[self._key] if found else None
        return None if value is None else number_of(value, self._key, where)


# ---- records → query, prompt, what is written, score -----------------------------------


def _of_prompt(record: dict[str, Any], where: str, score: float | None) -> list[Passage]:
    prompt, written = _mark_in_prompt(text_of(record, "prompt", where), text_of(record, "completion", where))
    return [Passage(_asked(prompt), prompt, written, score)]


def _of_alpaca(record: dict[str, Any], where: str, score: float | None) -> list[Passage]:
    if lost := [key for key in ("system", "history") if record.get(key)]:
        raise UserError(
            f"{where}: {' and '.join(lost)}: a reranker is asked one thing, without any before it: "
            "put the text into instruction, or remove the key"
        )
    asked, more = text_of(record, "instruction", where), text_of(record, "input", where, needed=False)
    prompt, written = _mark_in_prompt(f"{asked}\n{more}" if more else asked, text_of(record, "output", where))
    if not prompt.endswith(THINK_OPEN):
        prompt = _marked(prompt)
    return [Passage(_asked(prompt), prompt, written, score)]


def _of_pair(record: dict[str, Any], where: str, score: float | None) -> list[Passage]:
    query, passage = text_of(record, "query", where), text_of(record, "passage", where)
    instruction = text_of(record, "instruction", where, needed=False)
    if score is not None and record.get("label") is None:
        return [Passage((query, instruction), asking(query, instruction, passage), None, score)]
    reasoning = text_of(record, "reasoning", where, needed=False)
    label = truth_of(record, "label", where)
    if record.get("verdict") is not None and truth_of(record, "verdict", where) != label:
        reasoning = ""
    prompt, written = _mark_in_prompt(asking(query, instruction, passage), completion(reasoning, label))
    return [Passage((query, instruction), prompt, written, score)]


def _of_scored_pair(record: dict[str, Any], where: str, score: float | None) -> list[Passage]:
    if score is None and record.get("label") is None:
        raise UserError(
            f"{where}: score is missing or null, and there is no label: give a number, or remove the record"
        )
    return _of_pair(record, where, score)


def _of_list(record: dict[str, Any], where: str, _: float | None) -> list[Passage]:
    query, instruction = text_of(record, "query", where), text_of(record, "instruction", where, needed=False)
    return [
        Passage((query, instruction), asking(query, instruction, text), None, number_of(score, name, where))
        for text, score, name in listed(record, "scores", where)
    ]


_PAIR_KEYS = ("instruction", "reasoning", "verdict")
_LABELLED = (
    Shape(("prompt", "completion"), (), (), "completion", _of_prompt),
    Shape(("instruction", "output"), ("input", "system", "history"), (), "output", _of_alpaca),
    Shape(("query", "passage", "label"), _PAIR_KEYS, TAKEN_BY, "reasoning", _of_pair),
)
_SCORED = (
    *(
        Shape(("query", "passage", key), ("label", *_PAIR_KEYS), TAKEN_BY, "reasoning", _of_scored_pair)
        for key in SCORE_KEYS
    ),
    Shape(("query", "passages", "scores"), ("instruction",), (), "scores", _of_list),
)


@cache
def pair_prompt(labels: tuple[str, ...] | None = None) -> str:
    """The template of a pair's prompt: the one that scoring uses for these labels. None: true and false."""
    return prompt_template(ScoringConfig(labels=labels))


def asking(query: str, instruction: str, passage: str, labels: tuple[str, ...] | None = None) -> str:
    """The prompt of a pair."""
    return pair_text(pair_prompt(labels), Query("", query, instruction), passage)


def _mark_in_prompt(prompt: str, written: str) -> tuple[str, str]:
    """Prompt and completion with the ``<think>`` between them at the end of the prompt: only there it is
    a token. Their joint text is unchanged, except for one newline before ``<think>``, and none between
    two of them."""
    head, thought = prompt.rstrip(), written.lstrip()
    if thought.startswith(THINK_OPEN):
        return head if head.endswith(THINK_OPEN) else _marked(prompt), thought.removeprefix(THINK_OPEN)
    if head.endswith(THINK_OPEN):
        return head, prompt[len(head) :] + written
    return prompt, written


def _marked(prompt: str) -> str:
    return prompt.rstrip("\n") + f"\n{THINK_OPEN}"


def before_passage(prompt: str) -> str | None:
    """The prompt up to its passage; None if it has no mark of one."""
    before, mark, _ = prompt.partition(PASSAGE_MARK)
    return before if mark else None


def _asked(prompt: str) -> tuple[str, ...]:
    before = before_passage(prompt)
    return (prompt if before is None else before,)


# ---- values ----------------------------------------------------------------------------


def text_of(record: dict[str, Any], key: str, where: str, *, needed: bool = True) -> str:
    """The text of a key; "" for a blank one. Raises UserError if it is none, or is ``needed`` and blank."""
    value = record.get(key)
    if value is None and not needed:
        return ""
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    return _checked(value, key, where, needed)


def _checked(value: Any, key: str, where: str, needed: bool) -> str:
    if not isinstance(value, str) or (needed and not value.strip()):
        found = "null" if value is None else "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise UserError(f"{where}: {key} is {found}: it should be a text{' that is not empty' if needed else ''}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {key} holds half a surrogate pair, which is no character") from None
    return value if value.strip() else ""


def truth_of(record: dict[str, Any], key: str, where: str) -> bool:
    """True or false of a key. Raises UserError for anything else."""
    value = record.get(key)
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, int | float) and value in (0, 1):
        truth = bool(value)
    if truth is None:
        raise UserError(f"{where}: {key} is {brief(value, 40)}: it should be true or false (1 or 0)")
    return truth


def number_of(value: Any, key: str, where: str) -> float:
    """A teacher's score. Raises UserError if it is no number, or too large a one."""
    # The comparison is false for NaN, and holds for integers that no float can be.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_LARGEST <= value <= _LARGEST:
        found = "null" if value is None else brief(value, 40)
        raise UserError(f"{where}: {key} is {found}: it should be a number, between -{_LARGEST} and {_LARGEST}")
    return float(value)


def listed(record: dict[str, Any], key: str, where: str) -> Iterator[tuple[str, Any, str]]:
    """The passages of a record, each with its element of the list ``key`` and that element's name for messages.

    Raises:
        UserError: one of the two is no list, their lengths differ, or a passage is no text.
    """
    passages, values = _list(record, "passages", where), _list(record, key, where)
    if len(passages) != len(values):
        raise UserError(f"{where}: passages has {len(passages)} elements, and {key} has {len(values)}: give one each")
    for number, (passage, value) in enumerate(zip(passages, values, strict=True), 1):
        text = _checked(passage, f"element {number} of passages", where, needed=True)
        yield text, value, f"element {number} of {key}"


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key)
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, list) or not value:
        found = "null" if value is None else "empty" if value == [] else f"of type {type(value).__name__}"
        raise UserError(f"{where}: {key} is {found}: it should be a list, with an element for each passage")
    return value
