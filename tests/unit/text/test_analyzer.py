"""Words, as BM25 counts them."""

import bm25s.stopwords
import pytest
import Stemmer
from bm25s.tokenization import _infer_stopwords

from limrank.config import STEMMERS, STOPWORDS, FirstStageConfig
from limrank.config.recipe import parse_config
from limrank.errors import UserError
from limrank.records import Document, Query
from limrank.retrieval import bm25
from limrank.text.analyzer import Analyzer, words
from limrank.text.languages import with_language


def stems(text, **first_stage):
    found = Analyzer(FirstStageConfig(**first_stage)).tokens([text])
    by_id = {position: stem for stem, position in found.vocab.items()}
    return [by_id[position] for position in found.ids[0]]


def found(query, *texts, **first_stage):
    """Positions of the texts that BM25 finds."""
    documents = [Document(str(position), text) for position, text in enumerate(texts)]
    analyzer = Analyzer(with_language(FirstStageConfig(**first_stage), documents))
    run = bm25(documents, [Query("q", query)], len(texts), analyzer=analyzer)
    return sorted(map(int, run["q"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Model's 12 runs, re-run a 7B", ["the", "model", "12", "runs", "re", "run", "7b"]),
        ("snake_case ___ x", ["snake_case", "___"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("हिन्दी की किताबें", ["हिन्दी", "की", "किताबें"]),  # vowel signs are marks, which split nothing
        ("infor\u00admation, क्\u200dष \ufeffword", ["information", "क्ष", "word"]),  # what is not seen splits nothing
        ("sala\u200bkhao", ["sala", "khao"]),  # a space of no width is one
        ("İzmir ﬁnd ＦＵＬＬ", ["izmir", "find", "full"]),
        ("STRASSE Straße ΟΔΟΣ οδος", ["strasse", "strasse", "οδοσ", "οδοσ"]),
        ("東京都", ["東京", "京都"]),
        ("猫 と", ["猫", "と"]),
        ("ｱﾊﾟｰﾄ アパート", ["アパ", "パー", "ート"] * 2),
        ("GPUで学習", ["gpu", "で学", "学習"]),
        ("서울시 구청", ["서울", "울시", "구청"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("", []),
        ("! … \x00", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert list(words(text)) == expected


def test_english_is_what_lucene_makes_of_it_by_default():
    assert stems("The merging of sorted feeds is running") == ["merg", "sort", "feed", "run"]
    assert stems("merging of feeds", stemmer="none") == ["merging", "feeds"]
    assert stems("merging of feeds", stopwords="none") == ["merg", "of", "feed"]
    assert stems("merging of feeds", language="none") == ["merging", "of", "feeds"]


def test_a_language_sets_both_and_each_may_be_set_alone():
    assert stems("Die laufenden Verbindungen", language="german") == ["laufend", "verbind"]
    assert stems("Die laufenden Verbindungen", language="DE") == ["laufend", "verbind"]
    assert stems("die Verbindungen", language="german", stopwords="none", stemmer="none") == ["die", "verbindungen"]
    assert stems("東京 running", language="japanese") == ["東京", "running"]


def test_stop_words_are_compared_as_words_are():
    assert stems("daß DASS Haus", language="german") == ["haus"]


def test_turkish_has_an_i_without_a_dot():
    assert found("IŞIK", "bir ışık", "bir işik", language="turkish") == [0]
    assert found("İZMİR", "izmir", language="turkish") == [0]


@pytest.mark.parametrize("query", ["上升", "一般", "다른"])
@pytest.mark.parametrize("language", ["english", "chinese", "korean", "cjk"])
def test_pairs_of_characters_are_no_stop_words(query, language):
    """They may be a part of any word: Lucene's CJKAnalyzer takes the English list alone."""
    assert found(query, f"{query} text", "text", language=language) == [0]
    assert stems("the running 東京", language=language)[-1] == "東京"
    assert "the" not in stems("the running", language=language)


@pytest.mark.parametrize(
    ("query", "text", "other"),
    [
        ("東京の天気", "今日の東京は雨です", "大阪城公園"),
        ("天气预报", "北京的天气很好", "中国历史"),
        ("ภาษาไทย", "เรียนภาษาไทยวันนี้", "กรุงเทพ"),
        ("running", "he runs", "a bicycle"),
    ],
)
@pytest.mark.parametrize("language", ["english", "chinese", "thai"])
def test_text_without_blanks_is_found_whatever_the_language_is_said_to_be(query, text, other, language):
    if query != "running" or language == "english":
        assert found(query, text, other, language=language) == [0]


@pytest.mark.parametrize("key", ["language", "stemmer", "stopwords"])
def test_what_is_no_language_is_refused_with_those_that_are(key):
    with pytest.raises(UserError, match=rf"first_stage\.{key}: no .* 'klingon': take one of none, .*english"):
        parse_config({"job": "rerank", "run_dir": "r", "data": {"format": "pydocs"}, "first_stage": {key: "klingon"}})
    assert getattr(FirstStageConfig(**{key: "English"}), key) == "english"
    assert getattr(FirstStageConfig(**{key: "none"}), key) == "none"


def test_the_lists_are_those_of_the_libraries():
    assert set(Stemmer.algorithms()) == STEMMERS
    assert {name for name in STOPWORDS if len(_infer_stopwords(name)) > 10} == STOPWORDS
    lists = {each for each in dir(bm25s.stopwords) if each.startswith("STOPWORDS_")}
    assert len(STOPWORDS) == len(lists)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Die Verbindungen zwischen den laufenden Rechnern werden in einer Liste gehalten.", "german"),
        ("Les connexions entre les ordinateurs sont gardées dans une liste qui grandit.", "french"),
        ("这个函数把几个已经排好序的输入合并成一个输出，不需要把所有数据读进内存。", "chinese"),
        ("The connections between running machines are kept in a list that grows.", "english"),
        ("Ang mga koneksyon sa pagitan ng mga kompyuter ay nasa isang listahan na lumalaki.", "none"),
        ("feeds", "english"),  # too little to tell
    ],
)
def test_auto_is_what_the_documents_are_written_in(text, language):
    message = with_language(FirstStageConfig(language="auto"), [Document("d", text)] * 3)
    assert message.language == language
    assert with_language(FirstStageConfig(language="auto"), []).language == "english"


def test_auto_stems_the_documents_language():
    texts = ("Die Verbindung zwischen den laufenden Rechnern wird hier gehalten.", "Das Haus steht leer.")
    assert found("Verbindungen", *texts, language="auto") == [0]
    assert found("Verbindungen", *texts, language="english") == []
