"""Text → token ids: of plain text, of trusted templates, and of chats.

In a user's text special tokens are just characters. In a template they are tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import lru_cache

from limrank.engines.base import Tokenizer
from limrank.errors import RowError

_SPARE_TOKENS = 64
"""A text is truncated this many tokens behind what fits: its last tokens may differ from the whole text's."""


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of text in which special tokens are just characters.

    A passage may hold ``<|im_end|>`` or ``</think>``, which must neither open a turn nor end a
    chain. Other text is encoded as by the tokenizer itself.
    """
    special = _special_pattern(tuple(tokenizer.get_added_vocab()))
    if special is None or not special.search(text):
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    for position, piece in enumerate(special.split(text)):
        if not piece:
            continue
        # Every second piece is the text of a special token. Encoded in two halves, it does not
        # become that token.
        for half in (piece[:1], piece[1:]) if position % 2 else (piece,):
            ids += tokenizer.encode(half, add_special_tokens=False)
    return ids


def encode_template(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of trusted text: ``<think>`` and ``</think>`` are tokens if the tokenizer has them."""
    return tokenizer.encode(text, add_special_tokens=False)


@lru_cache(maxsize=8)
def tokens_before(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that a tokenizer puts before a text (``<s>``). Those that it puts after a text
    (``</s>``) are left out: the model continues the prompt.
    """
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    positions = range(len(whole) - len(plain) + 1)
    start = next((position for position in positions if whole[position : position + len(plain)] == plain), 0)
    return tuple(whole[:start])


@lru_cache(maxsize=8)
def longest_token(tokenizer: Tokenizer) -> int:
    """The most characters that one token stands for. It bounds how much of a long text has to be
    encoded."""
    vocabulary = getattr(tokenizer, "get_vocab", tokenizer.get_added_vocab)()
    return max((len(token) for token in vocabulary), default=1)


def characters_of(tokenizer: Tokenizer, tokens: int) -> int:
    """The most characters that a text of this many tokens has."""
    return (max(tokens, 0) + _SPARE_TOKENS) * longest_token(tokenizer)


def first_tokens(tokenizer: Tokenizer, text: str, tokens: int) -> str:
    """The start of a text that is at most so many tokens, in which special tokens are just characters; the text
    itself where it has no more."""
    start = text[: characters_of(tokenizer, tokens)]
    ids = encode_text(tokenizer, start) if start else []
    if len(ids) <= tokens and len(start) == len(text):
        return text
    keep = tokens
    while True:
        # As in a prompt: a text that is cut between two tokens may encode to one token more, and only the length
        # of the decoded text is used, since it may be normalised or end in half a character.
        shorter = start[: len(tokenizer.decode(ids[:keep]))] if keep > 0 else ""
        if not shorter or (over := len(encode_text(tokenizer, shorter)) - tokens) <= 0:
            return shorter
        keep -= over


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, max_tokens: int) -> list[int]:
    """Token ids of a chat: the template's marks are tokens, and the messages are plain characters.

    Messages without a special token are encoded as by the tokenizer's own ``apply_chat_template``.

    Args:
        messages: each with ``role`` and ``content``.
        max_tokens: tokens that fit. A chat that is much longer is refused before it is encoded.

    Raises:
        RowError: the chat is too long, or the template does not repeat each message once, unchanged.
    """
    length, most = sum(len(message["content"]) for message in messages), characters_of(tokenizer, max_tokens)
    if length > most:
        raise RowError(f"a prompt of {length} characters is longer than the {max_tokens} tokens that fit")
    special = _special_pattern(tuple(tokenizer.get_added_vocab()))
    if special is None or not any(special.search(message["content"]) for message in messages):
        whole = _rendered(tokenizer, messages)
        return tokenizer.encode(whole, add_special_tokens=False)
    marks = [f"message{secrets.token_hex(12)}x{number}" for number in range(len(messages))]
    contents = [message["content"] for message in messages]
    # Many templates strip the messages.
    padded = [f" {mark} " for mark in marks]
    rendered = _rendered(tokenizer, _with(messages, padded))
    if not all(mark in rendered for mark in padded):
        contents = [content.strip() for content in contents]
    rendered = _rendered(tokenizer, _with(messages, marks))
    ids, stretch = [], []

    def encode_stretch() -> None:
        text = "".join(stretch)
        ids.extend(encode_text(tokenizer, text) if text else [])
        stretch.clear()

    by_mark = dict(zip(marks, contents, strict=True))
    for section in re.split("(" + "|".join(map(re.escape, marks)) + ")", rendered):
        if section in by_mark:
            stretch.append(by_mark.pop(section, ""))
            continue
        for position, piece in enumerate(special.split(section)):
            if position % 2:
                encode_stretch()
                ids += tokenizer.encode(piece, add_special_tokens=False)
            else:
                stretch.append(piece)
    if by_mark:
        raise RowError(
            "the model's chat template changes the messages, so special tokens in them cannot be encoded as text"
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
    """A message for an endpoint whose tokenizer is not known here. A space behind the first character
    makes plain text of a mark of the known chat templates (``< |im_end|>``, ``[ INST]``).
    """
    return _KNOWN_MARKS.sub(lambda found: found[0] + " ", text)


@lru_cache
def _special_pattern(added: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted(added, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
