"""Training examples as token ids: pure functions, and a tokenizer one can read."""

import pytest

from limrank.errors import UserError
from limrank.training.examples import encode_examples, set_target
from limrank.training.sources import Example

END = 0
SPECIALS = {"<think>": 1, "</think>": 2, " true": 3, " false": 4}


def encode(text):
    """One id a character, but for the four that are one token each."""
    ids = []
    while text:
        special = next((token for token in SPECIALS if text.startswith(token)), None)
        ids.append(SPECIALS[special] if special else ord(text[0]))
        text = text[len(special) if special else 1 :]
    return ids


def decode(ids):
    names = {number: token for token, number in SPECIALS.items()} | {END: "<end>"}
    return "".join(names.get(number) or chr(number) for number in ids)


def example(line=1, label=" true", chain="\nIt fits.\n", passage="abcdefgh"):
    return Example(line, f"Judge.\nQuery: q\nPassage: {passage}\n<think>", chain, label, ("q",))


def encoded(one, cutoff=1000):
    return encode_examples([one], encode, END, cutoff, "train.jsonl")[0]


def test_targets():
    examples = [example(1), example(2)]
    assert [one.chain for one in set_target(examples, "think")] == ["\nIt fits.\n"] * 2
    assert [one.chain for one in set_target(examples, "direct")] == ["\n"] * 2
    # What has no chain is learned as whoever asks directly writes it.
    assert [one.chain for one in set_target([example(chain=""), example(chain=" ")], "think")] == ["\n"] * 2


def test_a_mixed_target_does_not_follow_labels_that_alternate():
    alternating = [example(line, (" true", " false")[line % 2]) for line in range(1, 9)]
    kinds = {(one.label, one.chain == "\n") for one in set_target(alternating, "mixed")}
    assert kinds == {(" true", False), (" true", True), (" false", False), (" false", True)}
    # Nor chains that do: of three the second is dropped.
    chains = [example(line, chain="" if line % 2 else "\nIt fits.\n") for line in range(1, 7)]
    assert [one.line for one in set_target(chains, "mixed") if one.chain != "\n"] == [2, 6]


def test_loss_is_on_the_completion_and_the_end():
    one = encoded(example())
    assert decode(one.ids[: one.prompt_tokens]) == "Judge.\nQuery: q\nPassage: abcdefgh\n<think>"
    assert decode(one.ids[one.prompt_tokens :]) == "\nIt fits.\n</think> true<end>"
    assert not one.truncated


def test_a_direct_example_is_prompt_close_and_label():
    (one,) = encode_examples(set_target([example(label=" false")], "direct"), encode, END, 1000, "train.jsonl")
    assert decode(one.ids).endswith("abcdefgh\n<think>\n</think> false")
    # The close belongs to the prompt: the loss is only on the label.
    assert decode(one.ids[one.prompt_tokens :]) == " false"
    assert (one.label, one.query) == (False, ("q",))


def test_what_is_too_long_loses_the_end_of_its_chain_first():
    full = len(encoded(example()).ids)
    one = encoded(example(), cutoff=full - 3)
    assert decode(one.ids) == "Judge.\nQuery: q\nPassage: abcdefgh\n<think>\nIt fi\n</think> true<end>"
    assert one.truncated
    assert len(one.ids) == full - 3


def test_then_the_end_of_its_passage_and_never_the_query():
    shortest = len(encoded(example(chain="\n", passage="")).ids)
    one = encoded(example(), cutoff=shortest + 2)
    assert decode(one.ids) == "Judge.\nQuery: q\nPassage: ab\n<think>\n</think> true"
    assert decode(one.ids[one.prompt_tokens :]) == " true"
    with pytest.raises(UserError, match=r"train\.jsonl:7: .*training\.cutoff_tokens"):
        encoded(example(line=7), cutoff=shortest - 2)


def test_a_prompt_that_does_not_say_where_its_passage_is_is_never_cut():
    one = Example(3, "Document: abcdefgh\nQuestion: why<think>", "\n", " true", ("q",))
    assert len(encoded(one, cutoff=100).ids) == len(encoded(one, cutoff=len(encoded(one).ids)).ids)
    with pytest.raises(UserError, match=r"train\.jsonl:3: longer than training\.cutoff_tokens=20"):
        encoded(one, cutoff=20)


def test_a_passage_without_a_label_ends_where_its_log_odds_are():
    unlabelled = Example(5, example().prompt, "", None, ("q",), 0.25)
    (one,) = encode_examples(set_target([unlabelled], "direct"), encode, END, 1000, "train.jsonl")
    (labelled,) = encode_examples(set_target([example()], "direct"), encode, END, 1000, "train.jsonl")
    assert one.ids.tolist() == labelled.ids.tolist()
    assert (one.label, one.score, labelled.score) == (None, 0.25, None)
    assert one.prompt_tokens == len(one.ids) - 1
