"""Which queries, passages and chains are rejected, and how the judge has to agree."""

from dataclasses import replace

import pytest

from helpers.synthesis import (
    HARD,
    LONG,
    MINED,
    POSITIVE,
    example,
)
from limrank.config import SynthesisConfig
from limrank.records import (
    Seed,
)
from limrank.synthesis.filters import Verdict, chains_checked, judged, query_fault, rejected_before_judging

SEED = Seed(
    "s1",
    "A seed's own  query",
    "What answers the seed is told here in one sentence of many words, so that some of them may be copied.",
)
ASKING = "Forest ranger who surveys bark beetles along the same transects every May"
TOLD = "Write one query.{% if a %} {{ persona }} who helps would say outright what is asked.{% endif %} A passage that helps would say outright what is asked."
RELEVANCE = "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'."
FRENCH = "Le texte ne dit rien de ce que demande l'infirmière, qui travaille la nuit et cherche un bon horaire."
GERMAN = "Wer nachts im Krankenhaus arbeitet und morgens die Kinder zur Schule bringt, der braucht einen guten Plan."


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("how do I keep my rota in order", None),
        ("three words only", "length"),
        ("query of a seed that I own", None),
        ("a  SEED's own query!", "copies_seed"),
        ("a seed's very own query", "copies_seed"),
        ("the answer is that nights come first, or is it?", "leaks"),
        ("is it what answers the seed is told here in one?", "leaks"),
        ("is it what answers the seed, told here in one?", None),
        ("Query: how do I keep my rota in order", "leaks"),
        ("how is the passage of blood through a language model of the heart shown", None),
        ("would they say outright what is asked, or tell how?", None),
        ("what do I do when I do " + "what I do when I do " * 3, "repetitive"),
        ("forest ranger who surveys bark beetles", "copies_prompt"),
        ("A ranger who surveys bark beetles along the same transects every May", "copies_prompt"),
        ("I am a forest ranger who surveys bark beetles: how do I tell them from others", None),
        ("would somebody who helps would say outright what is asked?", "copies_prompt"),
        (GERMAN, "language"),
        ("夜勤の看護師はどうやって", None),
    ],
)
def test_queries_that_need_no_passages(query, fault):
    assert query_fault(query, None, SEED, TOLD, ASKING) == fault


@pytest.mark.parametrize(
    ("query", "copied"),
    [
        ("what is the capital of australia please", True),
        ("what is the capital city of australia", True),
        ("What is the capital of Australia? What is the capital of Australia?", True),
        ("can you tell me what is the capital of australia", True),
        ("the capital of australia", True),
        ("what is the capital gains tax that I owe on a flat in australia", False),
        ("why did they not make sydney or melbourne the capital of australia", False),
    ],
)
def test_a_query_is_the_seed_s_though_a_word_differs_or_few_stand_around_it(query, copied):
    seed = replace(SEED, query="what is the capital of australia")
    assert query_fault(query, None, seed, TOLD, ASKING) == ("copies_seed" if copied else None)


def test_a_topic_of_few_words_may_stand_in_a_new_query():
    seed = replace(SEED, query="rotator cuff symptoms")
    asked = "could a night of rotator cuff symptoms be due to how I lift patients"
    assert query_fault(asked, None, seed, TOLD, ASKING) is None
    assert query_fault("what are rotator cuff symptoms", None, seed, TOLD, ASKING) == "copies_seed"


@pytest.mark.parametrize(
    ("passage", "fault"),
    [
        ("Canberra is the nation's seat", "leaks"),  # all of it
        ("The answer: Canberra", None),  # three words are no sign
    ],
)
def test_a_short_passage_is_given_away_by_all_of_its_words(passage, fault):
    query = f"I was told this, {passage}, but who of my class will believe it?"
    assert query_fault(query, None, replace(SEED, passage=passage), TOLD, ASKING) == fault


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("only what a hospital published counts", None),
        ("only passages that a hospital published", None),  # it may speak of what is to be found
        ("recent ones only", "length"),
        ("Say how do I keep my rota in order.", "copies_query"),
        ("my rota in order", "copies_query"),
        ("one that says what answers the seed is told here in one", "leaks"),
        ("a passage that helps would say outright what is asked", "copies_prompt"),
        (GERMAN, "language"),
    ],
)
def test_instructions_that_narrow_nothing(instruction, fault):
    assert query_fault("how do I keep my rota in order", instruction, SEED, TOLD, ASKING) == fault


