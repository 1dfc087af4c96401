"""`kill -9` of each part of a rerank job with the fake engine, at any moment of it.

The job itself gets over the loss of an engine, an actor and a node; a killed driver's
command is given again. Either way every pair is there once, with the score that an
undisturbed run gives it, and no process is left.
"""

import random

import pytest

from helpers.killing import SEED, VICTIMS, Moment, moments, survive
from helpers.runs import chunk_units

KILLS = 10


@pytest.mark.parametrize("victim", VICTIMS)
def test_the_job_survives_a_kill(victim, work, undisturbed, place, tmp_path, note_repeated):
    moment = random.Random(f"{SEED} once {victim}")
    moment = Moment(moment.randint(1, len(chunk_units(undisturbed[0])) // 2), moment.uniform(0, 0.3))
    survive(work, victim, moment, tmp_path, undisturbed[1], note_repeated, cluster=place(victim))


@pytest.mark.faults
def test_a_pool_that_the_nodes_left_cannot_hold_goes_on(work, undisturbed, cluster, tmp_path, note_repeated):
    """Three engines, and after the kill two nodes with room for one each: the lost one's
    chunks wait until another engine has nothing left to do."""
    survive(work, "raylet", Moment(4, 0.1), tmp_path, undisturbed[1], note_repeated, cluster=cluster, replicas=3)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize("victim", VICTIMS)
def test_the_job_survives_a_kill_at_any_moment(victim, number, work, undisturbed, place, tmp_path, note_repeated):
    moment = moments(victim, KILLS, len(chunk_units(undisturbed[0])))[number]
    survive(work, victim, moment, tmp_path, undisturbed[1], note_repeated, cluster=place(victim))
