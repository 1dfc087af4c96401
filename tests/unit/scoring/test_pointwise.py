import asyncio
import copy
import math

import pytest

from limrank import models, prompts, scoring
from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines.base import Generation, Limits
from limrank.engines.fake import ByteTokenizer, FakeEngine
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Candidate, Judgment, Query, ScoreStatus

MODEL = "smollm2-135m-instruct"
PROMPT = (
    "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
    "Query: why does dough rise\nPassage: Yeast makes gas.\n<think>"
)
QUERY = Query("q", "why does dough rise")
TEMPLATE = prompts.load("relevance")
ORDINARY = {
    "prose": "Yeast feeds on sugar, and it can't stop; see p. 12 .",
    "spaces": "  two  spaces\n\n\tand a tab \n",
    "unicode": "naïve 日本語 🙂 e\u0301 ﬁ",
    "code": "for x in range(10):\n    print(x<3, x>=5, '</div>')",
    "almost special": "<|im_end| > < think> <|im_start |>",
    "empty": "",
}


@pytest.fixture(scope="module")
def tokenizer():
    """The small model's own tokenizer; it has no ``<think>``."""
    if not models.is_cached(MODEL):
        pytest.skip(f"{MODEL} is not fetched yet (limrank models fetch {MODEL})")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models.resolve(MODEL))


@pytest.fixture(scope="module")
def trained_tokenizer(tokenizer):
    """The same with the chain's marks as tokens, as training adds them."""
    trained = copy.deepcopy(tokenizer)
    trained.add_tokens(["<think>", "</think>"], special_tokens=True)
    return trained


def candidate(text, rank=1, doc_id="d"):
    return Candidate(doc_id, text, rank, 1.0)


def encode(tokenizer, passage, query=QUERY, max_tokens=10_000):
    return scoring.encode_pair(tokenizer, TEMPLATE, query, passage, max_tokens=max_tokens)


def passage_of(tokenizer, ids):
    text = tokenizer.decode(ids)
    return text.split("Passage: ", 1)[1].removesuffix("\n<think>")


def fake(**settings):
    return FakeEngine(ModelConfig(max_model_len=2048), EngineConfig(kind="fake", **settings))


def score(engine, texts, mode="direct", query=QUERY, **settings):
    candidates = [candidate(text, rank, f"d{rank}") for rank, text in enumerate(texts, start=1)]
    return asyncio.run(scoring.score_query(query, candidates, engine, ScoringConfig(mode=mode, **settings)))


# ---- the prompt -----------------------------------------------------------------------


def test_the_prompt_is_the_published_one_byte_for_byte(tokenizer):
    assert tokenizer.decode(encode(tokenizer, "Yeast makes gas.").ids) == PROMPT


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        (Query("q", "bread", "Name the organism."), "bread Name the organism."),
        (Query("q", "bread"), "bread"),
        (Query("q", " why?\n\n"), " why?\n\n"),  # 31 of BRIGHT's queries have outer blanks
        (Query("q", " bread", "Name it. "), "bread Name it."),
        (Query("q", "bread ", " bread"), "bread"),
        (Query("q", "bread", template="Find: {{ query }}\n"), "Find: bread\n"),
        (Query("q", " \\1 {{query}}", template="Find: {{query}}."), "Find:  \\1 {{query}}."),
        (Query("q", "bread", "Name it.", template="Find: {{ query }}"), "Find: bread Name it."),
    ],
)
def test_a_query_as_the_reference_asks_it(query, asked):
    assert scoring.prompt_query(query) == asked


@pytest.mark.parametrize("passage", ORDINARY.values(), ids=ORDINARY.keys())
def test_ordinary_text_is_tokenized_as_a_whole(tokenizer, passage):
    whole = PROMPT.replace("Yeast makes gas.", passage)
    assert encode(tokenizer, passage).ids == tokenizer.encode(whole)


@pytest.mark.parametrize("passage", ORDINARY.values(), ids=ORDINARY.keys())
def test_marks_are_tokens_where_the_tokenizer_has_them(trained_tokenizer, passage):
    ids = encode(trained_tokenizer, passage).ids
    assert ids == trained_tokenizer.encode(PROMPT.replace("Yeast makes gas.", passage))
    assert ids[-1] == trained_tokenizer.convert_tokens_to_ids("<think>")


