"""A text → the words that BM25 counts, as Lucene's analyzers for the language find them.

Words are lower case, whole whatever marks they combine, at least two characters long, without
stop words, and stemmed (Snowball). Scripts that put no blanks between words, and Hangul, are cut
into overlapping pairs of characters, as Lucene's CJKAnalyzer does; a character that stands alone
is a word. Which of the two a run of characters is depends on its script alone, so texts may mix them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from limrank.config import FirstStageConfig

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenized

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}ー"
"""Scripts, and the mark of length that Japanese scripts share."""


@lru_cache
def _pattern():
    import regex

    return regex.compile(rf"(?V1)(?P<run>[{_UNSPACED}]+)|[[\w\p{{M}}]--[{_UNSPACED}]]{{2,}}")


@lru_cache
def _invisible():
    """Soft hyphens, joiners and marks of direction, which split no word; a space of no width does."""
    import regex

    return regex.compile(r"(?V1)[\p{Cf}--[\u200b]]")


def folded(text: str) -> str:
    """What looks the same as the same characters: half-width kana, composed accents, capitals."""
    # Folding case takes some characters apart, so they are put together again; İ becomes an i with a second dot.
    normal = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    if normal.isascii():
        return normal.casefold()
    lower = unicodedata.normalize("NFKC", normal.casefold()).replace("i\u0307", "i")
    return _invisible().sub("", lower)


def words(text: str) -> Iterator[str]:
    """The words of a text in their order, stop words and endings included.

    >>> list(words("Merging 2 feeds: 東京都"))
    ['merging', 'feeds', '東京', '京都']
    """
    for found in _pattern().finditer(folded(text)):
        run = found["run"]
        if run is None:
            yield found[0]
        elif len(run) == 1:
            yield run
        else:
            yield from map("".join, zip(run, run[1:], strict=False))


class Analyzer:
    """The words of ``first_stage.language``, without its stop words, as their stems."""

    def __init__(self, first_stage: FirstStageConfig) -> None:
        from bm25s.tokenization import _infer_stopwords
        from Stemmer import Stemmer

        known = first_stage.word_list
        self._stopwords = frozenset(map(folded, _infer_stopwords(known))) if known else frozenset()
        self._stemmer = Stemmer(first_stage.stems) if first_stage.stems else None
        # Turkish has a pair of letters each with and without a dot, which other languages take for one.
        self._capitals = {ord("I"): "ı", ord("İ"): "i"} if first_stage.language == "turkish" else {}

    def tokens(self, texts: Iterable[str]) -> Tokenized:
        """The texts as bm25s indexes and searches them. Each different word is stemmed once."""
        from bm25s.tokenization import Tokenized

        places: dict[str, int] = {}
        found = [[places.setdefault(word, len(places)) for word in self._counted(text)] for text in texts]
        stems = self._stemmer.stemWords(list(places)) if self._stemmer else list(places)
        vocabulary: dict[str, int] = {}
        ids = [vocabulary.setdefault(stem, len(vocabulary)) for stem in stems]
        return Tokenized(ids=[[ids[place] for place in text] for text in found], vocab=vocabulary)

    def _counted(self, text: str) -> Iterator[str]:
        return (word for word in words(text.translate(self._capitals)) if word not in self._stopwords)
