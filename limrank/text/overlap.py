"""Overlap between texts: the same words, the same words but for a few, or a common run of words.

Each text is indexed by its rarest words and by blocks of words. A candidate must share enough of its rare words, or a
block. Candidates are compared word by word, so the result is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from limrank.text.words import count, spellings

MIN_WORDS = 4
"""Words between white space. A shorter text is a topic ("bank holidays") that many texts share; only a text of
the same words repeats it."""

WORDS_A_CHANGE = 5
"""One word in five may differ, and one word of four. With one in three, "what county is galva ks in" would
repeat "what county is cabazon ca in"."""

_WORDS_A_MATCH = 12
"""A candidate must share one rare word, and one more for every twelve words of the text. With one or two,
every long text would be compared with too many."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """What is repeated of an indexed text.

    Attributes:
        index: of the text, from 0.
        words: how many of its words are repeated in order.
        share: of its words, in (0, 1].
    """

    index: int
    words: int
    share: float


class TextIndex:
    """Texts that other texts may repeat. It is plain data and can be pickled.

    A text repeats an indexed one if it has

    1. the same words;
    2. the same words in the same order, but for one, or one in ``WORDS_A_CHANGE`` of the longer text, that is
       replaced, left out or inserted;
    3. a run of ``run`` of its words anywhere, or all of its words if they are at least half as many.

    Rules 2 and 3 need ``MIN_WORDS`` words. They hold for either of the :func:`~limrank.text.words.spellings`,
    so a hyphenated word that is replaced counts as one.
    """

    def __init__(self, texts: Iterable[str], run: int) -> None:
        self._run = run
        self._block = (run + 1) // 2
        self._same: dict[tuple[str, ...], int] = {}
        self._spellings: list[tuple[str, ...]] = []
        self._indexes: list[int] = []
        vocabulary: dict[str, str] = {}  # each word is held once, in memory and in a pickle
        for index, text in enumerate(texts):
            variants = [tuple(vocabulary.setdefault(word, word) for word in words) for words in spellings(text)]
            for words in filter(None, variants):
                self._same.setdefault(words, index)
            if count(variants[-1]) >= MIN_WORDS:
                self._spellings += variants
                self._indexes += [index] * len(variants)
        self._matches_needed = [1 + len(words) // _WORDS_A_MATCH for words in self._spellings]
        self._rare = self._by_rare_word()
        self._blocks = self._by_block()

    def find(self, text: str) -> Repeat | None:
        """The indexed text of which ``text`` repeats the largest share, the first at a tie; None if there is none."""
        variants = spellings(text)
        same = [Repeat(self._same[words], len(words), 1.0) for words in variants if words in self._same]
        if same:
            return min(same, key=lambda repeat: repeat.index)
        if count(variants[-1]) < MIN_WORDS:
            return None
        repeats = chain.from_iterable(chain(self._near(words), self._runs(words)) for words in variants)
        return max(repeats, key=lambda repeat: (repeat.share, -repeat.index), default=None)

    def _by_rare_word(self) -> dict[str, list[int]]:
        """The texts by their rarest words: as many as may differ, and as many as must match."""
        found: dict[str, list[int]] = {}
        texts_with = Counter(chain.from_iterable(map(set, self._spellings)))
        for number, words in enumerate(self._spellings):
            rarest = sorted(words, key=lambda word: (texts_with[word], word))
            for word in rarest[: _changes(len(words)) + self._matches_needed[number]]:
                found.setdefault(word, []).append(number)
        return found

    def _by_block(self) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        """The texts by blocks of words, so short that every run of ``run`` words holds a whole block."""
        found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for number, words in enumerate(self._spellings):
            for at in range(0, len(words) - self._block + 1, self._block):
                found.setdefault(words[at : at + self._block], []).append((number, at))
        return found

    def _near(self, words: Sequence[str]) -> Iterator[Repeat]:
        present = Counter(chain.from_iterable(self._rare.get(word, ()) for word in dict.fromkeys(words)))
        for number in (number for number, rare in present.items() if rare >= self._matches_needed[number]):
            other = self._spellings[number]
            if common := same_but_for_few(words, other):
                yield Repeat(self._indexes[number], common, common / len(other))

    def _runs(self, words: Sequence[str]) -> Iterator[Repeat]:
        for start, block in enumerate(zip(*(words[skipped:] for skipped in range(self._block)), strict=False)):
            for number, at in self._blocks.get(block, ()):
                other = self._spellings[number]
                run = _run_around(other, at, words, start)
                if len(run) == len(other) or count(run) >= self._run:
                    yield Repeat(self._indexes[number], len(run), len(run) / len(other))


def same_but_for_few(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence of two texts' words, where all but one, or all but one in
    ``WORDS_A_CHANGE`` of the longer, are in it; 0 where more differ."""
    from rapidfuzz.distance import LCSseq

    longer = max(len(one), len(other))
    return LCSseq.similarity(one, other, score_cutoff=max(0, longer - _changes(longer)))


def _changes(length: int) -> int:
    return max(1, length // WORDS_A_CHANGE)


def _run_around(one: Sequence[str], at: int, other: Sequence[str], other_at: int) -> Sequence[str]:
    """The words of ``one`` around ``at`` that ``other`` has in a row around ``other_at``."""
    first, last = at, at
    while first > 0 and other_at > at - first and one[first - 1] == other[other_at - (at - first) - 1]:
        first -= 1
    while last < len(one) and other_at + last - at < len(other) and one[last] == other[other_at + last - at]:
        last += 1
    return one[first:last]
