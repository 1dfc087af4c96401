"""What makes a step, how it is packed, and what is made smaller: numbers one can check by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from limrank.config import TrainJob
from limrank.training.batches import (
    epoch_steps,
    micro_batches,
    pack,
    packed_tokens,
    query_units,
    single_units,
    steps_per_epoch,
)
from limrank.training.examples import EncodedExample
from limrank.training.memory import largest_row
from limrank.training.objectives import summed_loss, weight


def example(ids, prompt_tokens, label=True, query="q"):
    return EncodedExample(1, np.asarray(ids, dtype=np.int32), prompt_tokens, label, (query,), truncated=False)


def labelled(*pairs):
    return [example([1, 2], 1, label, query) for query, label in pairs]


def taught(query, *scores):
    return [
        EncodedExample(1, np.asarray([1, 2], dtype=np.int32), 1, None, (query,), truncated=False, score=float(score))
        for score in scores
    ]


def test_an_epoch_holds_every_unit_once_in_a_seeded_order():
    units = [(index,) for index in range(10)]
    steps = epoch_steps(units, 4, seed=1, epoch=0)
    assert [len(step) for step in steps] == [4, 4, 2]
    assert len(steps) == steps_per_epoch(10, 4)
    assert sorted(sum(steps, [])) == units
    assert steps == epoch_steps(units, 4, seed=1, epoch=0)
    assert steps != epoch_steps(units, 4, seed=1, epoch=1) != epoch_steps(units, 4, seed=2, epoch=1)


def test_micro_batches_are_sorted_by_length_and_dealt_out():
    lengths = [5, 9, 1, 7, 3]
    step = [(index,) for index in range(5)]
    assert micro_batches(step, lengths, batch_size=2, rank=0, workers=1) == [[(1,), (3,)], [(0,), (4,)], [(2,)]]
    assert micro_batches(step, lengths, batch_size=2, rank=0, workers=2) == [[(1,), (3,)], [(2,)]]
    assert micro_batches(step, lengths, batch_size=2, rank=1, workers=2) == [[(0,), (4,)], []]
    # A query's examples stay together: 1 + 3 tokens, 5 + 7 and 9.
    step = [(2, 4), (0, 3), (1,)]
    assert micro_batches(step, lengths, batch_size=2, rank=0, workers=1) == [[(0, 3), (1,)], [(2, 4)]]


def test_units_are_examples_or_queries_with_both_labels():
    examples = labelled(("a", True), ("b", True), ("a", False), ("c", False), ("a", True))
    assert single_units(examples) == [(0,), (1,), (2,), (3,), (4,)]
    assert query_units(examples) == [(0, 2, 4)]


def test_a_row_holds_its_examples_one_after_another():
    thought, direct = example([11, 12, 13, 14, 15], 3), example([21, 22, 23], 2, label=False)
    row = pack([[thought], [direct]])
    assert row.input_ids.tolist() == [[11, 12, 13, 14, 15, 21, 22, 23]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert (row.segments, row.units, row.positive.tolist()) == (((5,), (3,)), (1, 1), [True, False])
    # The logits at 13 tell 14, at 14 tell 15, and at 22 tell 23.
    assert row.input_ids[0, row.kept].tolist() == [13, 14, 22]
    assert row.targets.tolist() == [14, 15, 23]


def test_what_a_query_s_prompts_share_is_in_the_row_once():
    alone, unit = example([9, 8], 1), [example([1, 2, 3, 4], 3), example([1, 2, 5, 6, 7], 4), example([1, 2, 3], 2)]
    row = pack([[alone], unit])
    # The last prompt has two tokens, and 3 is what it predicts: only the first token is shared.
    assert row.input_ids.tolist() == [[9, 8, 1, 2, 3, 4, 2, 5, 6, 7, 2, 3]]
    assert row.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 1, 2, 3, 4, 1, 2]]
    assert row.segments == ((2,), (1, 3, 4, 2))
    assert row.input_ids[0, row.kept].tolist() == [9, 3, 6, 2]
    assert row.targets.tolist() == [8, 4, 7, 3]
    # Passages of one text keep a token each, and prompts without a common beginning share nothing.
    assert pack([[example([1, 2, 3], 2), example([1, 2, 3], 2)]]).segments == ((1, 2, 2),)
    assert pack([[example([1, 2, 3], 2), example([4, 2, 3], 2)]]).segments == ((3,), (3,))


def test_memory_is_planned_for_what_a_row_holds():
    lists = [example([1, 2, 3, 30 + n, 40 + n, 50 + n, 9], 6, query="a") for n in range(3)]
    alike = [example(range(10), 9, query="b") for _ in range(3)]
    scored = [replace(each, score=float(n)) for n, each in enumerate([*lists, *alike])]
    training = {"train_file": "unread.jsonl", "target": "direct", "objective": "listnet", "batch_size": 1}
    row = largest_row(TrainJob(run_dir="unused", training=training), scored)
    # 3 that they share and 3 × 4. The other query has more in all, but shares 8: 8 and 3 × 2.
    assert (row.tokens, row.kept) == (15, 3)
    assert row.tokens == packed_tokens(lists) == pack([lists]).input_ids.shape[1]
    assert packed_tokens(alike) == pack([alike]).input_ids.shape[1] == 14


def test_units_of_a_teacher_are_queries_with_two_different_scores():
    examples = taught("a", 1, 2) + taught("b", 3) + taught("c", 4, 4) + taught("a", 1)
    assert query_units(examples, "score") == [(0, 1, 5)]


VOCABULARY, TRUE, FALSE = 6, 4, 5


def logits(*odds):
    """A row of logits an example, with these log-odds of true."""
    rows = torch.zeros(len(odds), VOCABULARY)
    rows[:, TRUE] = torch.tensor(odds)
    return rows


def loss(objective, units, rows):
    return summed_loss(objective, rows, pack(units), (TRUE, FALSE)).item()


def test_the_loss_of_labels_is_a_sum_over_tokens():
    units = [[example([1, 2, TRUE], 2)], [example([1, FALSE], 1, label=False)]]
    assert weight("label", units) == 2
    even = math.log(VOCABULARY)
    assert loss("label", units, logits(0.0, 0.0)) == pytest.approx(2 * even)
    sure = math.log(VOCABULARY - 1 + math.exp(3)) - 3
    assert loss("label", units, logits(3.0, 0.0)) == pytest.approx(even + sure)


def test_binary_is_normalized_over_the_two_labels():
    units = [labelled(("a", True)), labelled(("a", False)), labelled(("b", False))]
    assert weight("binary", units) == 3
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(0.5)) + math.log(2)
    rows = logits(2.0, 0.5, 0.0)
    rows[:, 0] = 9.0  # what else might come next has no say
    assert loss("binary", units, rows) == pytest.approx(expected)


def test_softmax_is_over_a_relevant_passage_and_those_that_are_not():
    a = labelled(("a", True), ("a", False), ("a", False))
    assert weight("softmax", [a]) == 1
    assert loss("softmax", [a], logits(0.0, 0.0, 0.0)) == pytest.approx(math.log(3))
    # Each of two relevant passages is compared only with the others: the mean of both.
    b = labelled(("b", True), ("b", False), ("b", True))
    expected = (math.log(1 + math.exp(1 - 2)) + math.log(1 + math.exp(1 - 0))) / 2
    assert loss("softmax", [b], logits(2.0, 1.0, 0.0)) == pytest.approx(expected)
    assert loss("softmax", [a, b], logits(0.0, 0.0, 0.0, 2.0, 1.0, 0.0)) == pytest.approx(math.log(3) + expected)


def test_ranknet_is_over_pairs():
    unit = labelled(("a", True), ("a", False), ("a", False))
    expected = (math.log(1 + math.exp(0.5 - 2)) + math.log(1 + math.exp(3 - 2))) / 2
    assert weight("ranknet", [unit, unit]) == 2
    assert loss("ranknet", [unit], logits(2.0, 0.5, 3.0)) == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["binary", "softmax", "ranknet"])
def test_an_order_s_gradient_lifts_the_relevant_passage(objective):
    units = [labelled(("a", False), ("a", True))]
    rows = logits(1.0, 0.0).requires_grad_()
    summed_loss(objective, rows, pack(units), (TRUE, FALSE)).backward()
    assert rows.grad[1, TRUE] < 0 < rows.grad[0, TRUE]
    assert not rows.grad[:, :TRUE].any()


def test_margin_mse_is_over_pairs_with_different_scores():
    a, b = taught("a", 3, 1, 1), taught("b", 0, 2)
    assert weight("margin_mse", [a, b]) == 2
    # 3 against each 1: the margins should be 2. The two 1s are no pair.
    expected = ((2 - 1.5) ** 2 + (2 - 0.0) ** 2) / 2
    assert loss("margin_mse", [a], logits(2.0, 0.5, 2.0)) == pytest.approx(expected)
    assert loss("margin_mse", [a, b], logits(2.0, 0.5, 2.0, 1.0, 1.0)) == pytest.approx(expected + 4)
    assert loss("margin_mse", [a], logits(5.0, 3.0, 3.0)) == pytest.approx(0)


def test_listnet_is_the_cross_entropy_of_two_softmaxes():
    a = taught("a", math.log(3), 0)
    assert weight("listnet", [a, a]) == 2
    p = math.exp(2) / (math.exp(2) + 1)
    assert loss("listnet", [a], logits(2.0, 0.0)) == pytest.approx(-(0.75 * math.log(p) + 0.25 * math.log(1 - p)))
    b = taught("b", 1, 1, 7)
    assert loss("listnet", [b], logits(0.0, 0.0, 0.0)) == pytest.approx(math.log(3))
    assert loss("listnet", [a, b], logits(2.0, 0.0, 0.0, 0.0, 0.0)) == pytest.approx(
        loss("listnet", [a], logits(2.0, 0.0)) + math.log(3)
    )


def gradient(objective, units, *odds):
    """The gradient by each log-odds."""
    rows = logits(*odds).requires_grad_()
    summed_loss(objective, rows, pack(units), (TRUE, FALSE)).backward()
    assert torch.equal(rows.grad[:, TRUE], -rows.grad[:, FALSE]) and not rows.grad[:, :TRUE].any()
    return rows.grad[:, TRUE]


def test_gradients_of_a_teacher_s_objectives():
    scores, odds = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([1.0, 0.5, -1.0])
    units = [taught("a", *scores.tolist())]
    # listnet: softmax of the model − softmax of the teacher.
    found = gradient("listnet", units, *odds.tolist())
    torch.testing.assert_close(found, odds.softmax(0) - scores.softmax(0))
    # margin_mse over all n (n − 1) / 2 pairs: 4 / (n − 1) × (error − mean error).
    error = odds - scores
    torch.testing.assert_close(gradient("margin_mse", units, *odds.tolist()), 4 / 2 * (error - error.mean()))


@pytest.mark.parametrize("objective", ["margin_mse", "listnet"])
def test_only_differences_of_scores_count(objective):
    odds = (0.5, 2.0, -1.0)
    found = loss(objective, [taught("a", 1, 2, 4)], logits(*odds))
    assert found == pytest.approx(loss(objective, [taught("a", 101, 102, 104)], logits(*odds)), rel=1e-5)
    assert found == pytest.approx(
        loss(objective, [taught("a", 1, 2, 4)], logits(*(each + 7 for each in odds))), rel=1e-5
    )


@pytest.mark.parametrize("objective", ["margin_mse", "listnet"])
def test_a_row_of_many_lists_has_the_sum_of_their_losses_and_gradients(objective):
    lists = [taught("a", 0, 2, 1), taught("b", 5, 3), taught("c", 1, 1, 1, 9)]
    odds = [[0.1, -2.0, 0.7], [1.0, 1.5], [0.3, 0.2, 4.0, -1.0]]
    together = [each for one in odds for each in one]
    alone = sum(loss(objective, [unit], logits(*one)) for unit, one in zip(lists, odds, strict=True))
    assert loss(objective, lists, logits(*together)) == pytest.approx(alone, rel=1e-5)
    parts = [gradient(objective, [unit], *one) for unit, one in zip(lists, odds, strict=True)]
    torch.testing.assert_close(gradient(objective, lists, *together), torch.cat(parts))


def test_a_row_carries_scores_and_not_labels_that_there_are_not():
    row = pack([taught("a", 0.25, 3), labelled(("b", True))])
    assert row.scores.tolist()[:2] == [0.25, 3] and row.scores[2].isnan()
    assert row.positive.tolist() == [False, False, True]
