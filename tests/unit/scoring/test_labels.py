"""Graded labels: their tokens, the prompt that names them, and the expected value."""

import asyncio
import math

import pytest

from limrank import models
from limrank.config import EngineConfig, ModelConfig, ScoringConfig, ServeJob
from limrank.engines.base import Limits
from limrank.engines.fake import ByteTokenizer, FakeEngine
from limrank.errors import RowError, UserError
from limrank.records import Candidate, Query, ScoreStatus
from limrank.reranking.reranker import Reranker
from limrank.scoring import check_labels, label_score, pair_text, prompt_template, score_pair, with_prompt_text
from limrank.scoring.labels import label_scale
from limrank.serving import job as serving
from limrank.serving.protocol import Served

QUERY = Query("q", "why does dough rise")
CANDIDATE = Candidate("d", "Yeast makes gas.", 1, 0.0)
DIGITS = tuple("0123")


@pytest.fixture(scope="module")
def smol_tokenizer():
    if not models.is_cached("smollm2-135m-instruct"):
        pytest.skip("smollm2-135m-instruct is not fetched yet (limrank models fetch smollm2-135m-instruct)")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models.resolve("smollm2-135m-instruct"))


class Graded:
    """Gives the labels these log-probabilities, in their order."""

    def __init__(self, *logprobs, tokenizer=None, context=4096):
        self.tokenizer = tokenizer or ByteTokenizer()
        self.limits = Limits(context, 8)
        self.logprobs = logprobs

    async def label_logprobs(self, prompt, labels):
        self.asked, self.labels = prompt, labels
        return dict(zip(labels, self.logprobs, strict=True))


def score(labels, *logprobs):
    return asyncio.run(label_score(Graded(*logprobs), [1, 2], labels))


# ---- the expected value --------------------------------------------------------------


def test_the_score_is_the_expected_grade_over_the_labels_only():
    # p is .1, .2, .3 and .2, of which .8 is on labels: (0·.1 + 1·.2 + 2·.3 + 3·.2) / .8 / 3 = 1.4 / 2.4
    assert score(DIGITS, *map(math.log, (0.1, 0.2, 0.3, 0.2))) == pytest.approx(1.4 / 2.4)


def test_the_ends_of_the_scale_are_0_and_1():
    assert score(DIGITS, 0.0, -1000.0, -1000.0, -1000.0) == 0.0
    assert score(DIGITS, -1000.0, -1000.0, -1000.0, 0.0) == 1.0
    assert score(DIGITS, -2000.0, -2000.0, -2000.0, -2000.0) == pytest.approx(0.5)


def test_two_labels_are_true_and_false():
    labels = ("false", "true")
    graded = score(labels, math.log(0.1), math.log(0.3))
    assert graded == pytest.approx(0.75) == score(None, math.log(0.3), math.log(0.1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_log_probability_that_is_not_finite_makes_no_score_up(value):
    with pytest.raises(RowError, match="not finite"):
        score(DIGITS, -1.0, value, -1.0, -1.0)


# ---- tokens --------------------------------------------------------------------------


def test_a_digit_follows_the_token_of_its_space(qwen_tokenizers, smol_tokenizer):
    def read(tokenizer, labels):
        scale = label_scale(tokenizer, labels)
        assert scale.root.ends == tuple(range(len(labels))) and not any(scale.root.below)
        return scale.lead, scale.root.texts

    assert read(qwen_tokenizers["marked"], DIGITS) == ((220,), DIGITS)
    assert read(smol_tokenizer, DIGITS) == ((216,), DIGITS)
    assert read(smol_tokenizer, tuple("ABCDEFGHIJK")) == ((), tuple(f" {each}" for each in "ABCDEFGHIJK"))


@pytest.mark.parametrize("vocabulary", ["qwen", "smol"])
def test_a_label_may_be_the_beginning_of_another(qwen_tokenizers, smol_tokenizer, vocabulary):
    """0 to 10: behind the token of 1, that of 0 is asked for by a second request."""
    tokenizer = smol_tokenizer if vocabulary == "smol" else qwen_tokenizers["marked"]
    one = tokenizer.encode("1")[0]

    class Ten(Graded):
        def __init__(self, first, second):
            super().__init__(tokenizer=tokenizer)
            self.answers, self.requests = {False: first, True: second}, []

        async def label_logprobs(self, prompt, labels):
            self.requests.append((prompt, labels))
            return {label: self.answers[prompt[-1] == one][label] for label in labels}

    first = {str(digit): math.log(0.02) for digit in range(10)} | {"1": math.log(0.4), "7": math.log(0.1)}
    engine = Ten(first, {"0": math.log(0.75)})
    judgment = asyncio.run(score_pair(QUERY, CANDIDATE, engine, ScoringConfig(labels=tuple(map(str, range(11))))))
    # p(10) = .4 · .75, p(1) = .4 · .25, p(7) = .1, and .02 for each of the other eight.
    expected = (1 * 0.1 + 7 * 0.1 + 10 * 0.3 + 0.02 * (0 + 2 + 3 + 4 + 5 + 6 + 8 + 9)) / (0.1 + 0.1 + 0.3 + 8 * 0.02)
    assert judgment.score == pytest.approx(expected / 10)
    assert [labels for _, labels in engine.requests] == [tuple("0123456789"), ("0",)]
    assert engine.requests[1][0] == [*engine.requests[0][0], one] and judgment.generated_tokens == 2


def test_a_beginning_that_always_goes_on_has_next_to_no_probability():
    class Sure(Graded):
        async def label_logprobs(self, prompt, labels):
            return dict.fromkeys(labels, 0.0) if len(labels) == 1 else dict(zip(labels, (0.0, -50.0), strict=True))

    # The first label is always followed by a 0: what is left is 10.
    assert asyncio.run(label_score(Sure(), [1, 2], ("1", "2", "10"))) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mark", ["marked", "unmarked"])
def test_a_label_is_read_where_training_text_would_have_it(qwen_tokenizers, mark):
    tokenizer = qwen_tokenizers[mark]
    engine = Graded(-1.0, -2.0, -3.0, -4.0, tokenizer=tokenizer)
    scoring = ScoringConfig(labels=DIGITS)
    judgment = asyncio.run(score_pair(QUERY, CANDIDATE, engine, scoring))
    text = pair_text(prompt_template(scoring), QUERY, CANDIDATE.text)
    assert [*engine.asked, tokenizer.encode("2")[0]] == tokenizer.encode(f"{text}\n</think> 2")
    assert engine.labels == DIGITS
    assert (judgment.status, judgment.generated_tokens) == (ScoreStatus.DIRECT, 1)


def test_the_token_of_the_space_fits_into_the_context():
    full = "word " * 2000
    engine = Graded(-1.0, -1.0, -1.0, -1.0, context=500)
    judgment = asyncio.run(score_pair(QUERY, Candidate("d", full, 1, 0.0), engine, ScoringConfig(labels=DIGITS)))
    assert judgment.truncated and judgment.score == pytest.approx(0.5)
    assert len(engine.asked) + 1 == 500


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("1", "1000000"), "'1000000' is 7 tokens"),
        (("no", "irrelevantishlynessless"), "'irrelevantishlynessless' is"),
    ],
)
def test_a_label_of_many_tokens_is_refused_by_name(smol_tokenizer, labels, named):
    with pytest.raises(UserError) as refused:
        check_labels(smol_tokenizer, labels)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_true_and_false_are_not_read_as_a_scale():
    """They are one token with their space, or refused: trained models know no other."""
    check_labels(ByteTokenizer())

    class Spaced(ByteTokenizer):
        extra = ("<think>", "</think>")

    with pytest.raises(UserError, match="label ' true' is 5 tokens"):
        check_labels(Spaced())


