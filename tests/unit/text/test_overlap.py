import pickle
import random
from collections import Counter

import pytest

from limrank.text.overlap import Repeat, TextIndex, same_but_for_few
from limrank.text.words import words

RUN = 8
TEXTS = [
    "why does bread dough rise faster in a warm kitchen",
    "which yeast is best for a long cold fermentation of rye dough",
    "bread",
    "rye bread",
    "salt slows dough",
    "bread needs strong flour",
]
INDEX = TextIndex(TEXTS, RUN)


def changed(text):
    """Every copy of a text in which one word between white space is another."""
    parts = text.split()
    for position in range(len(parts)):
        for other in ("zebra", "semi-detached"):
            yield " ".join([*parts[:position], other, *parts[position + 1 :]])


# ---- the rule ------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(len(TEXTS)))
def test_copies(position):
    whole = len(TEXTS[position].split())
    for copy in (TEXTS[position], TEXTS[position].upper() + "?!", f"  {TEXTS[position]}\n"):
        assert INDEX.find(copy) == Repeat(position, whole, 1.0)


@pytest.mark.parametrize("position", [0, 1, 5])
def test_one_word_changed_at_every_position(position):
    whole = len(TEXTS[position].split())
    for copy in changed(TEXTS[position]):
        assert INDEX.find(copy) == Repeat(position, whole - 1, (whole - 1) / whole)


def test_one_word_left_out_or_put_in():
    assert INDEX.find("why does dough rise faster in a warm kitchen") == Repeat(0, 9, 0.9)
    assert INDEX.find("bread always needs strong flour") == Repeat(5, 4, 1.0)


def test_one_word_in_five_may_differ():
    assert INDEX.find("why should bread dough rise faster in a cold kitchen") == Repeat(0, 8, 0.8)
    assert INDEX.find("why should bread dough rise less in a cold kitchen") is None
    assert INDEX.find("cakes need strong flour") is None


def test_order_counts():
    assert INDEX.find("kitchen warm a in faster rise dough bread does why") is None
    assert INDEX.find("flour needs strong bread") is None


@pytest.mark.parametrize(
    "text", ["bread rolls", "rye bread recipes", "salt slows yeast", "salt slows dough down", "dough"]
)
def test_fewer_than_four_words_are_repeated_by_themselves_only(text):
    assert INDEX.find(text) is None


def test_fewer_than_four_words_repeat_nothing_longer():
    assert INDEX.find("bread needs flour") is None


def test_words_are_those_between_white_space():
    index = TextIndex(["T-cell-based CAR-T", "T-cell-based CAR-T works in 60% of IL-6-low patients"], RUN)
    assert index.find("B-cell-based CAR-T") is None  # four words of five parted at hyphens, but one of two
    assert TextIndex(["B cell based CAR T"], RUN).find("T-cell-based CAR-T") is None
    for copy in changed("T-cell-based CAR-T works in 60% of IL-6-low patients"):
        assert index.find(copy).index == 1
    assert index.find("t cell based car t works in 60 of il 6 low children").index == 1
    assert index.find("tcellbased cart works in 60 of il6low children").index == 1


def test_a_run_anywhere():
    assert INDEX.find("She asked why does bread dough rise faster in a car and left.") == Repeat(0, 8, 0.8)
    assert INDEX.find("She asked does bread dough rise faster in a car and left.") is None  # seven words
    run = "is best for a long cold fermentation of"
    assert INDEX.find(f"{run} grapes, they say, and then {run} hops") == Repeat(1, 8, 8 / 12)


def test_the_whole_of_a_text_shorter_than_the_run():
    assert INDEX.find("They say that bread needs strong flour, which is not always so.") == Repeat(5, 4, 1.0)
    assert INDEX.find("They say that bread needs good flour, which is not always so.") is None
    assert INDEX.find("They say that salt slows dough, which is always so.") is None
    three = TextIndex(["bread needs strong flour"], 13)
    assert three.find("They say that bread needs strong flour.") is None  # not half of thirteen


def test_the_greatest_share_and_then_the_first():
    index = TextIndex(["a b c d e f g h", "a b c d e f g x", "a b c d e f g h", "q r s t u"], RUN)
    assert index.find("a b c d e f g h") == Repeat(0, 8, 1.0)
    assert index.find("a b c d e f g y") == Repeat(0, 7, 7 / 8)
    assert index.find("a b c d e f y x") == Repeat(1, 7, 7 / 8)
    assert TextIndex(["tcell", "t cell"], RUN).find("T-cell").index == 0
    assert index.find("a b c d e f g y, q r s t u") == Repeat(3, 5, 1.0)


