"""Reads training files of the common shapes.

An example is a prompt and its completion: a chain of thought and a label (the paper's format). The
*shape* of a file is the first of these whose keys are all in the first record (for Parquet: in the
columns). Every record must have them; other keys are ignored.

==============================  ==========================================================
``prompt, completion``          as in the ``train.jsonl`` of ``limrank synthesize``
``instruction, output``         LLaMA-Factory's alpaca; ``input`` is appended to the
                                instruction after a newline
``query, passage, label``       pairs, such as the synthesizer's ``examples.parquet``; also
                                ``instruction``, ``reasoning`` and ``verdict``
==============================  ==========================================================

The *files*: JSON, either an object a line or one array (``.jsonl``, ``.json``, also ``.gz``);
Parquet, one file or a folder of ``*.parquet`` in the order of their names; a folder that
``datasets`` saved, of several splits ``train``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from limrank import prompts
from limrank.data import beir
from limrank.data.benchmarks import file_fingerprint
from limrank.data.tables import open_tables
from limrank.errors import UnavailableError, UserError, first_line
from limrank.files import is_folder, kind_of, opened
from limrank.parsing import brief, clipped, parse_json_array
from limrank.records import Query
from limrank.scoring import LABELS, THINK_CLOSE, THINK_OPEN, completion, pair_text

PAIR_PROMPT = "relevance"
"""The scoring prompt that turns a pair into a prompt."""


LONGEST_ARRAY = 1 << 30
"""Bytes of a file that is one JSON array, unpacked: it is read as a whole."""

_KEY = "training.train_file"
_BLANKS = b" \t\r\n"
_COMPLETION = re.compile(rf"(?P<chain>.*){THINK_CLOSE}(?P<label>{'|'.join(LABELS)})\s*", re.DOTALL)
_LABELS = {label: label for label in LABELS}
PASSAGE_MARK = "\nPassage: "
_TRUTHS = {"true": True, "false": False}
_COLUMNS_SHOWN = 12

_Rows = Iterator[tuple[int, str, dict[str, Any]]]
"""``(1-based number, location for messages, record)``."""


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a training file.

    ``line`` is the 1-based number of its line, element or row (over all files of a folder; skipped rows
    count). ``chain`` is the text before ``</think>``, ``label`` one of :data:`limrank.scoring.LABELS`.
    ``query`` is equal for examples that ask the same: query and instruction of a pair, else the text
    before the passage.
    """

    line: int
    prompt: str
    chain: str
    label: str
    query: tuple[str, ...]


def read_examples(path: str | Path) -> list[Example]:
    """Every example of a training file or folder, in its order; blank lines are skipped.

    A ``<think>`` that begins a completion or output belongs to the prompt. An alpaca prompt always ends
    in it, on a line of its own. Pairs are taken if ``selected`` is true or, without that key, if ``kept``
    is true. A chain whose ``verdict`` is not the label is left out: a chain must end in its label.

    Raises:
        UnavailableError: there is no such file.
        UserError: the file cannot be read, has no kind or shape of the above, has no example, or a value
            is missing or invalid. The message names the file, and the line, element or row.
    """
    path = Path(path)
    rows = _rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no examples")
    _, where, record = first
    shape = _shape(list(record), f"{where}: keys")
    wanted = next((key for key in shape.taken_by if key in record), None)
    # The examples of a query share one text in memory.
    queries: dict[tuple[str, ...], tuple[str, ...]] = {}
    examples = []
    for number, where, record in chain([first], rows):
        if wanted and not _truth(record, wanted, where):
            continue
        query, prompt, completed = shape.read(record, where)
        thought, label = _split_completion(completed, shape.written, where)
        examples.append(Example(number, prompt, thought, label, queries.setdefault(query, query)))
    if not examples:
        raise UserError(f"{path}: holds no examples: there is none whose {wanted} is true")
    return examples


def fingerprint(path: str | Path) -> Any:
    """The SHA-256 (hex) of a training file, or a list of those of a folder's files. Raises UserError as
    :func:`read_examples` does."""
    path = Path(path)
    return open_tables(str(path), "train", _KEY)[1] if is_folder(path) else file_fingerprint(path)


# ---- files → records -----------------------------------------------------------------


def _rows(path: Path) -> _Rows:
    kind = kind_of(path)
    if kind == "folder" or (kind == "file" and path.suffix == ".parquet"):
        return _arrow_rows(path)
    if kind == "missing":
        raise UnavailableError(f"{_KEY}: {path}: no such file or folder")
    if Path(path.name.removesuffix(".gz")).suffix not in (".json", ".jsonl"):
        raise UserError(
            f"{_KEY}: {path}: not read from this kind of file: give .jsonl, .json (also .gz), .parquet, "
            "a folder of *.parquet or a saved dataset"
        )
    return _array_rows(path) if _is_array(path) else _line_rows(path)


def _is_array(path: Path) -> bool:
    """Whether the first character of a file that is not a blank is ``[``."""
    with opened(path) as file:
        block = file.read(1 << 16).removeprefix(codecs.BOM_UTF8)
        while block and not block.strip(_BLANKS):
            block = file.read(1 << 16)
    return block.lstrip(_BLANKS).startswith(b"[")


def _array_rows(path: Path) -> _Rows:
    with opened(path) as file:
        data = file.read(LONGEST_ARRAY + 1)
    if len(data) > LONGEST_ARRAY:
        raise UserError(
            f"{path}: an array of more than {LONGEST_ARRAY >> 20} MiB: give JSON Lines, which are read a line at a time"
        )
    yield from parse_json_array(data, str(path))