# ---- the prompt ----------------------------------------------------------------------


def test_the_default_prompt_names_the_scale():
    assert pair_text(prompt_template(ScoringConfig(labels=DIGITS)), QUERY, "Yeast.") == (
        "Determine how relevant the following passage is to the query, on a scale from 0 (not relevant) to "
        "3 (answers the query fully). Answer only with one of: 0, 1, 2, 3.\n"
        "Query: why does dough rise\nPassage: Yeast.\n<think>"
    )


def test_a_prompt_of_one_s_own_may_name_the_scale():
    scoring = ScoringConfig(
        labels=("bad", "good"), prompt="{{labels}}? {{ query }} {{ passage }} {{ most }}/{{least}}:"
    )
    assert prompt_template(scoring) == "bad, good? {{ query }} {{ passage }} good/bad:"
    assert prompt_template(with_prompt_text(scoring)) == prompt_template(scoring)


def test_without_labels_a_prompt_is_as_it_was():
    text = "{{ labels }} {{ query }} {{ passage }}"
    assert prompt_template(ScoringConfig(prompt=text)) == text
    assert ScoringConfig().prompt_name == "relevance"


def test_a_passage_may_look_like_a_placeholder_of_the_scale():
    assert "Passage: {{ labels }}\n" in pair_text(prompt_template(ScoringConfig(labels=DIGITS)), QUERY, "{{ labels }}")


# ---- who takes them ------------------------------------------------------------------


def fake():
    return FakeEngine(ModelConfig(max_model_len=2048), EngineConfig(kind="fake"))


@pytest.mark.parametrize("mode", ["direct", "budget", "cascade"])
def test_every_mode_grades(mode):
    scoring = ScoringConfig(mode=mode, labels=DIGITS, max_think_tokens=20, samples=1 if mode == "direct" else 2)
    with Reranker(scoring=scoring, engine=fake()) as reranker:
        ranked = reranker.rank("dough", ["Yeast makes gas.", "Salt.", "Flour."])
    assert len(ranked) == 3 and all(0 <= hit.score <= 1 for hit in ranked)


def test_a_library_call_refuses_labels_that_the_model_lacks():
    with pytest.raises(UserError, match="scoring.labels: '1000000' is 7 tokens"):
        Reranker(scoring=ScoringConfig(labels=("0", "1", "1000000")), engine=fake())


def test_a_server_s_card_has_the_labels():
    job = ServeJob(run_dir="runs/a", scoring=ScoringConfig(labels=DIGITS))
    served = Served.of(job.model, job.scoring)
    assert served.scoring()["labels"] == ["0", "1", "2", "3"]
    assert Served(model=served.model, **served.scoring()) == served
    with pytest.raises(UserError, match="its scoring.labels is None, the recipe's "):
        Served.of(job.model, ScoringConfig(prompt="relevance_graded")).check(served, "there")
    assert serving.plan(job)["first_prompt"] == prompt_template(job.scoring)
