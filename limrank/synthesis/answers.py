"""What a chat model wrote: its thought told apart from its answer, and the verdict in it."""

from __future__ import annotations

import re

from limrank.engines.base import Generation
from limrank.scoring import THINK_CLOSE, THINK_OPEN

_VERDICT = re.compile(r"\b(true|false)\W*\Z", re.IGNORECASE)
_LEAD = re.compile(
    r"""[\s*_#>-]* (?: \b (?: (?:so|therefore|my|the|final) \W+ )* (?:answer|verdict) (?:\s+is)? )? [\s*_#>:"'`-]* \Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""What may stand before a verdict and is no part of the chain: ``**Answer:**``."""


def apart(generation: Generation) -> tuple[str | None, str]:
    """A model's thought, None where it told none, and its answer.

    A thought is what the endpoint gives apart, or what ends in ``</think>``; its ``<think>``
    may have been in the prompt. Of a thought that was cut off there is no answer.
    """
    if generation.reasoning is not None:
        return generation.reasoning.strip(), generation.text.strip()
    thought, closed, answer = generation.text.rpartition(THINK_CLOSE)
    if closed:
        return thought.strip().removeprefix(THINK_OPEN).strip(), answer.strip()
    text = generation.text.strip()
    return (text.removeprefix(THINK_OPEN).strip(), "") if text.startswith(THINK_OPEN) else (None, text)


def read_verdict(generation: Generation) -> tuple[bool | None, str | None]:
    """The verdict that a judge's answer ends in, None where it does not, and its chain: the
    thought or, of a model that told none, what it wrote before the verdict; None where
    there is neither."""
    thought, answer = apart(generation)
    found = _VERDICT.search(answer)
    before = _LEAD.sub("", answer[: found.start()] if found else answer).strip()
    return found and found[1].lower() == "true", thought or before or None
