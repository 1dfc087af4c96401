"""The tokens after which a label is asked: those that the model wrote, or was trained on.

The reference (rank1.py) gives vLLM text: the prompt, and for a chain that did not close the
prompt, a line end, the chain up to its last ``.!?``, a line end and ``</think>``.
"""

import asyncio
import copy
import math

import pytest

from limrank import models, prompts, scoring
from limrank.config import PipelineJob, RerankJob, ScoringConfig, ServeJob, SynthesizeJob
from limrank.engines.base import Generation, Limits
from limrank.records import Candidate, Query, ScoreStatus
from limrank.scoring.encoding import encode_example
from limrank.training.examples import encode_examples
from limrank.training.sources import Example

QUERY = Query("q", "why does dough rise")
PASSAGE = "Yeast makes gas (see p. 3)?\n"
PROMPT = prompts.load("relevance").replace("{{ query }}", QUERY.text).replace("{{ passage }}", PASSAGE)
CHAINS = ("\nYeast makes gas.", "\nYeast makes gas.\n", "\nIs it gas (or air)?\n", "\nYeast makes gas.\n\n", "\n", "")
LABELS = {scoring.TRUE: math.log(0.3), scoring.FALSE: math.log(0.1)}


@pytest.fixture(scope="module")
def smol_tokenizers():
    if not models.is_cached("smollm2-135m-instruct"):
        pytest.skip("smollm2-135m-instruct is not fetched yet (limrank models fetch smollm2-135m-instruct)")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.resolve("smollm2-135m-instruct"))
    trained = copy.deepcopy(tokenizer)
    trained.add_tokens(["<think>", "</think>"], special_tokens=True)
    return {"marked": trained, "unmarked": tokenizer}


@pytest.fixture(params=["qwen", "smol"])
def family(request):
    """A vocabulary, as training leaves it and as it comes."""
    return request.getfixturevalue(f"{request.param}_tokenizers")


@pytest.fixture(params=["marked", "unmarked"])
def tokenizer(request, family):
    return family[request.param]


class Scripted:
    """An engine that writes what it is told to, and remembers after which tokens it was asked."""

    def __init__(self, tokenizer, generation=None, context=4096):
        self.tokenizer = tokenizer
        self.limits = Limits(context, 8)
        self.generation = generation
        self.most = None

    async def generate(self, prompt, *, max_tokens, stop):
        self.prompt, self.most = prompt, max_tokens
        return self.generation

    async def label_logprobs(self, prompt, labels):
        self.asked = prompt
        return LABELS


def ask(engine, passage=PASSAGE, mode="think", **settings):
    candidate = Candidate("d", passage, 1, 0.0)
    return asyncio.run(scoring.score_pair(QUERY, candidate, engine, ScoringConfig(mode=mode, **settings)))


def written(tokenizer, chain):
    """What a model writes that has learned a chain: the tokens of its example."""
    return (*(tokenizer.encode(chain) if chain else []), *close_of(tokenizer))


def close_of(tokenizer):
    return tokenizer.encode("</think>", add_special_tokens=False)


def trained_on(tokenizer, chain):
    """The ids of a training example, up to where its label stands."""
    example = Example(line=1, prompt=PROMPT, chain=chain, label=scoring.TRUE, query=("q",))
    (encoded,) = encode_examples([example], lambda text: encode_example(tokenizer, text), 0, 4096, "file")
    ids = encoded.ids.tolist()
    label = tokenizer.encode(scoring.TRUE, add_special_tokens=False)
    return ids[: len(ids) - ids[::-1].index(label[0]) - 1]


def test_qwen_joins_a_full_stop_and_a_line_end(qwen_tokenizers):
    ids = [qwen_tokenizers["marked"].encode(text) for text in (".", ".\n", ".\n\n", " true", " false", "<think>")]
    assert ids == [[13], [624], [382], [830], [895], [151665]]


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_a_chain_that_the_model_closed_keeps_its_tokens(tokenizer, chain):
    ids = written(tokenizer, chain)
    engine = Scripted(tokenizer, Generation(chain, "stop", 9, 0, len(ids), stop="</think>", ids=ids))
    judgment = ask(engine)
    assert engine.asked == [*tokenizer.encode(PROMPT), *ids]
    assert (judgment.status, judgment.reasoning) == (ScoreStatus.COMPLETE, chain)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_tokens_that_no_encoder_would_choose_are_kept(family, chain):
    tokenizer = family["marked"]
    ids = (*(each for letter in chain for each in tokenizer.encode(letter)), *close_of(tokenizer))
    engine = Scripted(tokenizer, Generation(chain, "stop", 9, 0, len(ids), stop="</think>", ids=ids))
    ask(engine)
    assert engine.asked == [*tokenizer.encode(PROMPT), *ids]


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if chain.endswith("\n")], ids=repr)
def test_a_closed_chain_of_an_endpoint_that_gives_text_is_what_was_trained_on(family, chain):
    tokenizer = family["marked"]
    engine = Scripted(tokenizer, Generation(chain, "stop", 9, 0, 5, stop="</think>"))
    ask(engine)
    assert engine.asked == trained_on(tokenizer, chain) == tokenizer.encode(f"{PROMPT}{chain}</think>")


