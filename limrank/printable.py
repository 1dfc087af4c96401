"""Text of anybody's, made safe for what shows it: a terminal, Markdown.

HTML has :mod:`limrank.html`, which spells out the same characters.
"""

from __future__ import annotations

import re
import unicodedata

ONE_LINE = 500
"""Characters that a message of one line has at most."""

PAGE = 20_000
"""Characters of a text that is shown as it is, such as a prompt."""

_MAY_HIDE = re.compile(r"[^\x20-\x7e\xa0-\xac\xae-\u02ff\u3040-\u9fff\uac00-\ud7a3]")
"""Characters whose category has to be looked up."""

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Control and format characters (those that turn the direction of text, and those without a width,
among them), half surrogate pairs, and ends of lines and paragraphs."""

_MARKDOWN = re.compile(r"[\\`*<>\[\]!&|]")


_JOINERS = "\u200c\u200d"
"""Zero-width characters that words of many languages, and emoji, are written with."""


def is_unseen(character: str) -> bool:
    """Whether a character does something on a screen instead of being seen there."""
    return unicodedata.category(character) in _UNSEEN and character not in _JOINERS


def spell_out(text: str, spelt: object, *, lines: bool = False) -> str:
    """The text with what is not seen replaced.

    Args:
        spelt: a function: such a character → what stands for it.
        lines: whether tabs and ends of lines stay, in text that has several lines on purpose.
    """
    keeps = "\t\n" if lines else ""

    def replace(found: re.Match[str]) -> str:
        character = found[0]
        return spelt(character) if character not in keeps and is_unseen(character) else character

    return _MAY_HIDE.sub(replace, text)


def printable(text: object, limit: int | None = ONE_LINE, *, lines: bool = False) -> str:
    """A text for a terminal: what would move its cursor, colour it, hide or turn text is spelt out
    as Python writes it (``\\x1b``, ``\\u202e``), and a long one loses its middle.

    >>> printable("id\\x1b[31m\\nof two lines")
    'id\\\\x1b[31m\\\\nof two lines'

    Args:
        limit: characters it has at most; None: as many as it has.
        lines: whether tabs and ends of lines stay.
    """
    text = str(text)
    if limit is not None and len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return spell_out(text, _as_python, lines=lines)


def _as_python(character: str) -> str:
    return character.encode("unicode_escape").decode()


def as_markdown(text: object, limit: int | None = ONE_LINE) -> str:
    """A text for a line of Markdown: shown as it is, whatever marks, HTML or links it has."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text, limit))