def test_passages_that_need_no_judge():
    def reasons(*examples):
        return [each.reject_reason for each in rejected_before_judging(examples, SEED, TOLD)]

    assert len(LONG.split()) == 13
    assert reasons(example("a")) == [None]
    assert reasons(example("a", passage=" ".join(LONG.split()[:11]))) == ["length"]
    assert reasons(example("a", passage=None)) == ["length"]
    assert reasons(example("a", passage=SEED.passage.upper())) == ["copies_seed"]
    assert reasons(example("a", passage=f"{LONG}: A query, of five words.")) == ["leaks"]
    assert reasons(example("a", passage=f"The passage: {LONG}")) == ["leaks"]
    assert reasons(example("a", passage=GERMAN)) == ["language"]
    assert reasons(example("a", passage="it was said at 14:51:18 " + "14:51:18 " * 9)) == ["repetitive"]
    assert reasons(example("a", passage=f"{LONG}. Who helps would say outright what is asked.")) == ["copies_prompt"]
    copied = "As was said, what answers the seed is told here in one sentence of many words, which is short."
    assert reasons(example("a", passage=copied)) == ["copies_seed"]
    other = "nothing in this text is like the first but for its length which is as great"
    assert reasons(example("a"), example("b", passage=other), example("c", passage=f"{LONG} more")) == [
        None,
        None,
        "same_passages",
    ]


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        # 19 words, one of them a number that differs.
        ("The lighthouse was built in 1874 by masons from the village and burned oil until it was electrified.", True),
        # A sentence more.
        (
            "The lighthouse was built in 1847 by masons from the village and burned oil until it was electrified. "
            "Today its keeper's house is a hostel for people who walk along the whole coast in summer.",
            True,
        ),
        ("The lighthouse in the village is open to walkers, who climb it until the light is lit at seven.", False),
    ],
)
def test_passages_that_are_nearly_one(other, fault):
    first = "The lighthouse was built in 1847 by masons from the village and burned oil until it was electrified."
    pair = [example("a", passage=first, role=POSITIVE), example("b", passage=other)]
    reasons = [each.reject_reason for each in rejected_before_judging(pair, SEED, TOLD)]
    assert reasons == [None, "same_passages" if fault else None]
    seed = replace(SEED, passage=first)
    assert rejected_before_judging(pair[1:], seed, TOLD)[0].reject_reason == ("copies_seed" if fault else None)


def test_a_positive_that_repeats_much_of_its_query_needs_no_reasoning():
    query = "I have to plan a month of shifts for nine nurses: where do I begin"
    passage = "Whoever has to plan a month of shifts for nine nurses should begin with the nights."
    pair = [example("a", query, passage, POSITIVE), example("b", query, passage.replace("nights", "days"), HARD)]
    assert [rejected_before_judging([each], SEED, TOLD)[0].reject_reason for each in pair] == ["leaks", None]


def test_mined_passages_are_real_whatever_their_length():
    def reasons(*examples):
        return [each.reject_reason for each in rejected_before_judging(examples, SEED, TOLD)]

    assert reasons(example("a", passage="short", role=MINED)) == [None]
    # But a passage that was written must not be one of them, wherever it stands.
    assert reasons(example("a", role=MINED), example("b")) == [None, "same_passages"]
    assert reasons(example("b"), example("a", role=MINED)) == ["same_passages", None]


def verdict(score):
    """By a p(true); of a judge that could not be asked (None), that wrote true or false and
    no probability, or that wrote neither ("?")."""
    if score is None:
        return Verdict(None, failed=True)
    if isinstance(score, float):
        return Verdict(score > 0.5, score, "chain")
    return Verdict(None if score == "?" else score, reasoning="chain")


