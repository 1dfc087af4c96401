"""Training examples and their batching: pure functions, and a tokenizer one can read."""

import pytest

from limrank.errors import UserError
from limrank.training.batches import epoch_steps, micro_batches, steps_per_epoch
from limrank.training.examples import aim, encode_examples
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
    assert [one.chain for one in aim(examples, "think")] == ["\nIt fits.\n"] * 2
    assert [one.chain for one in aim(examples, "direct")] == ["\n"] * 2


def test_a_mixed_target_does_not_follow_labels_that_alternate():
    alternating = [example(line, (" true", " false")[line % 2]) for line in range(1, 9)]
    kinds = {(one.label, one.chain == "\n") for one in aim(alternating, "mixed")}
    assert kinds == {(" true", False), (" true", True), (" false", False), (" false", True)}


def test_loss_is_on_the_completion_and_the_end():
    one = encoded(example())
    assert decode(one.ids[: one.prompt_tokens]) == "Judge.\nQuery: q\nPassage: abcdefgh\n<think>"
    assert decode(one.ids[one.prompt_tokens :]) == "\nIt fits.\n</think> true<end>"
    assert not one.cut


def test_a_direct_example_is_prompt_close_and_label():
    (one,) = encode_examples(aim([example(label=" false")], "direct"), encode, END, 1000, "train.jsonl")
    assert decode(one.ids).endswith("abcdefgh\n<think>\n</think> false<end>")


def test_what_is_too_long_loses_the_end_of_its_chain_first():
    full = len(encoded(example()).ids)
    one = encoded(example(), cutoff=full - 3)
    assert decode(one.ids) == "Judge.\nQuery: q\nPassage: abcdefgh\n<think>\nIt fi\n</think> true<end>"
    assert one.cut
    assert len(one.ids) == full - 3


def test_then_the_end_of_its_passage_and_never_the_query():
    shortest = len(encoded(example(chain="\n", passage="")).ids)
    one = encoded(example(), cutoff=shortest + 2)
    assert decode(one.ids) == "Judge.\nQuery: q\nPassage: ab\n<think>\n</think> true<end>"
    with pytest.raises(UserError, match=r"train\.jsonl:7: .*training\.cutoff_tokens"):
        encoded(example(line=7), cutoff=shortest - 2)


def test_an_epoch_holds_every_example_once_in_a_seeded_order():
    steps = epoch_steps(10, 4, seed=1, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    assert len(steps) == steps_per_epoch(10, 4)
    assert sorted(sum(steps, [])) == list(range(10))
    assert steps == epoch_steps(10, 4, seed=1, epoch=0)
    assert steps != epoch_steps(10, 4, seed=1, epoch=1) != epoch_steps(10, 4, seed=2, epoch=1)


def test_micro_batches_are_sorted_by_length_and_dealt_out():
    lengths = [5, 9, 1, 7, 3]
    assert micro_batches(range(5), lengths, batch_size=2, rank=0, workers=1) == [[1, 3], [0, 4], [2]]
    assert micro_batches(range(5), lengths, batch_size=2, rank=0, workers=2) == [[1, 3], [2]]
    assert micro_batches(range(5), lengths, batch_size=2, rank=1, workers=2) == [[0, 4], []]
