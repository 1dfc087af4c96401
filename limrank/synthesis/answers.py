"""Reads what a chat model wrote: its thought, its answer, the verdict in the answer, and the
chain without the formula that repeats the verdict."""

from __future__ import annotations

import re

from limrank.engines.base import Generation
from limrank.scoring import THINK_CLOSE, THINK_OPEN

_VERDICT = re.compile(r"(?<![^\W_])(true|false)(?:[\W_]*</answer>)?[\W_]*\Z", re.IGNORECASE)

_NO_VERDICT = re.compile(r"""(?:\b(?:not|never|nor|neither|or)|n['’]t)[ *_"'`“‘]+\Z|/\s*\Z""", re.IGNORECASE)
"""Text before a last word that is no verdict: "is not true", "true or false", "true/false"."""

_MARKS = " \t\r*_#>:\"'`“”‘’$([{<-–—=→"
"""Characters that may precede a verdict on its line and are no part of a word."""

_LATEX = re.compile(r"\\[\[(]?(?:boxed|text\w*|math\w*)?\s*\{?\Z")

_LEAD = re.compile(
    r"""(?<!\w)
    (?:
        (?: (?: and | so | thus | hence | therefore | overall | finally | in \ conclusion ) [\s,:*_]+ )*
        (?: (?: the | my | our | this ) [\s*_]+ )?
        (?: (?: final | correct | right ) [\s*_]+ )? (?: answer | verdict )
        (?: [\s*_]+ (?: is | (?: should | would | must | will | has \ to ) \ be ) )?
      | (?: \A | (?<=\n) ) [\s*_#>-]* (?: relevance | relevant | judge?ment | conclusion | label )
      | (?: so | thus | hence | therefore | overall | finally ) [*_]* [,:]
    )
    [\s*_:>"'`]* \Z""",
    re.IGNORECASE | re.VERBOSE,
)
"""Phrases that introduce a verdict: "So the answer is", "**Final Answer**", "Relevance:"."""

_HEADING = re.compile(r"^[ *_#>]*(?:the )?(?:final )?(?:answer|verdict)[ *_:]*$", re.IGNORECASE | re.MULTILINE)
_WORDS_BELOW_HEADING = 25

_END = 200
"""Only the last characters of a text are searched for its formula: a chain may have thousands."""


def split_reasoning(generation: Generation) -> tuple[str | None, str]:
    """A model's thought, None if it wrote none, and its answer.

    The thought is the endpoint's separate field, or the text up to ``</think>``; the ``<think>``
    may have been in the prompt. A truncated thought has no answer: it is "".
    """
    if generation.reasoning is not None:
        return generation.reasoning.strip(), generation.text.strip()
    thought, closed, answer = generation.text.rpartition(THINK_CLOSE)
    if closed:
        return thought.strip().removeprefix(THINK_OPEN).strip(), answer.strip()
    text = generation.text.strip()
    return (text.removeprefix(THINK_OPEN).strip(), "") if text.startswith(THINK_OPEN) else (None, text)


def read_verdict(generation: Generation) -> tuple[bool | None, str | None]:
    """A judge's verdict and its chain, each None if there is none.

    The verdict is the last word of the answer, if that is true or false. The chain is the thought
    or, without one, the answer up to the verdict. It ends before the formula that states the verdict.

    A truncated generation has no verdict, whatever its last word is: where a chat template opens
    the thought, nothing in the text separates thought and answer.
    """
    thought, answer = split_reasoning(generation)
    found = _verdict(answer)
    if found is not None:
        answer = _before_verdict(answer[: found.start()])[0]
    chain = without_formula(thought or answer) or None
    if found is None or generation.finish_reason == "length":
        return None, chain
    return found[1].lower() == "true", chain


def without_formula(chain: str) -> str:
    """A chain without the formulas at its end that state the verdict: "So the answer is: true",
    "**Final Answer**" with ``\\boxed{true}`` below it, a line with only the verdict. Any other
    sentence that ends in one of the two words ("the claim is false") is part of its reasons."""
    chain = chain.strip()
    while found := _verdict(chain):
        before, is_formula = _before_verdict(chain[: found.start()])
        if not is_formula:
            break
        chain = before
    return chain


def _verdict(text: str) -> re.Match[str] | None:
    found = _VERDICT.search(text, max(0, len(text) - _END))
    return None if found and _NO_VERDICT.search(text[max(0, found.start() - 20) : found.start()]) else found


def _before_verdict(text: str) -> tuple[str, bool]:
    """The text before a verdict without the phrase that introduces it, and whether the verdict is a
    formula: it has a line of its own, LaTeX's box, or an introduction such as "the answer is"."""
    head, newline, line = text.rpartition("\n")
    plain = _without_marks(line)
    before = (head + newline + plain).rstrip()
    lead = _LEAD.search(before, max(0, len(before) - _END))
    if lead:
        before = _without_marks(before[: lead.start()])
    before = before.rstrip(" \t\r\n,;")
    while before and not _without_marks(before[before.rfind("\n") + 1 :]):  # Markdown's rules and marks
        before = before[: max(before.rfind("\n"), 0)].rstrip()
    # Below its own heading an answer may have one more sentence of reasons.
    headings = list(_HEADING.finditer(before, max(0, len(before) - _END)))
    above = before[: headings[-1].start()].rstrip() if headings else ""
    if above and len(before[headings[-1].end() :].split()) <= _WORDS_BELOW_HEADING:
        before = above
    return before.strip(), bool(lead) or not plain or "\\" in line[len(plain) :]


def _without_marks(line: str) -> str:
    while (shorter := _LATEX.sub("", line.rstrip(_MARKS))) != line:
        line = shorter
    return line
