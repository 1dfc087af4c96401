"""The words of a text that BM25 counts, as Lucene's analyzers for its language find them.

A word is lower case, keeps its combining marks, has at least two characters, is not a stop word, and is
stemmed (Snowball). Scripts that put no spaces between words, and Hangul, are split into overlapping
bigrams of characters, as Lucene's CJKAnalyzer does; a single character is a word. The script of a run of
characters decides how it is split, so a text may mix scripts.
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
"""Scripts, and the prolonged sound mark that Japanese scripts share."""


@lru_cache
def _pattern():
    import regex

    return regex.compile(rf"(?V1)(?P<run>[{_UNSPACED}]+)|[[\w\p{{M}}]--[{_UNSPACED}]]{{2,}}")


@lru_cache
def _invisible():
    """Soft hyphens, joiners and direction marks, which split no word. A zero-width space does."""
    import regex

    return regex.compile(r"(?V1)[\p{Cf}--[\u200b]]")


def folded(text: str) -> str:
    """The text with half-width kana, composed accents and capitals in one form (NFKC, case-folded)."""
    # Case folding decomposes some characters, so the text is composed a second time; İ becomes i and a combining dot.
    normal = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    if normal.isascii():
        return normal.casefold()
    lower = unicodedata.normalize("NFKC", normal.casefold()).replace("i\u0307", "i")
    return _invisible().sub("", lower)


def words(text: str) -> Iterator[str]:
    """The words of a text in order, with stop words and before stemming.

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
    """The stems of a text's words in ``first_stage.language``, without stop words."""

    def __init__(self, first_stage: FirstStageConfig) -> None:
        from bm25s.tokenization import _infer_stopwords
        from Stemmer import Stemmer

        known = first_stage.word_list
        self._stopwords = frozenset(map(folded, _infer_stopwords(known))) if known else frozenset()
        self._stemmer = Stemmer(first_stage.stems) if first_stage.stems else None
        # In Turkish, i with and without a dot are two letters, each with its own capital.
        self._capitals = {ord("I"): "ı", ord("İ"): "i"} if first_stage.language == "turkish" else {}

    def tokens(self, texts: Iterable[str]) -> Tokenized:
        """The texts as bm25s indexes and searches them. Each distinct word is stemmed once."""
        from bm25s.tokenization import Tokenized

        word_ids: dict[str, int] = {}
        found = [[word_ids.setdefault(word, len(word_ids)) for word in self._counted(text)] for text in texts]
        stems = self._stemmer.stemWords(list(word_ids)) if self._stemmer else list(word_ids)
        vocabulary: dict[str, int] = {}
        stem_ids = [vocabulary.setdefault(stem, len(vocabulary)) for stem in stems]
        return Tokenized(ids=[[stem_ids[word_id] for word_id in text] for text in found], vocab=vocabulary)

    def _counted(self, text: str) -> Iterator[str]:
        return (word for word in words(text.translate(self._capitals)) if word not in self._stopwords)