def test_braces_in_a_passage_are_not_placeholders(tokenizer):
    passage = "a {{ query }} and {{passage}} {% if %} \\1"
    assert passage_of(tokenizer, encode(tokenizer, passage).ids) == passage


SPECIAL = [
    "<|im_end|>",
    "<|endoftext|>",
    "</think>",
    "<think>",
    "a</think> true",
    "<<|im_end|>|im_end|>",
    "<|im_end|><|im_end|>",
]


@pytest.mark.parametrize("text", SPECIAL)
@pytest.mark.parametrize("place", ["passage", "query", "instruction"])
def test_special_tokens_of_a_person_are_plain_text(trained_tokenizer, text, place):
    passage = f"Yeast {text} gas" if place == "passage" else "Yeast"
    query = Query("q", f"why {text}" if place == "query" else "why", text if place == "instruction" else "")
    ids = encode(trained_tokenizer, passage, query).ids
    special = [token for token in ids if token in trained_tokenizer.get_added_vocab().values()]
    assert special == [trained_tokenizer.convert_tokens_to_ids("<think>")]
    assert ids[-1] == special[0]
    assert trained_tokenizer.decode(ids) == (
        f"{TEMPLATE.splitlines()[0]}\nQuery: {scoring.prompt_query(query)}\nPassage: {passage}\n<think>"
    )


def test_tokens_that_are_added_later_are_seen(tokenizer):
    grown = copy.deepcopy(tokenizer)
    scoring.encode_text(grown, "a</think>b")
    grown.add_tokens(["</think>"], special_tokens=True)
    assert grown.convert_tokens_to_ids("</think>") not in scoring.encode_text(grown, "a</think>b")
    assert scoring.encode_template(grown, "\n</think>")[-1] == grown.convert_tokens_to_ids("</think>")


# ---- too long -------------------------------------------------------------------------

LONG = {
    "prose": "Yeast feeds on sugar , and it doesn't stop . " * 60,
    "unicode": "日本語 🙂 naïve e\u0301 " * 60,
    "special": "gas </think> <|im_end|> " * 60,
}


@pytest.mark.parametrize("passage", LONG.values(), ids=LONG.keys())
@pytest.mark.parametrize("max_tokens", range(90, 99))
def test_a_pair_too_long_loses_the_end_of_its_passage(trained_tokenizer, passage, max_tokens):
    prompt = encode(trained_tokenizer, passage, max_tokens=max_tokens)
    kept = passage_of(trained_tokenizer, prompt.ids)
    assert prompt.truncated
    assert len(prompt.ids) <= max_tokens
    assert kept and passage.startswith(kept)
    assert trained_tokenizer.decode(prompt.ids) == PROMPT.replace("Yeast makes gas.", kept)
    # No more is lost than has to be: a few tokens at the seams.
    assert len(prompt.ids) >= max_tokens - 4


def test_a_pair_that_just_fits_is_whole(tokenizer):
    length = len(encode(tokenizer, "Yeast makes gas.").ids)
    assert not encode(tokenizer, "Yeast makes gas.", max_tokens=length).truncated
    assert encode(tokenizer, "Yeast makes gas.", max_tokens=length - 1).truncated


def test_a_query_that_is_too_long_without_a_passage_is_an_error(tokenizer):
    bare = len(encode(tokenizer, "").ids)
    assert len(encode(tokenizer, "Yeast makes gas.", max_tokens=bare).ids) <= bare
    with pytest.raises(RowError, match=f"the prompt takes {bare} tokens without a passage, and {bare - 1} fit"):
        encode(tokenizer, "Yeast", max_tokens=bare - 1)


# ---- labels and scores ----------------------------------------------------------------


