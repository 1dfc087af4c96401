"""Training examples → token ids, with the loss on the completion.

Pure Python except for the arrays of ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from limrank.errors import UserError
from limrank.scoring import LABELS, THINK_CLOSE, THINK_OPEN, TRUE
from limrank.scoring.labels import Answer
from limrank.training.shapes import PASSAGE_MARK, before_passage
from limrank.training.sources import Example

if TYPE_CHECKING:
    import numpy as np

NO_CHAIN = "\n"
"""The chain of an example without one, whose label follows directly."""

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as token ids: ``ids`` (int32, one dimension) are prompt and completion.

    The first ``prompt_tokens`` carry no loss. The completion is the chain, its close, the label and the
    end of sequence; without a chain it is only the label. ``label``: whether the passage is relevant, None
    if it has a graded label, or if only its teacher's ``score`` is known (divided by the temperature); the last
    token, of true, then only marks where the log-odds are. ``query`` is equal for all passages of a query. ``truncated``: tokens were
    left out. A token of the completion counts ``token_weight`` times in the loss.
    """

    line: int
    ids: np.ndarray
    prompt_tokens: int
    label: bool | None
    query: tuple[str, ...]
    truncated: bool
    token_weight: float = 1.0
    score: float | None = None

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens


def set_target(examples: Iterable[Example], target: Literal["direct", "think", "mixed"]) -> list[Example]:
    """The examples with the completion that the model is to learn.

    ``think`` keeps the chain of examples that have one, ``direct`` drops it, ``mixed`` alternates: one
    model then serves both modes. A request for a direct answer puts ``</think>`` right after ``<think>``.
    The alternation is counted by label, over the examples that have a chain: files often alternate
    labels, too, and the mere presence of a chain must not give the label away.
    """
    targeted, seen = [], Counter[str | None]()
    for example in examples:
        thought = bool(example.chain.strip())
        direct = not thought or target == "direct" or (target == "mixed" and seen[example.label] % 2 == 1)
        seen[example.label] += thought
        targeted.append(replace(example, chain=NO_CHAIN) if direct else example)
    return targeted


def balanced(examples: Sequence[EncodedExample]) -> list[EncodedExample]:
    """The examples with weights so that those without a chain, of one token each, count as much in
    total as those with a chain, of hundreds of tokens: a mixed model is to learn both."""
    direct = sum(example.completion_tokens == 1 for example in examples)
    thought = sum(example.completion_tokens for example in examples) - direct
    if not direct or not thought:
        return list(examples)
    return [
        replace(example, token_weight=thought / direct) if example.completion_tokens == 1 else example
        for example in examples
    ]


def encode_examples(
    examples: Iterable[Example],
    encode: Encode,
    end_id: int,
    cutoff: int,
    source: str,
    *,
    before: Sequence[int] = (),
    longest_token: int | None = None,
    answers: Mapping[str, Answer] | None = None,
) -> list[EncodedExample]:
    """Token ids of every example, none longer than ``cutoff`` tokens.

    A longer example loses the end of its chain, then the end of its passage; never its instruction,
    query or label.

    Args:
        encode: text → ids, without the tokenizer's own start and end tokens; ``<think>``
            and ``</think>`` are one id each.
        end_id: the end-of-sequence token.
        source: the file's name, for messages.
        before: the ids that precede every prompt (``<s>``).
        longest_token: characters of the vocabulary's longest token. It bounds the length of a text that
            can fit, and a text's end beyond the bound is not encoded.
        answers: what to write for each graded label. The examples have no chain then. None: true and false.

    Raises:
        UserError: query and label do not fit into the cutoff, or it cannot be told where the passage of
            a too long prompt begins.
    """
    most = None if longest_token is None else (cutoff + _SPARE_TOKENS) * longest_token
    return [
        _encode(_clipped(example, most), encode, end_id, cutoff, source, list(before), answers) for example in examples
    ]


_SPARE_TOKENS = 64


