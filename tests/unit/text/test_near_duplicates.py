import json
import random
import unicodedata

import pytest

from helpers.units import in_other_processes
from limrank.errors import UserError
from limrank.text.near_duplicates import find_duplicates

DOUGH = "Why does bread dough rise faster in a warm kitchen than in a cold one?"
RYE = "Which yeast is best for a long cold fermentation of rye dough with little salt"


def found(*texts, **options):
    """Positions of duplicates → position of their first."""
    return find_duplicates(enumerate(texts), **options)


def many(count):
    """Made-up queries, every tenth a copy of an earlier one or one with a word changed."""
    draw = random.Random(5)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(2, 9))) for _ in range(500)]
    texts = []
    for number in range(count):
        words = draw.choices(vocabulary, k=draw.randrange(1, 25))
        if number % 10 == 9:
            words = draw.choice(texts).split()
            words[draw.randrange(len(words))] = draw.choice(["zebra", words[0]])
        texts.append(" ".join(words))
    return texts


# ---- the same words ------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy",
    [
        DOUGH,
        DOUGH.upper(),
        "why does bread dough rise faster in a warm kitchen, than in a cold one",
        f"  {DOUGH.replace(' ', chr(9))}\n",
        unicodedata.normalize("NFKC", "Ｗｈｙ does bread dough rise faster in a warm kitchen than in a cold one"),
    ],
)
def test_copies(copy):
    assert found(DOUGH, RYE, copy) == {2: 0}


def test_copies_in_any_script():
    assert found(
        "Où trouver une pâte à pain levée", unicodedata.normalize("NFD", "OÙ TROUVER UNE PÂTE À PAIN LEVÉE")
    ) == {1: 0}
    assert found("如何让面团更快发酵", "如何让面团更快发酵？", "如何让面包更快变冷") == {1: 0}
    assert found("मैदा कैसे गूंधें", "मैदा कैसे गूंधें?") == {1: 0}


def test_short_queries():
    assert found("bread", "Bread!", "breads", "rye bread", "bread rye", "a", "b", "A") == {1: 0, 7: 5}


def test_texts_without_words_are_the_same_as_themselves_only():
    assert found("", "🍞", "🍞", "🍕", "", "?!", " ") == {2: 1, 4: 0}
    assert found("\ud800") == {}
    assert found() == {}


# ---- nearly the same words -----------------------------------------------------------


def test_near_copies():
    assert found(DOUGH, DOUGH.replace("warm", "hot"), DOUGH.replace("kitchen", "kitchens"), f"So, {DOUGH}") == {
        1: 0,
        2: 0,
        3: 0,
    }


def test_the_similarity_is_that_of_shingles():
    # " abcdefghij " has nine shingles of four; one more letter adds one, another last letter changes three.
    assert found("abcdefghij", "abcdefghijk") == {1: 0}  # eight in common of eleven
    assert found("abcdefghij", "abcdefghik") == {}  # seven of eleven
    assert found("abcdefghij", "abcdefghijk", threshold=8 / 11) == {1: 0}
    assert found("abcdefghij", "abcdefghijk", threshold=8 / 11 + 1e-9) == {}


def test_unrelated_queries():
    assert found(DOUGH, RYE, "why does a warm engine start faster than a cold one", "how do spiders find home") == {}


def test_a_frame_in_common_is_not_enough():
    assert found("what is the opposite of profile", "what is the opposite of benefit") == {}


def test_the_same_words_alone_where_the_threshold_is_one():
    assert found(DOUGH, DOUGH.replace("warm", "hot"), DOUGH.upper(), threshold=1) == {2: 0}


@pytest.mark.parametrize("threshold", [0.5, 1.1, float("nan")])
def test_a_threshold_that_bands_are_not_made_for(threshold):
    with pytest.raises(UserError, match="a similarity from 0.7 to 1, not at"):
        found(DOUGH, threshold=threshold)


# ---- who stays -----------------------------------------------------------------------


def test_the_first_stays():
    near = DOUGH.replace("warm", "hot")
    assert find_duplicates([("a", DOUGH), ("b", RYE), ("c", near)]) == {"c": "a"}
    assert find_duplicates([("c", near), ("b", RYE), ("a", DOUGH)]) == {"a": "c"}


def test_a_copy_of_what_does_not_stay_has_the_first_that_does():
    near = DOUGH.replace("warm", "hot")
    assert found(DOUGH, near, near.upper()) == {1: 0, 2: 0}


def test_what_is_like_one_that_does_not_stay_stays():
    steps = ["abcdefghijklmnopqr", "abcdefghijklmnopxy", "zwcdefghijklmnopxy"]  # 14 of 20 shingles a step
    assert found(*steps) == {1: 0}
    assert found(*steps[1:]) == {1: 0}


def test_the_earliest_of_several():
    assert found("abcdefghijklmnopqrxy", "abcdefghijklmnopqrvw", "abcdefghijklmnopqr") == {1: 0, 2: 0}


# ---- many ----------------------------------------------------------------------------


def shingles(text):
    padded = f" {text} "
    return {padded[at : at + 4] for at in range(max(1, len(padded) - 3))}


def test_no_more_and_hardly_fewer_than_comparing_all_with_all():
    texts = many(600)
    sets = [shingles(text) for text in texts]
    expected, staying = {}, []
    for position, one in enumerate(sets):
        alike = (other for other in staying if len(one & sets[other]) >= 0.7 * len(one | sets[other]))
        first = next(alike, None)
        if first is None:
            staying.append(position)
        else:
            expected[position] = first
    assert len(expected) > 40
    result = found(*texts)
    assert result.items() <= expected.items()
    assert len(result) >= 0.97 * len(expected)


def test_many_in_one_frame_are_compared_with_few(monkeypatch):
    from limrank.text import near_duplicates as duplicates

    compared = []
    monkeypatch.setattr(duplicates, "COMPARED", 3)
    monkeypatch.setattr(duplicates, "_similarity", lambda one, other: compared.append(1) or 0.0)
    found(*(f"what is the definition of {number:03}" for number in range(100)))
    assert 100 < len(compared) <= 300


def test_the_same_in_every_process():
    program = (
        "import json, sys; from limrank.text.near_duplicates import find_duplicates; "
        "print(json.dumps(find_duplicates((str(position), text) for position, text in enumerate(json.load(sys.stdin)))))"
    )
    texts = many(300)
    outputs = in_other_processes(program, json.dumps(texts))
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0]) == find_duplicates((str(position), text) for position, text in enumerate(texts)) != {}