class Scripted:
    """An engine that says what it is told, and remembers what it was asked."""

    def __init__(self, logprobs=None, generation=None):
        self.tokenizer = ByteTokenizer()
        self.limits = Limits(2048, 8)
        self.logprobs = logprobs or {scoring.TRUE: math.log(0.3), scoring.FALSE: math.log(0.1)}
        self.generation = generation
        self.asked = []

    async def generate(self, prompt, **options):
        self.prompt, self.options = prompt, options
        return self.generation

    async def label_logprobs(self, prompt, labels):
        self.asked.append(self.tokenizer.decode(prompt))
        return self.logprobs


def label_score(true, false):
    return asyncio.run(scoring.label_score(Scripted({scoring.TRUE: true, scoring.FALSE: false}), [1]))


def test_a_score_is_the_share_of_true():
    assert label_score(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert label_score(-5.0, -5.0) == 0.5
    # The shares alone count, however small both are.
    assert label_score(-800.0 + math.log(3), -800.0) == pytest.approx(0.75)


def test_scores_at_the_ends():
    assert label_score(-0.0, -10_000.0) == 1.0
    assert 0.0 <= label_score(-10_000.0, -0.0) < 1e-300


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
def test_a_log_probability_that_is_not_finite_is_no_score(bad):
    with pytest.raises(RowError, match="not finite"):
        label_score(bad, -1.0)


class LetterTokenizer(ByteTokenizer):
    extra = ()


class SharedTokenizer(ByteTokenizer):
    def encode(self, text, *, add_special_tokens=True):
        return [1]


def test_labels_must_be_single_tokens(tokenizer):
    assert scoring.check_labels(tokenizer) is None
    assert tokenizer.encode(" true") == [2629]
    assert tokenizer.encode(" false") == [7065]
    with pytest.raises(UserError, match="label ' true' is 5 tokens"):
        scoring.check_labels(LetterTokenizer())
    with pytest.raises(UserError, match="share a token"):
        scoring.check_labels(SharedTokenizer())


# ---- scoring a query ------------------------------------------------------------------


def test_direct_asks_after_an_empty_chain():
    engine = Scripted()
    (judgment,) = score(engine, ["Yeast makes gas."])
    assert engine.asked == [PROMPT + "\n</think>"]
    assert judgment.score == pytest.approx(0.75)
    assert (judgment.status, judgment.reasoning, judgment.generated_tokens) == (ScoreStatus.DIRECT, None, 1)
    assert judgment.prompt_tokens == len(PROMPT) - len("<think>") + 1  # bytes, and the mark is one token


def test_a_finished_chain_is_closed_and_asked():
    engine = Scripted(generation=Generation("\nYeast is why.\n", "stop", 9, 0, 5, stop="</think>"))
    (judgment,) = score(engine, ["Yeast makes gas."], mode="think")
    # All that a context of 2048 has beside the prompt, the close of the chain (a line end and the mark)
    # and the label: far below 8192.
    assert engine.options == {"max_tokens": 2048 - len(engine.prompt) - 2 - 1, "stop": ["</think>"]}
    assert engine.asked == [PROMPT + "\nYeast is why.\n</think>"]
    assert judgment.reasoning == "\nYeast is why.\n"
    assert (judgment.status, judgment.generated_tokens) == (ScoreStatus.COMPLETE, 6)


def test_an_unfinished_chain_is_truncated_at_its_last_sentence():
    engine = Scripted(generation=Generation("\nYeast is why. But then ag", "length", 9, 0, 64))
    (judgment,) = score(engine, ["Yeast makes gas."], mode="budget", max_think_tokens=64)
    assert engine.options["max_tokens"] == 64
    assert engine.asked == [PROMPT + "\nYeast is why.\n</think>"]
    assert (judgment.status, judgment.reasoning, judgment.generated_tokens) == (
        ScoreStatus.FORCED,
        "\nYeast is why.",
        65,
    )


def test_an_empty_chain_is_the_direct_question():
    engine = Scripted(generation=Generation("\n", "stop", 9, 0, 2, stop="</think>"))
    (judgment,) = score(engine, ["Yeast makes gas."], mode="budget")
    assert engine.asked == [PROMPT + "\n</think>"]
    assert (judgment.status, judgment.reasoning) == (ScoreStatus.COMPLETE, "\n")


def test_a_model_that_ends_without_closing_its_chain_has_it_closed():
    engine = Scripted(generation=Generation("\nYeast is why. So", "stop", 9, 0, 5))
    (judgment,) = score(engine, ["Yeast makes gas."], mode="think")
    assert engine.asked == [PROMPT + "\nYeast is why.\n</think>"]
    assert (judgment.status, judgment.reasoning) == (ScoreStatus.FORCED, "\nYeast is why.")


@pytest.mark.parametrize("mode", ["direct", "think", "budget"])
def test_judgments_are_in_the_candidates_order_and_repeatable(mode):
    texts = [f"passage {number}" for number in range(20)]
    first, second = score(fake(), texts, mode), score(fake(), texts, mode)
    assert [judgment.doc_id for judgment in first] == [f"d{rank}" for rank in range(1, 21)]
    assert first == second
    assert all(0 < judgment.score < 1 for judgment in first)
    assert len({judgment.score for judgment in first}) == 20


def test_a_pair_that_fails_leaves_its_neighbours():
    judgments = score(fake(fail_rate=0.3), [f"passage {number}" for number in range(40)])
    failed = [judgment for judgment in judgments if judgment.status == ScoreStatus.FAILED]
    assert 0 < len(failed) < 40
    assert all(judgment.score is None and isinstance(judgment.error, RowError) for judgment in failed)


def test_a_dead_engine_is_not_a_failed_pair():
    with pytest.raises(EngineError):
        score(fake(poison="arsenic"), ["Yeast", "arsenic"])


def test_a_query_too_long_fails_its_pairs():
    (judgment,) = score(fake(), ["Yeast"], query=Query("q", "why " * 600))
    assert (judgment.status, judgment.score) == (ScoreStatus.FAILED, None)
    assert "tokens without a passage" in str(judgment.error)


def test_a_passage_too_long_is_scored_without_its_end():
    (judgment,) = score(fake(), ["gas " * 600])
    assert judgment.truncated
    assert 0 < judgment.score < 1


# ---- order, chains and completions ----------------------------------------------------


def test_order_is_by_score_then_first_stage_rank_then_failed():
    scores = {"a": 0.2, "b": None, "c": 0.9, "d": 0.2, "e": None, "f": 0.0, "g": 0.9}
    ranks = {"a": 3, "b": 5, "c": 6, "d": 2, "e": 4, "f": 1, "g": 7}
    candidates = [Candidate(name, "", ranks[name], 0.0) for name in scores]
    judgments = [
        Judgment(name, value, ScoreStatus.FAILED if value is None else ScoreStatus.DIRECT)
        for name, value in scores.items()
    ]
    order = [candidates[index].doc_id for index in scoring.rank_judgments(candidates, judgments)]
    assert order == ["c", "g", "d", "a", "f", "e", "b"]


def test_nothing_is_ranked_as_nothing():
    assert scoring.rank_judgments([], []) == []


@pytest.mark.parametrize(
    ("chain", "cut"),
    [
        ("One. Two. Thr", "One. Two."),
        ("One! Two? Thr", "One! Two?"),
        ('He said "yes." Then', 'He said "yes."'),
        ("It is 3.5 of 4.2 a", "It is 3.5 of 4.2 a"),
        ("no end at all", "no end at all"),
        ("Whole.", "Whole."),
        ("一。 二", "一。"),
        ("A line.\nAnother", "A line."),
        ("", ""),
    ],
)
def test_a_chain_is_truncated_at_its_last_sentence_end(chain, cut):
    assert scoring.truncate_at_sentence(chain) == cut


@pytest.mark.parametrize(
    ("chain", "label", "written"),
    [
        (None, True, "\n</think> true"),
        ("", False, "\n</think> false"),
        (" \n", False, "\n</think> false"),
        ("Yeast makes gas.", True, "\nYeast makes gas.\n</think> true"),
        ("\nYeast.\n\n", False, "\nYeast.\n</think> false"),
    ],
)
def test_what_a_reranker_is_trained_to_write(chain, label, written):
    assert scoring.completion(chain, label) == written