def _clipped(example: Example, most: int | None) -> Example:
    """The example with at most ``most`` characters of its chain and of its passage: the rest would be
    truncated as tokens."""
    if most is None or len(example.prompt) + len(example.chain) <= most:
        return example
    head, tail = _around_passage(example.prompt)
    prompt = example.prompt
    if head is not None and len(prompt) > len(head) + most + len(tail):
        prompt = prompt[: len(head) + most] + tail
    return replace(example, prompt=prompt, chain=example.chain[:most])


def _plain(encode: Encode, text: str) -> list[int]:
    """Ids of a chain as plain characters: a think token at its start or end is encoded in two pieces."""
    head = text[:1] if text.startswith(THINK_CLOSE) else ""
    tail = text[-1:] if text.endswith(THINK_OPEN) else ""
    pieces = (head, text[len(head) : len(text) - len(tail)], tail)
    return [each for piece in pieces if piece for each in encode(piece)]


def _encode(
    example: Example,
    encode: Encode,
    end_id: int,
    cutoff: int,
    source: str,
    before: list[int],
    answers: Mapping[str, Answer] | None,
) -> EncodedExample:
    import numpy as np

    # Three pieces give the same ids as the whole text: <think> and </think> are added tokens, and a
    # tokenizer never merges across one.
    prompt = before + encode(example.prompt)
    chain, no_chain = _plain(encode, example.chain), encode(NO_CHAIN)
    if answers is None:
        answer, learned = encode(THINK_CLOSE + (example.label or TRUE)), 1
    else:
        written = answers[example.label]
        answer, learned = [*encode(THINK_CLOSE), *written.ids], written.learned
    # Without a chain the close belongs to the prompt: a model that learned to write it would stop
    # thinking. The model is then asked for the label alone, so no end of sequence follows.
    direct = not example.chain.strip()
    over = len(prompt) + len(chain) + len(answer) + (not direct) - cutoff
    truncated = over > 0
    if truncated:
        chain = _drop_end(chain, over, keep_last=no_chain)
        direct = direct or chain == no_chain
        over = len(prompt) + len(chain) + len(answer) + (not direct) - cutoff
    if over > 0:
        head, tail = _around_passage(example.prompt)
        if head is None:
            raise UserError(
                f"{source}:{example.line}: longer than training.cutoff_tokens={cutoff}, and without a line that begins "
                "with 'Passage: ' it cannot be truncated: raise the cut-off, or remove the line"
            )
        prompt = _drop_end(prompt, over, keep_last=encode(tail))
        max_tokens = cutoff - len(chain) - len(answer) - (not direct)
        if not len(before) + len(encode(head)) + len(encode(tail)) <= len(prompt) <= max_tokens:
            raise UserError(
                f"{source}:{example.line}: instruction, query and label do not fit in "
                f"training.cutoff_tokens={cutoff}: raise it, or remove the line"
            )
    ids = np.asarray(prompt + chain + answer + ([] if direct else [end_id]), dtype=np.int32)
    without_loss = len(ids) - learned if direct else len(prompt)
    return EncodedExample(
        example.line, ids, without_loss, is_relevant(example), example.query, truncated, score=example.score
    )


def is_relevant(example: Example) -> bool | None:
    """Whether the label is true; None if it is neither true nor false."""
    return example.label == TRUE if example.label in LABELS else None


def _drop_end(ids: list[int], count: int, keep_last: list[int]) -> list[int]:
    """The beginning of ``ids``, then ``keep_last``: shorter by ``count``, or as short as ``keep_last``."""
    kept = len(ids) - count - len(keep_last)
    return ids[: max(kept, 0)] + keep_last


def _around_passage(prompt: str) -> tuple[str | None, str]:
    """The text of a prompt before its passage, None if that cannot be told, and the text after it."""
    before = before_passage(prompt)
    head = None if before is None else (before + PASSAGE_MARK).rstrip(" ")
    tail = next((tail for tail in (f"\n{THINK_OPEN}", THINK_OPEN) if prompt.endswith(tail)), "")
    return head, tail
