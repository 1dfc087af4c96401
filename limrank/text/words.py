"""The words of a text, whatever its case, punctuation, white space or Unicode form.

Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese)
have a word a character, and two of those are counted as one word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""How Unicode's names of the letters of these scripts begin."""

_MARK = "\0"
"""Stands for punctuation and symbols until it is said whether they part a word."""


def words(text: str) -> list[str]:
    """The words of ``text``, parted at punctuation too: ``IL-6's`` is ``il``, ``6``, ``s``."""
    return _spelt(text).replace(_MARK, " ").split()


def spellings(text: str) -> list[tuple[str, ...]]:
    """The words of ``text`` parted at punctuation and, where that differs, with punctuation
    taken out of them: people strip it in both ways. The last are those between white space."""
    spelt = _spelt(text)
    parted = tuple(spelt.replace(_MARK, " ").split())
    whole = tuple(spelt.replace(_MARK, "").split())
    return [parted] if parted == whole else [parted, whole]


def count(words: Sequence[str]) -> int:
    """How many words these are, two characters of a script without spaces being one."""
    # Chinese words are 1.5 to 2 characters long on average, Japanese and Thai ones longer.
    characters = sum(len(word) == 1 and not word.isascii() and _unspaced(word) for word in words)
    return len(words) - characters // 2


def _spelt(text: str) -> str:
    if text.isascii():
        return text.lower().translate(_spelling)
    # NFKC_Casefold of the Unicode standard, 3.13: folding can undo the form, so it is taken again.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_spelling)


class _Spelling(dict[int, str]):
    """What becomes of a character, learned as characters come."""

    def __missing__(self, code: int) -> str:
        self[code] = spelt = _letter(chr(code))
        return spelt


_spelling = _Spelling()


def _letter(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace():
        return " "
    if category == "Cf":  # soft hyphens, zero-width spaces
        return ""
    if category[0] not in "LMN":
        return _MARK
    return f" {character} " if category[0] == "L" and _unspaced(character) else character


@cache
def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)


def runs(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def similarity(one: Sequence[str], other: Sequence[str], length: int = 3) -> float:
    """Jaccard similarity of two texts' runs of words, in [0, 1]; where one is shorter than a
    run, of runs as long as it."""
    length = max(1, min(length, len(one), len(other)))
    left, right = runs(one, length), runs(other, length)
    return len(left & right) / len(left | right) if left | right else 1.0
