"""A pair, a chain and a training example as token ids: one way for scoring, training and held-out data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from limrank.engines.base import Tokenizer
from limrank.engines.tokens import characters_of, encode_template, encode_text, tokens_before
from limrank.errors import RowError
from limrank.records import Query

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

CLOSE = "\n" + THINK_CLOSE
"""What ends a chain; the label follows."""

_MARKS = re.compile(f"({THINK_OPEN}|{THINK_CLOSE})")

PLACEHOLDER = re.compile(r"\{\{\s*(query|passage)\s*\}\}")
"""A placeholder of a scoring prompt."""

_QUERY_PLACEHOLDER = re.compile(r"\{\{\s*query\s*\}\}")
"""The placeholder of a query's template."""

_ANSWER = re.compile(rf"{THINK_CLOSE}(?: \w+)?")


@dataclass(frozen=True)
class PairPrompt:
    """A pair as token ids.

    Attributes:
        truncated: the passage lost its end.
        tail: the text behind the last mark that is a token. The text that follows a prompt may
            share a token with it (Qwen's ``>\\n``). Empty where the prompt ends with the token
            ``<think>``.
        head: the number of ids before the tail.
    """

    ids: list[int]
    truncated: bool
    head: int
    tail: str


def prompt_query(query: Query) -> str:
    """The query as the model sees it: its text with the instruction appended, inside its template.
    If text and instruction are the same, the text is there once, as in the reference."""
    text, instruction = query.text, query.instruction
    if instruction:
        text = text.strip() if text.strip() == instruction.strip() else f"{text} {instruction}".strip()
    return _QUERY_PLACEHOLDER.sub(lambda _: text, query.template) if query.template else text


def pair_text(template: str, query: Query, passage: str) -> str:
    """The prompt of a pair as text. The model gets the ids of :func:`encode_pair`."""
    return _filled(template, query, passage)


def encode_example(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a prompt or an answer of a training example. ``<think>`` at a prompt's end and the
    ``</think>`` of an answer (``</think> true``) are tokens, all other text is plain characters."""
    lead = THINK_CLOSE if _ANSWER.fullmatch(text) else ""
    trail = THINK_OPEN if text.endswith(THINK_OPEN) else ""
    between = text[len(lead) : len(text) - len(trail)]
    ids = encode_template(tokenizer, lead) if lead else []
    ids += encode_text(tokenizer, between) if between else []
    return ids + (encode_template(tokenizer, trail) if trail else [])


def encode_pair(tokenizer: Tokenizer, template: str, query: Query, passage: str, *, max_tokens: int) -> PairPrompt:
    """The prompt of a pair as token ids, at most ``max_tokens`` of them.

    A pair that is too long loses the end of its passage, never query, instruction or template.

    Raises:
        RowError: not even an empty passage fits.
    """
    longest = characters_of(tokenizer, max_tokens)
    if len(prompt_query(query)) > longest:
        raise RowError(
            f"the query has {len(prompt_query(query))} characters, more than {max_tokens} tokens can hold: "
            "raise model.max_model_len"
        )
    passage = passage[:longest]
    prompt = _fill(tokenizer, template, query, passage)
    if len(prompt.ids) <= max_tokens:
        return prompt
    bare = len(_fill(tokenizer, template, query, "").ids)
    if bare > max_tokens:
        raise RowError(
            f"the prompt takes {bare} tokens without a passage, and {max_tokens} fit: raise model.max_model_len"
        )
    words = encode_text(tokenizer, passage)
    keep = max_tokens - bare
    while True:
        # Text that is truncated between two tokens may encode to one token more. Then it is
        # truncated further. Only the length of the decoded text is used: the text may be
        # normalised, or end in half a character.
        shorter = passage[: len(tokenizer.decode(words[:keep]))] if keep > 0 else ""
        prompt = _fill(tokenizer, template, query, shorter)
        if len(prompt.ids) <= max_tokens:
            return replace(prompt, truncated=True)
        keep -= max(1, len(prompt.ids) - max_tokens)


def encode_closed(tokenizer: Tokenizer, prompt: PairPrompt, chain: str) -> list[int]:
    """Token ids of a prompt, a chain and its close, as in a training example. The label follows.

    Chain and line end are encoded together: a token may span them (Qwen's ``.\\n``).
    """
    return _through_close(tokenizer, prompt, f"{chain}\n")


@lru_cache(maxsize=8)
def close_tokens(tokenizer: Tokenizer) -> int:
    """The most tokens that the close of a chain takes."""
    return len(encode_closed(tokenizer, PairPrompt([], truncated=False, head=0, tail=""), ""))


def encode_written(tokenizer: Tokenizer, prompt: PairPrompt, chain: str, written: Sequence[int]) -> list[int]:
    """Token ids of a prompt and of a chain that the model closed itself, up to and with ``</think>``.

    Args:
        chain: the text before ``</think>``, as the model wrote it.
        written: the tokens that the model wrote. Empty where an endpoint does not return them; the
            text is encoded then.
    """
    mark = tokenizer.get_added_vocab().get(THINK_CLOSE)
    if mark is not None and mark in written:
        return [*prompt.ids, *written[: written.index(mark) + 1]]
    if mark is None and written and tokenizer.decode(written).endswith(THINK_CLOSE):
        return [*prompt.ids, *written]
    return _through_close(tokenizer, prompt, chain)


def _through_close(tokenizer: Tokenizer, prompt: PairPrompt, text: str) -> list[int]:
    """Token ids of a prompt, the text after it, and ``</think>``: a token if the tokenizer has one, else text."""
    stretch, mark = prompt.tail + text, tokenizer.get_added_vocab().get(THINK_CLOSE)
    if mark is None:
        return [*prompt.ids[: prompt.head], *encode_text(tokenizer, stretch + THINK_CLOSE)]
    return [*prompt.ids[: prompt.head], *(encode_text(tokenizer, stretch) if stretch else []), mark]


def _fill(tokenizer: Tokenizer, template: str, query: Query, passage: str) -> PairPrompt:
    """Fill the template and encode it: its own marks as tokens, all other text as plain characters.
    The text between two marks is encoded in one piece, so that tokens span its seams."""
    ids = list(tokens_before(tokenizer))
    added = tokenizer.get_added_vocab()
    stretch = ""
    for piece in _MARKS.split(template):
        if piece in added:
            ids += encode_text(tokenizer, stretch) if stretch else []
            ids += tokenizer.encode(piece, add_special_tokens=False)
            stretch = ""
        else:
            stretch += _filled(piece, query, passage)
    head = len(ids)
    ids += encode_text(tokenizer, stretch) if stretch else []
    return PairPrompt(ids, truncated=False, head=head, tail=stretch)


def _filled(template: str, query: Query, passage: str) -> str:
    values = {"query": prompt_query(query), "passage": passage}
    return PLACEHOLDER.sub(lambda match: values[match.group(1)], template)
