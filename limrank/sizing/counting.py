"""An engine that only counts: the job's own code runs on it, and asks what it would ask a model.

The prompts, the tokenizer and the steps are therefore the run's. What a model would write is not known: a length is
assumed for each text, or was measured by ``calibrate.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Unpack

from limrank.engines.base import (
    Generation,
    Limits,
    Prompt,
    RequestLimiter,
    Sampling,
    SamplingOptions,
    Tokenizer,
    current_step,
    record_usage,
)
from limrank.engines.tokens import encode_chat
from limrank.errors import RowError

_WORDS = [
    "about",
    "after",
    "again",
    "air",
    "all",
    "also",
    "animal",
    "another",
    "answer",
    "any",
    "around",
    "ask",
    "back",
    "because",
    "before",
    "between",
    "big",
    "book",
    "both",
    "boy",
    "but",
    "call",
    "can",
    "change",
    "children",
    "city",
    "close",
    "come",
    "could",
    "country",
    "cut",
    "day",
    "different",
    "does",
    "done",
    "door",
    "down",
    "each",
    "early",
    "earth",
    "end",
    "even",
    "every",
    "example",
    "eye",
    "face",
    "family",
    "far",
    "father",
    "feet",
    "few",
    "find",
    "first",
    "follow",
    "food",
    "form",
    "found",
    "four",
    "from",
    "game",
    "garden",
    "give",
    "good",
    "great",
    "group",
    "grow",
    "hand",
    "hard",
    "head",
    "hear",
    "help",
    "high",
    "home",
    "horse",
    "hot",
    "hour",
    "house",
    "idea",
    "important",
    "just",
    "keep",
    "kind",
    "know",
    "land",
    "large",
    "last",
    "late",
    "learn",
    "leave",
    "left",
    "letter",
    "life",
    "light",
    "line",
    "list",
    "little",
    "live",
    "long",
    "look",
    "made",
    "make",
    "man",
    "many",
    "mean",
    "men",
    "might",
    "mile",
    "money",
    "morning",
    "most",
    "mother",
    "mountain",
    "move",
    "much",
    "music",
    "must",
    "name",
    "near",
    "need",
    "never",
    "new",
    "next",
    "night",
]
"""Each is one token in the vocabularies of language models."""

_SENTENCE = 12
"""Words of a sentence."""

CHAIN_TOKENS = "chain_tokens"
"""The key for the tokens of every chain, which do not depend on how long one may be."""

CHAIN, ANSWER = "chain", "answer"
"""What a text is called that no step is named for: one that ends with a stop string, and any other."""


class CountingEngine:
    """Answers at once, and records what a real engine would have read, found in its prefix cache, and written.

    Args:
        context: the most tokens of a prompt and its answer.
        block: tokens in a block of the prefix cache. Nothing is ever evicted from it.
        written: step → the share of its ``max_tokens`` that a text takes. 1 where a step is not named; of a text
            with a schema, half. ``CHAIN_TOKENS``: the tokens of a chain.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, *, block: int, written: Mapping[str, float] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.limits = Limits(context, 256)
        self.limiter = RequestLimiter(256)
        self.prompts: list[list[int]] = []
        self._block = block
        self._cached: set[int] = set()
        self._written = written or {}

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        sampling = Sampling(**options)
        ids = self._ids(prompt, sampling.max_tokens)
        share = self._written.get(step_name(sampling), 0.5 if sampling.schema else 1.0)
        wanted = self._written[CHAIN_TOKENS] if self._is_known_chain(sampling) else share * sampling.max_tokens
        length = max(1, min(sampling.max_tokens, round(wanted)))
        closed = length < sampling.max_tokens
        stop = sampling.stop[0] if sampling.stop and closed else None
        text = self._text(sampling, length - bool(stop), share)
        answer = self._encode(text) + (self._encode(stop) if stop else [])
        cached = self._read(ids)
        self._keep([*ids, *answer])
        generated = len(answer) if sampling.schema else length
        record_usage(len(ids), cached, generated)
        finish = "stop" if closed or sampling.schema else "length"
        return Generation(text, finish, len(ids), cached, generated, stop=stop, ids=tuple(answer))

    async def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        yield (await self.generate(prompt, **options)).text

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        ids = self._ids(prompt, 1)
        record_usage(len(ids), self._read(ids), 1)
        # No two pairs have the same score: where equal ones are in doubt, a cascade would think about all of them.
        first = -1e-9 - (hash(tuple(ids)) % 997) / 250
        return {label: first if index == 0 else -2.0 for index, label in enumerate(labels)}

    async def aclose(self) -> None:
        return None

    def _is_known_chain(self, sampling: Sampling) -> bool:
        return bool(sampling.stop) and CHAIN_TOKENS in self._written

    def _text(self, sampling: Sampling, length: int, share: float) -> str:
        # Words in another order each time: the filters of synthesis reject what repeats itself.
        words = random.Random(len(self.prompts))
        return json.dumps(_instance(sampling.schema, share, words)) if sampling.schema else _text(length, words)

    def _ids(self, prompt: Prompt, max_tokens: int) -> list[int]:
        room = self.limits.context - max_tokens
        if isinstance(prompt, str):
            ids = self._encode(prompt)
        elif prompt and isinstance(prompt[0], dict):
            ids = self._chat(prompt, room)
        else:
            ids = [*prompt]  # type: ignore[list-item]
        if len(ids) > room:
            raise RowError(
                f"{len(ids)} prompt tokens and {max_tokens} more exceed the context of {self.limits.context}"
            )
        self.prompts.append(ids)
        return ids

    def _chat(self, messages: Sequence[dict[str, str]], room: int) -> list[int]:
        if getattr(self.tokenizer, "apply_chat_template", None):
            return encode_chat(self.tokenizer, messages, max_tokens=room)
        return self._encode("\n".join(message["content"] for message in messages))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _blocks(self, ids: Sequence[int]) -> list[int]:
        """A hash for each whole block, of all tokens up to its end."""
        found, before = [], 0
        for end in range(self._block, len(ids) + 1, self._block):
            before = hash((before, *ids[end - self._block : end]))
            found.append(before)
        return found

    def _read(self, ids: Sequence[int]) -> int:
        """The tokens of a prompt that are cached. Its last token is always computed."""
        blocks = self._blocks(ids[:-1])
        known = next((index for index, block in enumerate(blocks) if block not in self._cached), len(blocks))
        self._keep(ids)
        return known * self._block

    def _keep(self, ids: Sequence[int]) -> None:
        self._cached.update(self._blocks(ids))


def step_name(sampling: Sampling) -> str:
    """The name by which the length of a text is known."""
    return f"{current_step() or ''}/{CHAIN if sampling.stop else ANSWER}".removeprefix("/")


def _text(length: int, words: random.Random) -> str:
    """So many tokens, about: a word is one, and a sentence's end another."""
    return "".join(
        "." if number % _SENTENCE == _SENTENCE - 1 else f" {words.choice(_WORDS)}" for number in range(max(length, 0))
    )


def _instance(schema: Mapping[str, Any], share: float, words: random.Random) -> Any:
    """A value of one of limrank's JSON schemas, with texts of this share of their longest."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {name: _instance(below, share, words) for name, below in schema["properties"].items()}
    if kind == "array":
        return [_instance(schema["items"], share, words) for _ in range(schema.get("minItems", 1))]
    if kind == "boolean":
        return True
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    length = max(schema.get("minLength", 1), round(share * schema.get("maxLength", 120)))
    return _text(length, words).replace(".", "").strip()[:length]
