"""A writer's examples: passages with the queries that they answer, and their token ids.

A writer continues a plain prompt, without a chat's marks, with the query of its passage. The source of its
examples is one of:

==============================  ============================================================
a file of pairs                 ``query, passage``, of the kinds that ``sources.py`` reads.
                                ``label``, if there is one, is true
a source of seeds               a BEIR folder with qrels, ``hub://OWNER/NAME`` or ``pydocs``
==============================  ============================================================
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from limrank import prompts
from limrank.data import seeds, tables
from limrank.data.hub_datasets import SCHEME
from limrank.engines.tokens import characters_of, encode_text
from limrank.errors import RowError, UserError
from limrank.files import is_folder, listed, path_of
from limrank.models import ModelTask
from limrank.records import Query
from limrank.scoring import encode_pair
from limrank.training import sources
from limrank.training.examples import EncodedExample
from limrank.training.shapes import TAKEN_BY, text_of, truth_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT = "writer"
"""The prompt that a writer continues."""

_KEYS = ("query", "passage")


@dataclass(frozen=True, slots=True)
class Pair:
    """A passage and the query to write for it. ``line`` is as of a :class:`~limrank.training.sources.Example`."""

    line: int
    passage: str
    text: str

    @property
    def query(self) -> tuple[str, ...]:
        """Equal for pairs of one query, which are held out together."""
        return (self.text,)


def task() -> ModelTask:
    """What a trained writer is for, and how it is asked."""
    return ModelTask("writer", prompts.load(PROMPT))


def read_pairs(source: str) -> tuple[list[Pair], list[str]]:
    """The pairs of a source in its order, and warnings about those that are left out.

    Raises:
        UserError: the source is missing or cannot be read, it has no pairs, or a value is missing or invalid.
            The message names the file and the line.
    """
    if _holds_seeds(source):
        found = seeds.load_seeds(source)
        return [Pair(number, seed.passage, seed.query) for number, seed in enumerate(found, 1)], []
    rows = sources.rows_of(path_of(source), _columns)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source}: holds no examples")
    _, where, record = first
    _columns(list(record), f"{where}: keys")
    wanted = next((key for key in TAKEN_BY if key in record), None)
    pairs, others = [], 0
    for number, where, record in chain([first], rows):
        if wanted and not truth_of(record, wanted, where):
            continue
        if record.get("label") is not None and not truth_of(record, "label", where):
            others += 1
            continue
        query, passage = (text_of(record, key, where) for key in _KEYS)
        pairs.append(Pair(number, passage, query))
    if not pairs:
        raise UserError(f"{source}: holds no passage that answers its query: each label or {wanted or 'kept'} is false")
    return pairs, [f"{source}: {others} pairs are left out: their label is false"] if others else []


def fingerprint(source: str) -> Any:
    """The contents of a source as a part of a hash. Raises UserError as :func:`read_pairs` does."""
    return seeds.fingerprint(seeds.load_seeds(source), []) if _holds_seeds(source) else sources.fingerprint(source)


def draw(pairs: list[Pair], count: int | None, seed: int) -> list[Pair]:
    """At most ``count`` pairs. The sample depends only on ``seed``, and keeps the order of the source."""
    if count is None or count >= len(pairs):
        return pairs
    return [pairs[index] for index in sorted(random.Random(seed).sample(range(len(pairs)), count))]


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, cutoff: int, source: str
) -> list[EncodedExample]:
    """Token ids of every pair, none longer than ``cutoff`` tokens: the prompt, which carries no loss, and a space,
    the query and the end of sequence. A longer one loses the end of its passage.

    Raises:
        UserError: prompt and query do not fit without a passage.
    """
    return [_encode(pair, tokenizer, cutoff, source) for pair in pairs]


def _encode(pair: Pair, tokenizer: PreTrainedTokenizerBase, cutoff: int, source: str) -> EncodedExample:
    import numpy as np

    fault = UserError(
        f"{source}:{pair.line}: prompt and query do not fit in training.cutoff_tokens={cutoff}: raise it, or remove "
        "the line"
    )
    if len(pair.text) > characters_of(tokenizer, cutoff):
        raise fault
    # A line end would end what an engine writes.
    written = [*encode_text(tokenizer, f" {' '.join(pair.text.split())}"), tokenizer.eos_token_id]
    try:
        prompt = encode_pair(
            tokenizer, prompts.load(PROMPT), Query("", ""), pair.passage, max_tokens=cutoff - len(written)
        )
    except RowError:
        raise fault from None
    ids = np.asarray([*prompt.ids, *written], dtype=np.int32)
    return EncodedExample(pair.line, ids, len(prompt.ids), None, pair.query, prompt.truncated)


def _holds_seeds(source: str) -> bool:
    """Whether the readers of training files do not read a source: it is a name, or a folder that is neither a
    saved dataset nor one of Parquet files."""
    if source == "pydocs" or source.startswith(SCHEME):
        return True
    folder = path_of(source)
    return (
        is_folder(source)
        and not tables.is_saved_dataset(folder)
        and not any(each.suffix == ".parquet" for each in listed(folder))
    )


def _columns(names: Sequence[str], what: str) -> set[str]:
    """The columns to read. Raises UserError if there is no query or no passage."""
    if not set(_KEYS) <= set(names):
        listed = ", ".join(f"{name:.40}" for name in list(names)[:12]) or "(none)"
        raise UserError(f"{what} {listed}: a writer learns from query and passage (training.task=writer)")
    return {*_KEYS, *TAKEN_BY, "label"}