@pytest.mark.parametrize("mode", ["think", "budget", "cascade"])
@pytest.mark.parametrize("ending", [".", ".\n", ")?\n", ".\n\n", ". And then it", " 3.5! of"])
def test_a_chain_that_is_closed_for_the_model_is_the_reference_s(tokenizer, ending, mode):
    text = f"\nYeast makes gas (it rises{ending}"
    engine = Scripted(tokenizer, Generation(text, "length", 9, 0, 64))
    judgment = ask(engine, mode=mode, max_think_tokens=64, compatibility="rank1")
    bare = text.rstrip()
    bare = bare[: max(bare.rfind("."), bare.rfind("!"), bare.rfind("?")) + 1].strip()
    assert engine.asked == tokenizer.encode(f"{PROMPT}\n{bare}\n</think>")
    assert (judgment.status, judgment.reasoning) == (ScoreStatus.FORCED, f"\n{bare}")
    if "</think>" in tokenizer.get_added_vocab():
        assert engine.asked == trained_on(tokenizer, f"\n{bare}\n")
    # Ours is the same, but for what is no sentence end.
    ours = Scripted(tokenizer, Generation(text, "length", 9, 0, 64))
    ask(ours, mode=mode, max_think_tokens=64)
    assert (ours.asked == engine.asked) == ("3.5" not in ending or "!" in ending)


@pytest.mark.parametrize("text", ["", " \n", "\n"], ids=repr)
def test_an_empty_chain_is_closed_as_the_reference_closes_it(tokenizer, text):
    engine = Scripted(tokenizer, Generation(text, "length", 9, 0, 1))
    ask(engine, compatibility="rank1")
    assert engine.asked == tokenizer.encode(f"{PROMPT}\n\n</think>")
    ours = Scripted(tokenizer, Generation(text, "length", 9, 0, 1))
    ask(ours)
    assert ours.asked == tokenizer.encode(f"{PROMPT}\n</think>")


def test_a_direct_question_is_what_was_trained_on(tokenizer):
    engine = Scripted(tokenizer)
    judgment = ask(engine, mode="direct")
    assert engine.asked == tokenizer.encode(f"{PROMPT}\n</think>")
    assert judgment.status == ScoreStatus.DIRECT
    if "</think>" in tokenizer.get_added_vocab():
        assert engine.asked == trained_on(tokenizer, "\n")


@pytest.mark.parametrize(
    ("chain", "ours", "theirs"),
    [
        ("\nUse version 3.5 of", "\nUse version 3.5 of", "\nUse version 3."),
        ("\nIt is. Use 3.5 of", "\nIt is.", "\nIt is. Use 3."),
        ("\nIt is.  \n", "\nIt is.", "\nIt is."),
        ('\nHe says "yes." Then', '\nHe says "yes."', '\nHe says "yes.'),
        ("\nno end", "\nno end", "\nno end"),
        (" It is.\n", " It is.", "\nIt is."),
        ("\n\nIt is.\n", "\n\nIt is.", "\nIt is."),
        ("", "", "\n"),
    ],
)
def test_where_a_chain_is_cut(chain, ours, theirs):
    assert scoring.truncate_chain(chain) == ours
    assert scoring.truncate_chain(chain, "rank1") == theirs


@pytest.mark.parametrize("context", [200, 301, 640])
def test_what_is_asked_never_exceeds_the_context(tokenizer, context):
    # Encoded again, the chain has more tokens than were generated: each letter was one.
    text = "\n" + "Zzyzx qwrtp. " * 400
    engine = Scripted(tokenizer, Generation(text, "length", 9, 0, 64), context)
    judgment = ask(engine)
    assert judgment.score is not None and len(engine.asked) <= context - 1
    assert tokenizer.decode(engine.asked).endswith("\n</think>")


# ---- long prompts ---------------------------------------------------------------------


