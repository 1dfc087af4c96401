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

PLACE = re.compile(r"\{\{\s*(query|passage)\s*\}\}")
"""A place of a scoring prompt."""

QUERY_PLACE = re.compile(r"\{\{\s*query\s*\}\}")
"""The place of a query's template."""

_ANSWER = re.compile(rf"{THINK_CLOSE}(?: \w+)?")


@dataclass(frozen=True)
class PairPrompt:
    """A pair as token ids; ``truncated`` where the passage lost its end.

    ``tail`` is the text behind the last mark that is a token, of which what follows may become
    part (Qwen's ``>\\n``), and ``head`` counts the ids before it. A prompt that ends with the
    token ``<think>`` has none.
    """

    ids: list[int]
    truncated: bool
    head: int
    tail: str


def prompt_query(query: Query) -> str:
    """The query as the model sees it: an instruction is appended to its text, and its template is
    put around both. Where both are the same text, it is there once, as the reference has it."""
    text, instruction = query.text, query.instruction
    if instruction:
        text = text.strip() if text.strip() == instruction.strip() else f"{text} {instruction}".strip()
    return QUERY_PLACE.sub(lambda _: text, query.template) if query.template else text


def pair_text(template: str, query: Query, passage: str) -> str:
    """The prompt of a pair as text; the model is given :func:`encode_pair`'s ids."""
    return _place(template, query, passage)


def encode_example(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a part of a training example: ``<think>`` at a prompt's end and the ``</think>``
    of an answer (``</think> true``) are the template's own marks, all else is plain characters."""
    lead = THINK_CLOSE if _ANSWER.fullmatch(text) else ""
    trail = THINK_OPEN if text.endswith(THINK_OPEN) else ""
    between = text[len(lead) : len(text) - len(trail)]
    ids = encode_template(tokenizer, lead) if lead else []
    ids += encode_text(tokenizer, between) if between else []
    return ids + (encode_template(tokenizer, trail) if trail else [])


def encode_pair(tokenizer: Tokenizer, template: str, query: Query, passage: str, *, max_tokens: int) -> PairPrompt:
    """The prompt of a pair as token ids, at most ``max_tokens`` of them.

    A pair that is too long loses the end of its passage, never the query, the
    instruction or the template.

    Raises:
        RowError: not even an empty passage fits.
    """
    most = characters_of(tokenizer, max_tokens)
    if len(prompt_query(query)) > most:
        raise RowError(
            f"the query alone has {len(prompt_query(query))} characters, more than {max_tokens} tokens can hold: "
            "raise model.max_model_len"
        )
    passage = passage[:most]
    prompt = _fill(tokenizer, template, query, passage)
    if len(prompt.ids) <= max_tokens:
        return prompt
    bare = len(_fill(tokenizer, template, query, "").ids)
    if bare > max_tokens:
        raise RowError(f"the query alone takes {bare} tokens, and {max_tokens} fit: raise model.max_model_len")
    words = encode_text(tokenizer, passage)
    keep = max_tokens - bare
    while True:
        # Text that is cut between two tokens may encode to one token more; then cut more.
        # The decoded text only tells how many characters that is: it may be normalised, or
        # end in half a character.
        shorter = passage[: len(tokenizer.decode(words[:keep]))] if keep > 0 else ""
        prompt = _fill(tokenizer, template, query, shorter)
        if len(prompt.ids) <= max_tokens:
            return replace(prompt, truncated=True)
        keep -= max(1, len(prompt.ids) - max_tokens)


def encode_closed(tokenizer: Tokenizer, prompt: PairPrompt, chain: str) -> list[int]:
    """Token ids of a prompt, a chain and its close, after which the label is asked: those of the
    training example that holds them.

    Chain and line end are one stretch: a token may span them (Qwen's ``.\\n``).
    """
    return _through_close(tokenizer, prompt, f"{chain}\n")


@lru_cache(maxsize=8)
def close_tokens(tokenizer: Tokenizer) -> int:
    """How many tokens the close of a chain takes, at most."""
    return len(encode_closed(tokenizer, PairPrompt([], truncated=False, head=0, tail=""), ""))


def encode_written(tokenizer: Tokenizer, prompt: PairPrompt, chain: str, written: Sequence[int]) -> list[int]:
    """Token ids of a prompt and of the chain that a model closed itself, through ``</think>``.

    Args:
        chain: what stands before ``</think>``, as it was written.
        written: the tokens that the model wrote; empty where an endpoint does not tell them, and
            the text has to be encoded again.
    """
    mark = tokenizer.get_added_vocab().get(THINK_CLOSE)
    if mark is not None and mark in written:
        return [*prompt.ids, *written[: written.index(mark) + 1]]
    if mark is None and written and tokenizer.decode(written).endswith(THINK_CLOSE):
        return [*prompt.ids, *written]
    return _through_close(tokenizer, prompt, chain)


def _through_close(tokenizer: Tokenizer, prompt: PairPrompt, text: str) -> list[int]:
    """A prompt, what follows it, and ``</think>``: a token where the tokenizer has one, else text."""
    stretch, mark = prompt.tail + text, tokenizer.get_added_vocab().get(THINK_CLOSE)
    if mark is None:
        return [*prompt.ids[: prompt.head], *encode_text(tokenizer, stretch + THINK_CLOSE)]
    return [*prompt.ids[: prompt.head], *(encode_text(tokenizer, stretch) if stretch else []), mark]


def _fill(tokenizer: Tokenizer, template: str, query: Query, passage: str) -> PairPrompt:
    """Fill the template and encode it: the template's own marks as tokens, the rest as
    plain characters, whole stretches at a time so that tokens span the seams."""
    ids = list(tokens_before(tokenizer))
    added = tokenizer.get_added_vocab()
    stretch = ""
    for part in _MARKS.split(template):
        if part in added:
            ids += encode_text(tokenizer, stretch) if stretch else []
            ids += tokenizer.encode(part, add_special_tokens=False)
            stretch = ""
        else:
            stretch += _place(part, query, passage)
    head = len(ids)
    ids += encode_text(tokenizer, stretch) if stretch else []
    return PairPrompt(ids, truncated=False, head=head, tail=stretch)


def _place(part: str, query: Query, passage: str) -> str:
    values = {"query": prompt_query(query), "passage": passage}
    return PLACE.sub(lambda match: values[match.group(1)], part)