@pytest.mark.parametrize(
    ("chain", "fault"),
    [
        ("It tells where to begin, as was asked.", None),
        (None, "bad_chain"),
        (" \n", "bad_chain"),
        ("It is relevant.", "bad_chain"),
        ("The answer is: True\n\nSo the final verdict is true", "bad_chain"),
        ("The answer is true. " * 4, "bad_chain"),
        (GERMAN, "bad_chain"),
    ],
)
def test_chains_that_nothing_can_be_learned_from(chain, fault):
    (checked,) = chains_checked([replace(example("a"), reasoning=chain, kept=True)], SEED, RELEVANCE)
    assert (checked.kept, checked.reject_reason) == (fault is None, fault)
    # The judge's ruling is told first.
    rejected = replace(example("a"), reasoning=chain, reject_reason="judge_disagrees")
    assert chains_checked([rejected], SEED, RELEVANCE) == [rejected]


def test_a_chain_may_be_in_the_language_of_the_seed_or_of_the_judge_s_prompt():
    seed = Seed("s1", "Wie plane ich meine Nächte", GERMAN)
    english = "The passage says what a nurse needs who works at night, and that is what was asked."
    kept = replace(example("a"), kept=True)
    for chain, fault in ((english, None), (GERMAN, None), (FRENCH, "bad_chain")):
        (checked,) = chains_checked([replace(kept, reasoning=chain)], seed, RELEVANCE)
        assert checked.reject_reason == fault


def test_a_pair_that_the_judge_did_not_see_all_of_is_not_kept():
    pair = [example("a", role=POSITIVE), example("b")]
    verdicts = {"a": Verdict(True, 0.9, "chain", truncated=True), "b": Verdict(False, 0.1, "chain")}
    for agreement, other in (("verdict", None), ("ranking", "unpaired")):
        result = judged(pair, verdicts, SynthesisConfig(agreement=agreement))
        assert [each.reject_reason for each in result] == ["length", other]
        assert result[0].judge_score == 0.9


def ruling(agreement, scores):
    """Which are kept, and why not, where ``scores`` are of a positive and its negatives."""
    examples = [example(str(place), role=HARD if place else POSITIVE) for place in range(len(scores))]
    verdicts = {str(place): verdict(score) for place, score in enumerate(scores) if score != "rejected"}
    examples = [
        replace(each, reject_reason="length") if score == "rejected" else each
        for each, score in zip(examples, scores, strict=True)
    ]
    result = judged(examples, verdicts, SynthesisConfig(agreement=agreement))
    assert all(each.kept == (each.reject_reason is None) for each in result)
    return [each.reject_reason or "kept" for each in result]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.1], ["kept", "kept"]),
        ([0.3, 0.7], ["judge_disagrees", "judge_disagrees"]),
        ([0.41, 0.59], ["judge_unsure", "judge_unsure"]),
        ([None, 0.1], ["judge_failed", "kept"]),
        (["rejected", 0.1], ["length", "kept"]),
        ([True, False], ["kept", "kept"]),
        ([False, True], ["judge_disagrees", "judge_disagrees"]),
        (["?", False], ["unparsable", "kept"]),
    ],
)
def test_agreement_by_verdict(scores, expected):
    assert ruling("verdict", scores) == expected


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # Both above one half: only the order counts.
        ([0.9, 0.8], ["kept", "kept"]),
        ([0.2, 0.3], ["judge_disagrees", "judge_disagrees"]),
        ([0.5, 0.5], ["judge_disagrees", "judge_disagrees"]),
        ([0.5, 0.4, 0.6], ["kept", "kept", "judge_disagrees"]),
        # With nothing left to be compared with the judge says nothing.
        ([None, 0.1], ["judge_failed", "unpaired"]),
        ([0.9, "rejected"], ["unpaired", "length"]),
        (["?", 0.1, 0.2], ["unparsable", "unpaired", "unpaired"]),
        ([0.9, None, 0.1], ["kept", "judge_failed", "kept"]),
    ],
)
def test_agreement_by_ranking(scores, expected):
    assert ruling("ranking", scores) == expected