@pytest.mark.parametrize("text", ["", " ", "?!", "🍕🍕🍕🍕"])
def test_no_words_repeat_nothing(text):
    assert INDEX.find(text) is None
    assert TextIndex([text, "bread"], RUN).find(text) is None
    assert TextIndex([text, "bread"], RUN).find("bread") == Repeat(1, 1, 1.0)


def test_no_texts():
    assert TextIndex([], RUN).find("bread needs strong flour") is None


def test_a_script_without_spaces():
    index = TextIndex(["北京天气", "如何在温暖的厨房里让面团更快发酵"], RUN)
    assert index.find("北京天气？") == Repeat(0, 4, 1.0)
    assert index.find("南京天气") is None  # two words
    assert index.find("如何在寒冷的厨房里让面团更快发酵") == Repeat(1, 14, 14 / 16)
    # Sixteen characters are eight words, wherever they stand.
    assert index.find("他说如何在温暖的厨房里让面团更快发酵是个谜") == Repeat(1, 16, 1.0)
    assert index.find("在温暖的厨房里让面团更快做个谜") is None


def test_an_index_can_be_sent():
    copy = pickle.loads(pickle.dumps(INDEX))
    for text in [*TEXTS, *changed(TEXTS[1]), "rye bread recipes"]:
        assert copy.find(text) == INDEX.find(text)


# ---- nothing is missed, nothing is made up -------------------------------------------


def in_order(one, other):
    """Longest common subsequence, as it is defined."""
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, word in enumerate(one):
        for j, other_word in enumerate(other):
            best[i + 1][j + 1] = best[i][j] + 1 if word == other_word else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


def test_the_words_in_common_are_the_longest_common_subsequence():
    draw = random.Random(2)
    kept = 0
    for _ in range(3000):
        one = tuple(draw.choices(["a", "b", "c", "bread", "dough", "é", "漢"], k=draw.randrange(30)))
        other = list(one)
        for _ in range(draw.randrange(6)):
            at = draw.randrange(len(other) + 1)
            other[at : at + draw.randrange(2)] = draw.choices(["a", "b", "rye"], k=draw.randrange(2))
        common, longer = in_order(one, other), max(len(one), len(other))
        expected = common if longer - common <= max(1, longer // 5) else 0
        assert same_but_for_few(one, tuple(other)) == expected
        kept += bool(expected)
    assert 1000 < kept < 2900


def repeated(text, other):
    """The share by the rule, said once more and without an index; 0 where nothing is repeated."""
    text, other = words(text), words(other)
    if text == other:
        return 1.0
    if min(len(text), len(other)) < 4:
        return 0.0
    longer = max(len(text), len(other))
    share = 0.0
    common = in_order(text, other)
    if longer - common <= max(1, longer // 5):
        share = common / len(other)
    for length in range(min(RUN, len(other)), len(other) + 1):
        runs = {tuple(other[at : at + length]) for at in range(len(other) - length + 1)}
        if any(tuple(text[at : at + length]) in runs for at in range(len(text) - length + 1)):
            share = max(share, length / len(other))
    return share


def edited(text, draw):
    """A text with a few words replaced, left out, put in, or others around it."""
    parts = text.split()
    for _ in range(draw.randrange(5)):
        at = draw.randrange(len(parts) + 1)
        parts[at : at + draw.randrange(2)] = draw.choices("abcdefghij", k=draw.randrange(2))
    around = draw.choices("abcdefghij", k=draw.choice([0, 0, 6]))
    return " ".join([*around, *parts])


def test_the_index_finds_what_comparing_with_every_text_finds():
    draw = random.Random(7)
    # Few different words, so that chance makes repeats of every kind.
    texts = [" ".join(draw.choices("abcdefghij", k=draw.randrange(1, 40))) for _ in range(50)]
    index = TextIndex(texts, RUN)
    kinds = Counter()
    for text in [edited(draw.choice(texts), draw) for _ in range(100)]:
        shares = [repeated(text, other) for other in texts]
        best = max(shares)
        found = index.find(text)
        assert (found and found.share) == (best or None)
        assert found is None or found.index == shares.index(best)
        kinds["none" if found is None else "whole" if best == 1 else "part"] += 1
    assert min(kinds.values()) > 10 and len(kinds) == 3
