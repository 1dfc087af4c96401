"""Reads training files of the common shapes.

An example is a prompt and its completion: a chain of thought and a label (the paper's format), or a
teacher's score. ``shapes.py`` says which keys a record has.

The *files*: JSON, either an object a line or one array (``.jsonl``, ``.json``, also ``.gz``);
Parquet, one file or a folder of ``*.parquet`` in the order of their names; a folder that
``datasets`` saved, of several splits ``train``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from limrank.data import beir
from limrank.data.benchmarks import file_fingerprint
from limrank.data.tables import open_tables
from limrank.errors import UnavailableError, UserError, first_line
from limrank.files import AnyPath, is_folder, kind_of, opened, path_of
from limrank.parsing import clipped, parse_json_array
from limrank.scoring import LABELS, THINK_CLOSE
from limrank.training.grades import graded_shape
from limrank.training.shapes import ScoreReader, shape_of, truth_of

LONGEST_ARRAY = 1 << 30
"""Bytes of a file that is one JSON array, unpacked: it is read as a whole."""

_KEY = "training.train_file"
_BLANKS = b" \t\r\n"
_COMPLETION = re.compile(rf"(?P<chain>.*){THINK_CLOSE}(?P<label>{'|'.join(LABELS)})\s*", re.DOTALL)
_LABELS = {label: label for label in LABELS}

Rows = Iterator[tuple[int, str, dict[str, Any]]]
"""``(1-based number, location for messages, record)``."""

ColumnsOf = Callable[[list[str], str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Example:
    """One record of a training file, or one passage of a record that lists a query's passages.

    ``line`` is the 1-based number of its line, element or row (over all files of a folder; skipped rows
    count). ``chain`` is the text before ``</think>``, ``label`` one of :data:`limrank.scoring.LABELS` or of
    ``training.labels``, or None if the passage has only a teacher's ``score``. ``query`` is equal for examples that ask the same:
    query and instruction of a pair, else the text before the passage.
    """

    line: int
    prompt: str
    chain: str
    label: str | None
    query: tuple[str, ...]
    score: float | None = None


def read_examples(path: str | AnyPath, *, scored: bool = False, labels: tuple[str, ...] | None = None) -> list[Example]:
    """Every example of a training file or folder, in its order; blank lines are skipped.

    A ``<think>`` that begins a completion or output belongs to the prompt. An alpaca prompt always ends
    in it, on a line of its own. Pairs are taken if ``selected`` is true or, without that key, if ``kept``
    is true. A chain whose ``verdict`` is not the label is left out: a chain must end in its label.

    Args:
        scored: read a teacher's scores. A passage with a score needs no label then. Without it, scores are
            ignored as any other key is.
        labels: read graded labels, or the scores that are to become labels, in the shapes of ``grades.py``.

    Raises:
        UnavailableError: there is no such file.
        UserError: the file cannot be read, has no kind or shape of the above, has no example, or a value
            is missing or invalid. The message names the file, and the line, element or row.
    """
    path = path_of(path)
    find = partial(graded_shape, labels=labels) if labels else partial(shape_of, scored=scored)
    rows = rows_of(path, lambda names, what: find(names, what).keys(scored))
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no examples")
    _, where, record = first
    shape = find(list(record), f"{where}: keys")
    wanted = next((key for key in shape.taken_by if key in record), None)
    scores = ScoreReader() if shape.has_score or (scored and not shape.is_list) else None
    # The examples of a query share one text in memory.
    queries: dict[tuple[str, ...], tuple[str, ...]] = {}
    examples = []
    for number, where, record in chain([first], rows):
        if wanted and not truth_of(record, wanted, where):
            continue
        for passage in shape.read(record, where, scores.read(record, where) if scores else None):
            thought, label = "", passage.grade
            if passage.written is not None:
                thought, label = _split_completion(passage.written, shape.written, where)
            query = queries.setdefault(passage.query, passage.query)
            examples.append(Example(number, passage.prompt, thought, label, query, passage.score))
    if not examples:
        raise UserError(f"{path}: holds no examples: there is none whose {wanted} is true")
    return examples


def fingerprint(path: str | AnyPath) -> Any:
    """The SHA-256 (hex) of a training file, or a list of those of a folder's files. Raises UserError as
    :func:`read_examples` does."""
    path = path_of(path)
    return open_tables(str(path), "train", _KEY)[1] if is_folder(path) else file_fingerprint(path)


# ---- files → records -----------------------------------------------------------------


def rows_of(path: AnyPath, columns_of: ColumnsOf) -> Rows:
    """The records of a training file or folder.

    Args:
        columns_of: which columns to read of a table, by the names of all and a text for messages about them.
    """
    kind = kind_of(path)
    if kind == "folder" or (kind == "file" and path.suffix == ".parquet"):
        return _arrow_rows(path, columns_of)
    if kind == "missing":
        raise UnavailableError(f"{_KEY}: {path}: no such file or folder")
    if Path(path.name.removesuffix(".gz")).suffix not in (".json", ".jsonl"):
        raise UserError(
            f"{_KEY}: {path}: not read from this kind of file: give .jsonl, .json (also .gz), .parquet, "
            "a folder of *.parquet or a saved dataset"
        )
    return _array_rows(path) if _is_array(path) else _line_rows(path)


def _is_array(path: AnyPath) -> bool:
    """Whether the first character of a file that is not a blank is ``[``."""
    with opened(path) as file:
        block = file.read(1 << 16).removeprefix(codecs.BOM_UTF8)
        while block and not block.strip(_BLANKS):
            block = file.read(1 << 16)
    return block.lstrip(_BLANKS).startswith(b"[")


def _array_rows(path: AnyPath) -> Rows:
    with opened(path) as file:
        data = file.read(LONGEST_ARRAY + 1)
    if len(data) > LONGEST_ARRAY:
        raise UserError(
            f"{path}: an array of more than {LONGEST_ARRAY >> 20} MiB: give JSON Lines, which are read a line at a time"
        )
    yield from parse_json_array(data, str(path))


def _line_rows(path: AnyPath) -> Rows:
    for number, record in beir.read_jsonl(path):
        yield number, f"{path}:{number}", record


def _arrow_rows(path: Path, columns_of: ColumnsOf) -> Rows:
    before = 0
    for table in open_tables(str(path), "train", _KEY)[0]:
        # Only these columns: others may be large, such as embeddings.
        wanted = columns_of(table.schema.names, f"{table.name}: columns")
        columns = [name for name in table.schema.names if name in wanted]
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


def _split_completion(written: str, key: str, where: str) -> tuple[str, str]:
    """Chain and label of a completion."""
    found = _COMPLETION.fullmatch(written)
    if not found:
        raise UserError(f"{where}: {key} should end in '{THINK_CLOSE} true' or '{THINK_CLOSE} false'")
    return found["chain"], _LABELS[found["label"]]
