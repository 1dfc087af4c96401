"""From text to token ids, where a person's text is just characters and a template's marks are tokens.

One way for all: prompts of pairs in scoring, training and on held-out data, examples, and chats.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from limrank.engines.base import Tokenizer
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

_SPARE_TOKENS = 64
"""By so many more than fit a text is looked at: a token may end otherwise where it is cut."""


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


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of text in which special tokens are just characters.

    A person's passage may hold ``<|im_end|>`` or ``</think>``; it must neither end a
    chain nor open a turn. Text without such a string is encoded as the tokenizer would.
    """
    special = _special_pattern(tuple(tokenizer.get_added_vocab()))
    if special is None or not special.search(text):
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for position, piece in enumerate(special.split(text)):
        if not piece:
            continue
        # Every second piece is a special token's text: encoded in two halves, it is
        # never seen whole.
        for part in (piece[:1], piece[1:]) if position % 2 else (piece,):
            ids += tokenizer.encode(part, add_special_tokens=False)
    return ids


def encode_template(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of trusted text: ``<think>`` and ``</think>`` are tokens where the
    tokenizer has them."""
    return tokenizer.encode(text, add_special_tokens=False)


def encode_example(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a part of a training example: ``<think>`` at a prompt's end and the ``</think>``
    of an answer (``</think> true``) are the template's own marks, all else is plain characters."""
    lead = THINK_CLOSE if _ANSWER.fullmatch(text) else ""
    trail = THINK_OPEN if text.endswith(THINK_OPEN) else ""
    between = text[len(lead) : len(text) - len(trail)]
    ids = encode_template(tokenizer, lead) if lead else []
    ids += encode_text(tokenizer, between) if between else []
    return ids + (encode_template(tokenizer, trail) if trail else [])


@lru_cache(maxsize=8)
def tokens_before(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What a tokenizer puts before a text (``<s>``). What it puts after one (``</s>``) has no place
    between a prompt and what the model is to write.
    """
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    places = range(len(whole) - len(plain) + 1)
    start = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
    return tuple(whole[:start])


@lru_cache(maxsize=8)
def longest_token(tokenizer: Tokenizer) -> int:
    """Characters that one token stands for at most: of a text of more than so many times what
    fits, the rest need not be encoded."""
    vocabulary = getattr(tokenizer, "get_vocab", tokenizer.get_added_vocab)()
    return max((len(token) for token in vocabulary), default=1)


def characters_of(tokenizer: Tokenizer, tokens: int) -> int:
    """How many characters a text of so many tokens has at most."""
    return (max(tokens, 0) + _SPARE_TOKENS) * longest_token(tokenizer)


def encode_pair(tokenizer: Tokenizer, template: str, query: Query, passage: str, *, room: int) -> PairPrompt:
    """The prompt of a pair as token ids, at most ``room`` of them.

    A pair that is too long loses the end of its passage, never the query, the
    instruction or the template.

    Raises:
        RowError: not even an empty passage fits.
    """
    most = characters_of(tokenizer, room)
    if len(prompt_query(query)) > most:
        raise RowError(
            f"the query alone has {len(prompt_query(query))} characters, more than {room} tokens can hold: "
            "raise model.max_model_len"
        )
    passage = passage[:most]
    prompt = _fill(tokenizer, template, query, passage)
    if len(prompt.ids) <= room:
        return prompt
    bare = len(_fill(tokenizer, template, query, "").ids)
    if bare > room:
        raise RowError(f"the query alone takes {bare} tokens, and {room} fit: raise model.max_model_len")
    words = encode_text(tokenizer, passage)
    keep = room - bare
    while True:
        # Text that is cut between two tokens may encode to one token more; then cut more.
        # The decoded text only tells how many characters that is: it may be normalised, or
        # end in half a character.
        shorter = passage[: len(tokenizer.decode(words[:keep]))] if keep > 0 else ""
        prompt = _fill(tokenizer, template, query, shorter)
        if len(prompt.ids) <= room:
            return replace(prompt, truncated=True)
        keep -= max(1, len(prompt.ids) - room)


def encode_closed(tokenizer: Tokenizer, prompt: PairPrompt, chain: str) -> list[int]:
    """Token ids of a prompt, a chain and its close, after which the label is asked: those of the
    training example that holds them.

    Chain and line end are one stretch: a token may span them (Qwen's ``.\\n``).
    """
    stretch, mark = f"{prompt.tail}{chain}\n", tokenizer.get_added_vocab().get(THINK_CLOSE)
    if mark is None:
        return [*prompt.ids[: prompt.head], *encode_text(tokenizer, stretch + THINK_CLOSE)]
    return [*prompt.ids[: prompt.head], *encode_text(tokenizer, stretch), mark]


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
    if mark is None:
        return [*prompt.ids[: prompt.head], *encode_text(tokenizer, prompt.tail + chain + THINK_CLOSE)]
    thought = encode_text(tokenizer, prompt.tail + chain) if prompt.tail + chain else []
    return [*prompt.ids[: prompt.head], *thought, mark]


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, room: int) -> list[int]:
    """Token ids of a chat: the template's marks are tokens, what the messages say is characters.

    Text without any special token is encoded as the tokenizer's own ``apply_chat_template`` does.

    Args:
        messages: ``role`` and ``content`` of each.
        room: tokens that fit; a longer chat is told before it is encoded.

    Raises:
        RowError: it is too long, or the template does not say each message once, as it is.
    """
    length, most = sum(len(message["content"]) for message in messages), characters_of(tokenizer, room)
    if length > most:
        raise RowError(f"a prompt of {length} characters: more than {room} tokens, which fit, can hold")
    special = _special_pattern(tuple(tokenizer.get_added_vocab()))
    if special is None or not any(special.search(message["content"]) for message in messages):
        whole = _rendered(tokenizer, messages)
        return tokenizer.encode(whole, add_special_tokens=False)
    marks = [f"place{secrets.token_hex(12)}x{number}" for number in range(len(messages))]
    contents = [message["content"] for message in messages]
    # Whether the template trims: as many do.
    padded = [f" {mark} " for mark in marks]
    around = _rendered(tokenizer, _with(messages, padded))
    if not all(mark in around for mark in padded):
        contents = [content.strip() for content in contents]
    around = _rendered(tokenizer, _with(messages, marks))
    ids, stretch = [], []

    def encode_stretch() -> None:
        text = "".join(stretch)
        ids.extend(encode_text(tokenizer, text) if text else [])
        stretch.clear()

    by_mark = dict(zip(marks, contents, strict=True))
    for part in re.split("(" + "|".join(map(re.escape, marks)) + ")", around):
        if part in by_mark:
            stretch.append(by_mark.pop(part, ""))
            continue
        for position, piece in enumerate(special.split(part)):
            if position % 2:
                encode_stretch()
                ids += tokenizer.encode(piece, add_special_tokens=False)
            else:
                stretch.append(piece)
    if by_mark:
        raise RowError(
            "the model's chat template changes what a message says, so its special tokens cannot be kept plain"
        )
    encode_stretch()
    return ids


def _rendered(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def _with(messages: Sequence[dict[str, str]], contents: Sequence[str]) -> list[dict[str, str]]:
    return [message | {"content": content} for message, content in zip(messages, contents, strict=True)]


_KNOWN_MARKS = re.compile(
    r"<(?=[|｜][^\n<>]{1,64}[|｜]>)"  # <|im_end|>, <|eot_id|>, <｜User｜>
    r"|<(?=/?(?:s|think|bos|eos|pad|unk|mask|sop|eop|tool_call|tool_response|tools)>)"
    r"|<(?=(?:start|end)_of_(?:turn|image)>)|<(?=(?:extra_id_|unused|reserved_)\d+>)"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|sMASK|MASK|CLS|SEP|PAD|BOS|EOS)\])",
    re.IGNORECASE,
)


def break_marks(text: str) -> str:
    """A message for an endpoint, whose tokenizer is not ours: a space goes behind the first character
    of what is a mark in a known chat template (``< |im_end|>``, ``[ INST]``), which is none then.
    """
    return _KNOWN_MARKS.sub(lambda found: found[0] + " ", text)


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


@lru_cache
def _special_pattern(added: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted(added, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
