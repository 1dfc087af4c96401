"""Training examples: lines of ``train.jsonl`` → token ids with the loss on the completion.

A line is ``{"prompt": "…\\n<think>", "completion": "\\n{chain}\\n</think> true"}``: the
prompt as the reranker will see it, and what it should write (the paper's format). Pure
Python, but for the arrays of ids.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from limrank.errors import UnavailableError, UserError
from limrank.scoring import LABELS, THINK_CLOSE, THINK_OPEN, TRUE

if TYPE_CHECKING:
    import numpy as np

NO_CHAIN = "\n"
"""The chain of an example that is answered directly."""

Encode = Callable[[str], list[int]]
T = TypeVar("T")

_COMPLETION = re.compile(rf"(?P<chain>.*){THINK_CLOSE}(?P<label>{'|'.join(LABELS)})\s*", re.DOTALL)
_PASSAGE = "\nPassage: "


@dataclass(frozen=True, slots=True)
class Example:
    """One line of a training file. ``line`` is 1-based; ``chain`` is all before ``</think>``."""

    line: int
    prompt: str
    chain: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """``ids`` (int32, one dimension) are prompt and completion.

    The first ``prompt_tokens`` carry no loss. What follows is the chain, its close, the label
    and the end of sequence; of an example that is answered directly, the label alone. ``label``
    says whether the passage is relevant; ``query`` is the same for all passages of a query.
    ``cut`` says that tokens were left out.
    """

    line: int
    ids: np.ndarray
    prompt_tokens: int
    label: bool
    query: str
    cut: bool

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens


def read_examples(path: str | Path) -> list[Example]:
    """Every example of a training file, in its order; blank lines are passed over.

    Raises:
        UserError: with file and line, where a line is not such an example; or the file
            is missing or empty.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise UnavailableError(f"training.train_file: {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"training.train_file: {path}: cannot be read: {error}") from None
    examples = [_parse(line, number, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not examples:
        raise UserError(f"{path}: holds no examples")
    return examples


def _parse(line: str, number: int, where: str) -> Example:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: should be an object with prompt and completion")
    for key in ("prompt", "completion"):
        if key not in values:
            raise UserError(f"{where}: {key} is missing")
        if not isinstance(values[key], str) or not values[key].strip():
            raise UserError(f"{where}: {key} should be a text that is not empty")
    found = _COMPLETION.fullmatch(values["completion"])
    if not found:
        raise UserError(f"{where}: completion should end in '{THINK_CLOSE} true' or '{THINK_CLOSE} false'")
    return Example(number, values["prompt"], found["chain"], found["label"], values["prompt"].rpartition(_PASSAGE)[0])


def select(examples: list[Example], count: int | None, seed: int) -> list[Example]:
    """At most ``count`` examples, half of each label where there are enough of both.

    The sample depends on ``seed`` alone, and keeps the order of the file.
    """
    if count is None or count >= len(examples):
        return examples
    chance = random.Random(seed)
    groups = [[example for example in examples if example.label == label] for label in LABELS]
    for group in groups:
        chance.shuffle(group)
    first, second = groups
    # A label that is short of its half leaves the rest to the other.
    of_second = min(len(second), count - min(len(first), (count + 1) // 2))
    chosen = first[: count - of_second] + second[:of_second]
    return sorted(chosen, key=lambda example: example.line)


def split(examples: list[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """(training, validation): ``share`` of the examples, rounded down, is held out."""
    held_out = set(random.Random(seed).sample(range(len(examples)), int(len(examples) * share)))
    training = [example for index, example in enumerate(examples) if index not in held_out]
    return training, [examples[index] for index in sorted(held_out)]


def aim(examples: Iterable[Example], target: Literal["direct", "think", "mixed"]) -> list[Example]:
    """The examples with what the model shall learn to write.

    ``think`` keeps the chain, ``direct`` drops it, ``mixed`` alternates: one model then
    serves both. The switch between the two is ``</think>`` straight after ``<think>``, which
    whoever asks for a direct answer puts there. The alternation is counted by label: files
    often alternate labels too, and the mere presence of a chain must not give the answer away.
    """
    aimed, seen = [], dict.fromkeys(LABELS, 0)
    for example in examples:
        direct = target == "direct" or (target == "mixed" and seen[example.label] % 2 == 1)
        seen[example.label] += 1
        aimed.append(replace(example, chain=NO_CHAIN) if direct else example)
    return aimed


def encode_examples(
    examples: Iterable[Example], encode: Encode, end_id: int, cutoff: int, source: str
) -> list[EncodedExample]:
    """Token ids of every example, none longer than ``cutoff`` tokens.

    What is too long loses the end of its chain, then the end of its passage; never
    instruction, query or label.

    Args:
        encode: text → ids, without the tokenizer's own start and end tokens; ``<think>``
            and ``</think>`` are one id each.
        end_id: the end-of-sequence token.
        source: the file's name, for messages.

    Raises:
        UserError: the cutoff has no room for query and label.
    """
    return [_encode(example, encode, end_id, cutoff, source) for example in examples]


def _encode(example: Example, encode: Encode, end_id: int, cutoff: int, source: str) -> EncodedExample:
    import numpy as np

    # Encoded in three parts, which gives the same ids as the whole: <think> and
    # </think> are added tokens, and a tokenizer never merges across one.
    prompt = encode(example.prompt)
    chain = encode(example.chain)
    # Where there is no chain, whoever asks closes it: a model that learned to write the close
    # would stop thinking. And it is asked for one token, so no end follows.
    direct = not example.chain.strip()
    answer = [*encode(THINK_CLOSE + example.label), *([] if direct else [end_id])]
    over = len(prompt) + len(chain) + len(answer) - cutoff
    cut = over > 0
    if cut:
        chain = _drop_end(chain, over, keep_last=encode(NO_CHAIN))
        over = len(prompt) + len(chain) + len(answer) - cutoff
    if over > 0:
        head, tail = _around_passage(example.prompt)
        prompt = _drop_end(prompt, over, keep_last=encode(tail))
        if len(prompt) + len(chain) + len(answer) > cutoff or len(prompt) < len(encode(head)) + len(encode(tail)):
            raise UserError(
                f"{source}:{example.line}: instruction, query and label do not fit in "
                f"training.cutoff_tokens={cutoff}: raise it, or remove the line"
            )
    ids = np.asarray(prompt + chain + answer, dtype=np.int32)
    without_loss = len(ids) - 1 if direct else len(prompt)
    return EncodedExample(example.line, ids, without_loss, example.label == TRUE, example.query, cut)


def _drop_end(ids: list[int], count: int, keep_last: list[int]) -> list[int]:
    """``ids`` shorter by ``count`` (or as many as there are), ending in ``keep_last``."""
    kept = len(ids) - count - len(keep_last)
    return ids[: max(kept, 0)] + keep_last


def _around_passage(prompt: str) -> tuple[str, str]:
    """What stands before and after the passage of a prompt."""
    found = prompt.find(_PASSAGE)
    head = prompt[: found + len(_PASSAGE)].rstrip(" ") if found >= 0 else ""
    tail = next((tail for tail in (f"\n{THINK_OPEN}", THINK_OPEN) if prompt.endswith(tail)), "")
    return head, tail