def long_passage(tokenizer, context, over):
    """A passage by which a pair's prompt has so many tokens more than half of the context."""
    bare = len(tokenizer.encode(PROMPT.replace(PASSAGE, "")))
    return " gas" * (context // 2 - bare + over)


def test_half_of_the_context_is_kept_for_a_chain(family):
    tokenizer, context = family["marked"], 1000
    passage = long_passage(tokenizer, context, over=100)
    engine = Scripted(tokenizer, Generation("\nGas.", "length", 9, 0, 5), context)
    assert ask(engine, passage).truncated
    assert len(engine.prompt) <= context // 2 and engine.most >= context // 2 - 4


def test_a_prompt_keeps_its_passage_and_the_chain_gets_what_is_left(family):
    tokenizer, context = family["marked"], 1000
    passage = long_passage(tokenizer, context, over=100)
    engine = Scripted(tokenizer, Generation("\nGas.", "length", 9, 0, 5), context)
    assert not ask(engine, passage, min_think_tokens=0).truncated
    assert engine.prompt == tokenizer.encode(PROMPT.replace(PASSAGE, passage))
    assert engine.most == context - len(engine.prompt) - 3  # line end, close and label


def test_a_prompt_that_leaves_nothing_is_asked_with_an_empty_chain(family):
    tokenizer, context = family["marked"], 500
    engine = Scripted(tokenizer, Generation("never", "stop", 9, 0, 5), context)
    judgment = ask(engine, " gas" * 2000, min_think_tokens=0)
    assert engine.most is None  # no chain was asked for
    assert (judgment.status, judgment.reasoning, judgment.truncated) == (ScoreStatus.FORCED, "", True)
    assert judgment.generated_tokens == 1 and len(engine.asked) <= context - 1


def test_a_chain_is_kept_as_much_as_the_recipe_says(family):
    tokenizer, context = family["marked"], 1000
    engine = Scripted(tokenizer, Generation("\nGas.", "length", 9, 0, 5), context)
    assert ask(engine, " gas" * 2000, min_think_tokens=64).truncated
    assert 64 <= engine.most <= 68
    # A chain that may not be longer needs no more.
    assert ask(engine, " gas" * 2000, max_think_tokens=16).truncated
    assert engine.most == 16 and len(engine.prompt) > context - 32


@pytest.mark.parametrize("over", [-4000, 4000])
def test_the_tokens_kept_for_a_chain_leave_some_for_a_prompt(over):
    settings = {"run_dir": "unused", "model": {"max_model_len": 5000}}
    scoring = {"mode": "think", "min_think_tokens": 5000 + over}
    if over < 0:
        RerankJob(**settings, scoring=scoring)
        return
    for job in (RerankJob, ServeJob, PipelineJob, SynthesizeJob):
        with pytest.raises(ValueError, match="scoring.min_think_tokens 8192 leaves no tokens for a prompt"):
            job(**settings, scoring=scoring)


def test_more_than_the_context_that_is_kept_for_a_chain_is_named(family):
    engine = Scripted(family["marked"], Generation("", "length", 9, 0, 5), context=500)
    judgment = ask(engine, min_think_tokens=600)
    assert judgment.status == ScoreStatus.FAILED
    assert "scoring.min_think_tokens 600 leaves no tokens" in str(judgment.error)


def test_a_model_whose_own_end_is_the_mark_has_closed_its_chain(family):
    tokenizer = family["marked"]
    ids = written(tokenizer, "\nGas.\n")
    engine = Scripted(tokenizer, Generation("\nGas.\n", "stop", 9, 0, len(ids), ids=ids))
    assert ask(engine).status == ScoreStatus.COMPLETE
    assert engine.asked == [*tokenizer.encode(PROMPT), *ids]


def test_a_closed_chain_that_is_too_long_once_encoded_is_cut(family):
    """An endpoint tells no tokens, and what it wrote as special tokens is plain text here."""
    tokenizer, context = family["marked"], 640
    chain = "\n" + "<|im_start|>" * 200
    engine = Scripted(tokenizer, Generation(chain, "stop", 9, 0, 201, stop="</think>"), context)
    judgment = ask(engine)
    assert judgment.status == ScoreStatus.FORCED and len(engine.asked) <= context - 1
    # The row has what was judged.
    assert chain.startswith(judgment.reasoning)
    assert engine.asked == [
        *tokenizer.encode(PROMPT),
        *scoring.encode_text(tokenizer, judgment.reasoning + "\n"),
        *close_of(tokenizer),
    ]


class PrefixTokenizer:
    """Decodes longer than it was given, as one that puts a blank before each text does."""

    def __init__(self, tokenizer):
        self._tokenizer, self.encoded = tokenizer, 0

    def encode(self, text, *, add_special_tokens=True):
        self.encoded += 1
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids):
        return " " * len(ids) + self._tokenizer.decode(ids)

    def get_added_vocab(self):
        return self._tokenizer.get_added_vocab()


def test_a_chain_that_is_too_long_is_truncated_in_a_few_rounds(family):
    tokenizer = PrefixTokenizer(family["marked"])
    engine = Scripted(tokenizer, Generation("\n" + "<|im_end|>" * 3000 + "x", "length", 9, 0, 3000), context=2048)
    judgment = ask(engine)
    assert judgment.score is not None and 1900 < len(engine.asked) <= 2047
    assert tokenizer.encoded < 100_000
