"""Which of many texts another text repeats: the same words, the same but for a few, or a run
of them.

Texts are found by their rarest words and by blocks of words, and then compared word by
word: no answer is a guess, and none is missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from limrank.text.words import count, spellings

MIN_WORDS = 4
"""Between white space. Fewer are a topic ("bank holidays") that many texts have in common:
only the same words repeat them."""

WORDS_A_CHANGE = 5
"""One word in five may differ, and one of four. With one in three, "what county is galva ks
in" would repeat "what county is cabazon ca in"."""

_SPARE = 12
"""Of a text more rare words are looked up than may be missing, by one in twelve of all its
words, and so many must be there: a word or two alone would have it compared with too many."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """``words`` words of the text at ``place`` (from 0) are repeated in order, a ``share`` in
    (0, 1] of them."""

    place: int
    words: int
    share: float


class TextIndex:
    """Texts that others may repeat. Plain data, which can be pickled.

    A text repeats one of these where it has

    1. the same words;
    2. the same words in the same order but for one, or one in ``WORDS_A_CHANGE`` of the
       longer of the two: replaced, left out or put in;
    3. anywhere, a run of ``run`` of its words, or all of them where they are fewer but at
       least half as many.

    The last two need ``MIN_WORDS`` words. Words are those of either of the
    :func:`~limrank.text.words.spellings`: a word with hyphens that is replaced is one.
    """

    def __init__(self, texts: Iterable[str], run: int) -> None:
        self._run = run
        self._block = (run + 1) // 2
        self._same: dict[tuple[str, ...], int] = {}
        self._spellings: list[tuple[str, ...]] = []
        self._places: list[int] = []
        vocabulary: dict[str, str] = {}  # a word is in memory once, and once in a pickle
        for place, text in enumerate(texts):
            spelt = [tuple(vocabulary.setdefault(word, word) for word in words) for words in spellings(text)]
            for words in filter(None, spelt):
                self._same.setdefault(words, place)
            if count(spelt[-1]) >= MIN_WORDS:
                self._spellings += spelt
                self._places += [place] * len(spelt)
        self._sure = [1 + len(words) // _SPARE for words in self._spellings]
        self._rare = self._by_rare_word()
        self._blocks = self._by_block()

    def find(self, text: str) -> Repeat | None:
        """What ``text`` repeats most of, by share; at a tie the first. None where nothing."""
        spelt = spellings(text)
        same = [Repeat(self._same[words], len(words), 1.0) for words in spelt if words in self._same]
        if same:
            return min(same, key=lambda repeat: repeat.place)
        if count(spelt[-1]) < MIN_WORDS:
            return None
        repeats = chain.from_iterable(chain(self._near(words), self._runs(words)) for words in spelt)
        return max(repeats, key=lambda repeat: (repeat.share, -repeat.place), default=None)

    def _by_rare_word(self) -> dict[str, list[int]]:
        """The texts by their rarest words: as many as may be missing, and some that may not."""
        found: dict[str, list[int]] = {}
        texts_with = Counter(chain.from_iterable(map(set, self._spellings)))
        for number, words in enumerate(self._spellings):
            rarest = sorted(words, key=lambda word: (texts_with[word], word))
            for word in rarest[: _changes(len(words)) + self._sure[number]]:
                found.setdefault(word, []).append(number)
        return found

    def _by_block(self) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        """The texts cut into blocks, of which any run holds a whole one, wherever it begins."""
        found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for number, words in enumerate(self._spellings):
            for at in range(0, len(words) - self._block + 1, self._block):
                found.setdefault(words[at : at + self._block], []).append((number, at))
        return found

    def _near(self, words: Sequence[str]) -> Iterator[Repeat]:
        present = Counter(chain.from_iterable(self._rare.get(word, ()) for word in dict.fromkeys(words)))
        for number in (number for number, rare in present.items() if rare >= self._sure[number]):
            other = self._spellings[number]
            if common := same_but_for_few(words, other):
                yield Repeat(self._places[number], common, common / len(other))

    def _runs(self, words: Sequence[str]) -> Iterator[Repeat]:
        for start, block in enumerate(zip(*(words[skipped:] for skipped in range(self._block)), strict=False)):
            for number, at in self._blocks.get(block, ()):
                other = self._spellings[number]
                run = _run_around(other, at, words, start)
                if len(run) == len(other) or count(run) >= self._run:
                    yield Repeat(self._places[number], len(run), len(run) / len(other))


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
