"""Untrusted text made safe for a terminal and for Markdown.

:mod:`limrank.html` replaces the same characters in HTML.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

ONE_LINE = 500
"""The most characters of a one-line message."""

PAGE = 20_000
"""The most characters of a text displayed over several lines, such as a prompt."""

_MAY_HIDE = re.compile(r"[^\x20-\x7e\xa0-\xac\xae-\u02ff\u3040-\u9fff\uac00-\ud7a3]")
"""Characters whose category must be checked."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories: control and format characters (such as direction marks and zero-width characters), half
surrogate pairs, and line and paragraph separators."""

_MARKDOWN = re.compile(r"[\\`*<>\[\]!&|]")


_JOINERS = "\u200c\u200d"
"""Zero-width characters that belong to the spelling of many languages and of emoji."""


def is_invisible(character: str) -> bool:
    """Whether a character controls the display instead of being displayed."""
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def spell_out(text: str, spelling: Callable[[str], str], *, lines: bool = False) -> str:
    """The text with invisible characters replaced.

    Args:
        spelling: an invisible character → its replacement.
        lines: whether tabs and line ends stay, for text of several lines.
    """
    keeps = "\t\n" if lines else ""

    def replace(found: re.Match[str]) -> str:
        character = found[0]
        return spelling(character) if character not in keeps and is_invisible(character) else character

    return _MAY_HIDE.sub(replace, text)


def printable(text: object, limit: int | None = ONE_LINE, *, lines: bool = False) -> str:
    """A text for a terminal, with invisible characters as Python's escapes (``\\x1b``, ``\\u202e``).

    Such characters could move the cursor, or colour, hide or reverse text. The middle of a long text is left out.

    >>> printable("id\\x1b[31m\\nof two lines")
    'id\\\\x1b[31m\\\\nof two lines'

    Args:
        limit: the most characters; None: no limit.
        lines: whether tabs and line ends stay.
    """
    text = str(text)
    if limit is not None and len(text) > limit:
        half = (limit - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    return spell_out(text, _as_python, lines=lines)


def _as_python(character: str) -> str:
    return character.encode("unicode_escape").decode()


def as_markdown(text: object, limit: int | None = ONE_LINE) -> str:
    """A text for a line of Markdown, with marks, HTML and links escaped."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text, limit))
