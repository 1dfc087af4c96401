"""From text to token ids, where a user's text is just characters and a template's marks are tokens:
plain text, trusted templates, and chats."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import lru_cache

from limrank.engines.base import Tokenizer
from limrank.errors import RowError

_SPARE_TOKENS = 64
"""By so many more than fit a text is looked at: a token may end otherwise where it is cut."""


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


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, max_tokens: int) -> list[int]:
    """Token ids of a chat: the template's marks are tokens, what the messages say is characters.

    Text without any special token is encoded as the tokenizer's own ``apply_chat_template`` does.

    Args:
        messages: ``role`` and ``content`` of each.
        room: tokens that fit; a longer chat is told before it is encoded.

    Raises:
        RowError: it is too long, or the template does not say each message once, as it is.
    """
    length, most = sum(len(message["content"]) for message in messages), characters_of(tokenizer, max_tokens)
    if length > most:
        raise RowError(f"a prompt of {length} characters: more than {max_tokens} tokens, which fit, can hold")
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


@lru_cache
def _special_pattern(added: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted(added, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if added else None
