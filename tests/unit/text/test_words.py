import unicodedata

import pytest

from limrank.text.words import count, spellings, words


@pytest.mark.parametrize(
    "text",
    [
        "Does IL-6 cause fever?",
        "DOES IL-6 CAUSE FEVER",
        "does  il 6\tcause\n\nfever",
        "“Does IL‑6 cause … fever?”",
        "ＤＯＥＳ ＩＬ－６ ＣＡＵＳＥ ＦＥＶＥＲ？",
        "does il-6 cause fe\u00adver\u200b",
    ],
)
def test_case_punctuation_space_and_form_do_not_matter(text):
    assert words(text) == ["does", "il", "6", "cause", "fever"]


@pytest.mark.parametrize("text", ["Straße in Ærø", "Ångström ﬁnds İzmir", "ΌΣΟΣ ΐ", "Việt Nam", "हिन्दी में"])
def test_one_text_in_every_unicode_form_and_case(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert {tuple(words(form)) for form in forms} == {tuple(words(text))}
    assert words(text.upper()) == words(text)


def test_accents_are_part_of_a_word():
    assert words("la pêche") != words("la peche")
    assert words("हिन्दी में") == ["हिन्दी", "में"]  # vowel signs too, which no \\w matches


@pytest.mark.parametrize("text", ["", " \n", "?!…", "🍕 + 🍔", "\0"])
def test_texts_without_words(text):
    assert words(text) == []
    assert spellings(text) == [()]


def test_punctuation_within_a_word_is_stripped_in_both_ways():
    assert spellings("the T-cell's role") == [("the", "t", "cell", "s", "role"), ("the", "tcells", "role")]
    assert spellings("the role, then.") == [("the", "role", "then")]
    assert spellings("up - and down") == [("up", "and", "down")]


def test_scripts_without_spaces_have_a_word_a_character():
    assert words("北京天气？") == ["北", "京", "天", "气"]
    assert words("Python 3で並べ替え") == ["python", "3", "で", "並", "べ", "替", "え"]
    assert words("ราคา") == ["ร", "า", "ค", "า"]
    assert words("서울 날씨") == ["서울", "날씨"]


def test_two_characters_count_as_one_word():
    assert count(words("北京天气")) == 2
    assert count(words("python 列表")) == 2
    assert count(words("a b c")) == 3
    assert count([]) == 0
