"""Texts in which a writer speaks of its task, and texts that only sound like it."""

import pytest

from limrank.synthesis.task_leakage import gives_answer, speaks_of_task


@pytest.mark.parametrize(
    "query",
    [
        "Sure! Here is a query that this beekeeper might type: how do bees winter",
        "Here's one query: how do I keep bees alive in winter",
        "As a language model, I cannot type a query of my own",
        "As an AI I do not keep bees",
        "I'm sorry, but I can't help with that request",
        "I cannot assist with this, ask a beekeeper",
        "**Query:** how do I keep bees alive in winter",
        "Query: how do I keep bees alive in winter",
        "Search query 1: how do I keep bees alive",
        '{"query": "how do I keep bees alive in winter"}',
        "Query: how do I drop an index",
    ],
)
def test_queries_that_speak_of_the_task(query):
    assert speaks_of_task(query)


@pytest.mark.parametrize(
    "query",
    [
        "why is my report slow although the query is indexed",
        "I work as an AI engineer and want to keep bees, where do I begin",
        "How do I log search queries under GDPR?",
        "Why does the passage that connects our garage to the house smell of honey?",
        "How do I pass `query_params` to a client in a test?",
        "how is the passage of blood through a language model of the heart shown",
        "Okay, I'll admit that my hives are a mess: where do I begin",
        "I'm sorry for my neighbour, can I help with her hives?",
        "Here is my problem: half of the bees were dead in March",
        "which column does SELECT [Name] FROM hives return",
    ],
)
def test_queries_that_do_not(query):
    assert not speaks_of_task(query)


@pytest.mark.parametrize(
    "passage",
    [
        "Sure! Here is a passage of about 100 words on bees. They form a cluster.",
        "Certainly! Below is an encyclopedia entry. Bees form a cluster.",
        "Here's a rewritten version: bees form a cluster.",
        "The passage: bees form a cluster.",
        "The topic is positive_response_11285, of which bees know.",
    ],
)
def test_passages_that_speak_of_the_task(passage):
    assert speaks_of_task(passage)


@pytest.mark.parametrize(
    "passage",
    [
        "Passage of the Civil Rights Act in 1964 ended segregation by law.",
        "Passages between the islands are narrow, and the tide is strong.",
        "The query planner uses an index when the query is selective.",
        "They sailed in May, and the passage was rough.",
        "She has worked as an AI researcher since 2015.",
        "In this passage, Augustine tells how he stole pears.",
        "The function returns the rows for the query in batches.",
        "Of course, bees need honey. Sure, they can be fed.",
    ],
)
def test_passages_that_do_not(passage):
    assert not speaks_of_task(passage)


@pytest.mark.parametrize(
    ("query", "gives"),
    [
        ("who was first to keep bees? The answer is the Egyptians", True),
        ("how can bees be fed? A good answer would be: sugar", True),
        ("I do not know what the answer is to my bees' cold", False),
        ("is honey the answer to a cough", False),
    ],
)
def test_a_query_that_gives_its_answer(query, gives):
    assert gives_answer(query) == gives
