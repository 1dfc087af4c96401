"""A real group of three processes (gloo), as Ray Train makes them of its workers."""

import time
from functools import partial

import numpy as np
import pytest
import torch
from torch import distributed

from helpers.tiny_model import make_tiny
from limrank.config import TrainingConfig
from limrank.errors import LimrankError, UserError
from limrank.training.examples import EncodedExample
from limrank.training.loop import train
from limrank.training.model import load_for_training
from limrank.training.processes import gathered, in_turn, process
from limrank.training.state import TrainState

# (turn, turns) by rank: the first two are on one node, the third on another.
TURNS = ((0, 2), (1, 2), (0, 1))
SECONDS = 0.3


def member(rank, folder, task):
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=len(TURNS))
    try:
        torch.save(task(rank), f"{folder}/{rank}")
        gathered(None)  # a process waits for the others' last request
    finally:
        distributed.destroy_process_group()


def together(folder, task):
    """The task's result in each process."""
    torch.multiprocessing.spawn(member, (str(folder), task), nprocs=len(TURNS))
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(len(TURNS))]


def timed(turns, rank):
    def work():
        began = time.monotonic()
        time.sleep(SECONDS)
        return began, time.monotonic()

    return process(), in_turn(work, *(TURNS[rank] if turns else (0, 1)))


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1]


def test_a_node_s_processes_work_one_after_another_and_nodes_side_by_side(tmp_path):
    members, (first, second, remote) = zip(*together(tmp_path, partial(timed, True)), strict=True)
    assert members == ((0, 3), (1, 3), (2, 3))
    assert not overlap(first, second)
    assert overlap(first, remote)


def test_without_turns_they_work_at_once(tmp_path):
    _, spans = zip(*together(tmp_path, partial(timed, False)), strict=True)
    assert overlap(spans[0], spans[1]) and overlap(spans[1], spans[2])


def failing(who, rank):
    def work():
        if rank in who:
            raise UserError(f"no model on {rank}")
        return rank

    try:
        return in_turn(work, *TURNS[rank])
    except LimrankError as error:
        return str(error)


@pytest.mark.parametrize(
    ("who", "message"), [({1}, "no model on 1"), ({1, 2}, "no model on 2"), ({0, 1}, "no model on 0")]
)
def test_the_error_of_one_is_raised_by_all(tmp_path, who, message):
    assert together(tmp_path, partial(failing, who)) == [message] * 3


BROKEN = 9
"""A token whose embedding is no number."""


def diverging(model_dir, rank):
    training = TrainingConfig(method="full", target="direct", epochs=1, batch_size=1, gradient_accumulation=1)
    model, _ = load_for_training(model_dir, training, torch.float32)
    model.get_input_embeddings().weight.data[BROKEN] = float("nan")
    examples = [
        EncodedExample(line, np.asarray([5, token, 2629], dtype=np.int32), 2, True, (str(line),), truncated=False)
        for line, token in ((1, 6), (2, BROKEN), (3, 7))
    ]
    try:
        train(TrainState(model, training, 1), examples, training, seed=1, labels=(2629, 7065))
    except LimrankError as error:
        return str(error)


def test_a_loss_that_is_not_finite_in_one_process_is_raised_by_all(tmp_path):
    """With only its line: those of the other two processes were sound."""
    model_dir = make_tiny(tmp_path / "model", tied=False)
    errors = together(tmp_path, partial(diverging, model_dir))
    assert errors[0].startswith("training stopped at step 1: the loss is nan (lines 2 of the training file)")
    assert errors[0] == errors[1] == errors[2]
