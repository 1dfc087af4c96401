"""Training examples and their batching: pure functions, and a tokenizer one can read."""

import json

import pytest

from limrank.errors import UserError
from limrank.training.batches import epoch_steps, micro_batches, steps_per_epoch
from limrank.training.examples import Example, aim, encode_examples, read_examples, select, split

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
    return Example(line, f"Judge.\nQuery: q\nPassage: {passage}\n<think>", chain, label)


def encoded(one, cutoff=1000):
    return encode_examples([one], encode, END, cutoff, "train.jsonl")[0]


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_reads_prompt_chain_and_label(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        {"prompt": "p1<think>", "completion": "\nchain\n</think> true", "more": 1},
        "\n",
        {"prompt": "p2<think>", "completion": "\na </think> b\n</think> false\n"},
    )
    assert read_examples(path) == [
        Example(1, "p1<think>", "\nchain\n", " true"),
        Example(3, "p2<think>", "\na </think> b\n", " false"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json\n", ":2: not JSON"),
        ("[1]\n", ":2: should be an object"),
        ({"prompt": "p"}, ":2: completion is missing"),
        ({"completion": "</think> true"}, ":2: prompt is missing"),
        ({"prompt": "p", "completion": " "}, ":2: completion should be a text"),
        ({"prompt": "p", "completion": 3}, ":2: completion should be a text"),
        ({"prompt": "p", "completion": "\nchain </think> maybe"}, ":2: completion should end in '</think> true'"),
        ({"prompt": "p", "completion": "true"}, ":2: completion should end in '</think> true'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "train.jsonl", {"prompt": "p", "completion": "</think> true"}, line)
    with pytest.raises(UserError) as error:
        read_examples(path)
    assert f"{path}{message}" in str(error.value)


def test_a_missing_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no examples"):
        read_examples(write(tmp_path / "train.jsonl", "\n"))


def labelled(true, false):
    return [example(line, " true" if line <= true else " false") for line in range(1, true + false + 1)]


@pytest.mark.parametrize(
    ("true", "false", "count", "expected"),
    [(10, 10, 6, (3, 3)), (10, 10, 5, (3, 2)), (10, 1, 6, (5, 1)), (1, 10, 6, (1, 5)), (10, 0, 6, (6, 0))],
)
def test_a_sample_is_balanced_where_it_can_be(true, false, count, expected):
    chosen = select(labelled(true, false), count, seed=1)
    assert (sum(one.label == " true" for one in chosen), sum(one.label == " false" for one in chosen)) == expected


def test_a_sample_is_seeded_and_keeps_the_order_of_the_file():
    examples = labelled(20, 20)
    lines = [one.line for one in select(examples, 10, seed=1)]
    assert lines == sorted(lines) == [one.line for one in select(examples, 10, seed=1)]
    assert lines != [one.line for one in select(examples, 10, seed=2)]
    assert select(examples, None, seed=1) == select(examples, 99, seed=1) == examples


def test_validation_is_held_out_and_rounded_down():
    training, validation = split(list(range(100)), 0.05, seed=1)
    assert len(validation) == 5
    assert sorted(training + validation) == list(range(100))
    assert split(list(range(8)), 0.01, seed=1)[1] == []


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