def _line_rows(path: Path) -> _Rows:
    for number, record in beir.read_jsonl(path):
        yield number, f"{path}:{number}", record


def _arrow_rows(path: Path) -> _Rows:
    before = 0
    for table in open_tables(str(path), "train", _KEY)[0]:
        # Only the columns of the shape: others may be large, such as embeddings.
        shape = _shape(table.schema.names, f"{table.name}: columns")
        columns = [name for name in table.schema.names if name in shape.keys]
        number = 0
        for batch in table.batches(columns):
            for record in _records(batch, table.name, number):
                number += 1
                yield before + number, f"{table.name}: row {number}", record
        before += number


def _records(batch: Any, name: str, before: int) -> Iterable[dict[str, Any]]:
    """The rows of an Arrow batch; ``before`` rows precede it."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):
        return _records_one_by_one(batch, name, before)


def _records_one_by_one(batch: Any, name: str, before: int) -> Iterator[dict[str, Any]]:
    for index in range(batch.num_rows):
        try:
            (record,) = batch.slice(index, 1).to_pylist()
        except UnicodeDecodeError:
            raise UserError(f"{name}: row {before + index + 1}: not UTF-8 text") from None
        except (ValueError, OverflowError) as error:
            raise UserError(f"{name}: row {before + index + 1}: cannot be read: {clipped(first_line(error))}") from None
        yield record


# ---- records → query, prompt and completion ------------------------------------------


def _of_prompt(record: dict[str, Any], where: str) -> tuple[tuple[str, ...], str, str]:
    prompt, written = _mark_in_prompt(_text(record, "prompt", where), _text(record, "completion", where))
    return _asked(prompt), prompt, written


def _of_alpaca(record: dict[str, Any], where: str) -> tuple[tuple[str, ...], str, str]:
    if lost := [key for key in ("system", "history") if record.get(key)]:
        raise UserError(
            f"{where}: {' and '.join(lost)}: a reranker is asked one thing, without any before it: "
            "put the text into instruction, or remove the key"
        )
    asked, more = _text(record, "instruction", where), _text(record, "input", where, needed=False)
    prompt, written = _mark_in_prompt(f"{asked}\n{more}" if more else asked, _text(record, "output", where))
    if not prompt.endswith(THINK_OPEN):
        prompt = _marked(prompt)
    return _asked(prompt), prompt, written


def _of_pair(record: dict[str, Any], where: str) -> tuple[tuple[str, ...], str, str]:
    query, passage = _text(record, "query", where), _text(record, "passage", where)
    instruction = _text(record, "instruction", where, needed=False)
    reasoning = _text(record, "reasoning", where, needed=False)
    label = _truth(record, "label", where)
    if record.get("verdict") is not None and _truth(record, "verdict", where) != label:
        reasoning = ""
    prompt = pair_text(prompts.load(PAIR_PROMPT), Query("", query, instruction), passage)
    return (query, instruction), *_mark_in_prompt(prompt, completion(reasoning, label))


class _Shape(NamedTuple):
    """The keys of a shape, and its reader: ``(record, where) → (query, prompt, completion)``.

    ``written`` is the key of the completion. A record is taken if the first of ``taken_by`` that the
    file has is true.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    taken_by: tuple[str, ...]
    written: str
    read: Callable[[dict[str, Any], str], tuple[tuple[str, ...], str, str]]

    @property
    def keys(self) -> set[str]:
        return {*self.needed, *self.optional, *self.taken_by}


_SHAPES = (
    _Shape(("prompt", "completion"), (), (), "completion", _of_prompt),
    _Shape(("instruction", "output"), ("input", "system", "history"), (), "output", _of_alpaca),
    _Shape(
        ("query", "passage", "label"),
        ("instruction", "reasoning", "verdict"),
        ("selected", "kept"),
        "reasoning",
        _of_pair,
    ),
)


def _shape(keys: list[str], what: str) -> _Shape:
    found = next((shape for shape in _SHAPES if set(shape.needed) <= set(keys)), None)
    if found is None:
        listed = ", ".join(f"{key:.40}" for key in keys[:_COLUMNS_SHOWN]) + (
            ", …" if len(keys) > _COLUMNS_SHOWN else ""
        )
        raise UserError(
            f"{what} {listed or '(none)'} are not known: "
            "give prompt and completion, instruction and output, or query, passage and label"
        )
    return found


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


def _split_completion(written: str, key: str, where: str) -> tuple[str, str]:
    """Chain and label of a completion."""
    found = _COMPLETION.fullmatch(written)
    if not found:
        raise UserError(f"{where}: {key} should end in '{THINK_CLOSE} true' or '{THINK_CLOSE} false'")
    return found["chain"], _LABELS[found["label"]]


def _text(record: dict[str, Any], key: str, where: str, *, needed: bool = True) -> str:
    value = record.get(key)
    if value is None and not needed:
        return ""
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, str) or (needed and not value.strip()):
        found = "null" if value is None else "empty" if isinstance(value, str) else f"of type {type(value).__name__}"
        raise UserError(f"{where}: {key} is {found}: it should be a text{' that is not empty' if needed else ''}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {key} holds half a surrogate pair, which is no character") from None
    return value if value.strip() else ""


def _truth(record: dict[str, Any], key: str, where: str) -> bool:
    value = record.get(key)
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    truth = _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, int | float) and value in (0, 1):
        truth = bool(value)
    if truth is None:
        raise UserError(f"{where}: {key} is {brief(value, 40)}: it should be true or false (1 or 0)")
    return truth
