"""The words of a text, regardless of case, punctuation, white space and Unicode form.

In scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is
a word; :func:`count` counts two of them as one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""The beginnings of the Unicode names of these scripts' letters."""

_MARK = "\0"
"""Replaces punctuation and symbols until it is known whether they split a word."""


def words(text: str) -> list[str]:
    """The words of ``text``, split at punctuation too: ``IL-6's`` is ``il``, ``6``, ``s``."""
    return _normalized(text).replace(_MARK, " ").split()


def spellings(text: str) -> list[tuple[str, ...]]:
    """The words of ``text`` split at punctuation and, if that differs, with punctuation removed.

    People strip punctuation in both ways. The last spelling has the words between white space.
    """
    normalized = _normalized(text)
    split = tuple(normalized.replace(_MARK, " ").split())
    whole = tuple(normalized.replace(_MARK, "").split())
    return [split] if split == whole else [split, whole]


def count(words: Sequence[str]) -> int:
    """The number of words; two characters of a script without spaces count as one."""
    # The average word has 1.5 to 2 characters in Chinese, and more in Japanese and Thai.
    characters = sum(len(word) == 1 and not word.isascii() and _unspaced(word) for word in words)
    return len(words) - characters // 2


def _normalized(text: str) -> str:
    if text.isascii():
        return text.lower().translate(_normal_forms)
    # NFKC_Casefold of the Unicode standard, 3.13: folding can undo the normal form, so it is applied twice.
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded).translate(_normal_forms)


class _NormalForms(dict[int, str]):
    """The normal form of each character, computed at its first use."""

    def __missing__(self, code: int) -> str:
        self[code] = normal = _letter(chr(code))
        return normal


_normal_forms = _NormalForms()


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
    """All runs of ``length`` words."""
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def similarity(one: Sequence[str], other: Sequence[str], length: int = 3) -> float:
    """Jaccard similarity of two texts' runs of ``length`` words, in [0, 1].

    If a text is shorter, the runs are as long as it.
    """
    length = max(1, min(length, len(one), len(other)))
    left, right = runs(one, length), runs(other, length)
    return len(left & right) / len(left | right) if left | right else 1.0
