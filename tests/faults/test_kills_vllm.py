"""`kill -9` of each part of a rerank job with the real engine, once each."""

import random
import subprocess

import pytest

from helpers.beir import write_common
from helpers.killing import SEED, VICTIMS, Moment, survive
from helpers.runs import Work, scores

pytestmark = pytest.mark.faults

WORDS = ("of", "vitamin", "D", "and", "the", "risk", "of", "hip", "fractures", "in", "older", "adults")


@pytest.fixture(scope="module")
def vllm_work(model_dir, tmp_path_factory):
    """192 short pairs; few at a time, so that the chunks end one by one."""
    beir = write_common(tmp_path_factory.mktemp("data") / "beir", queries=192, documents=3, words=WORDS)
    vllm = {"kind": "vllm", "kv_cache_gib": 1, "max_in_flight": 8}
    return Work(beir, queries=192, depth=1, engine=vllm, model={"max_model_len": 512})


@pytest.fixture(scope="module")
def vllm_undisturbed(vllm_work, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed-vllm") / "run"
    done = subprocess.run(vllm_work.command(run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return scores(vllm_work, run_dir)


@pytest.mark.parametrize("victim", VICTIMS)
def test_the_job_survives_a_kill_with_vllm(victim, vllm_work, vllm_undisturbed, place, tmp_path, note_repeated):
    moment = Moment(1, random.Random(f"{SEED} vLLM {victim}").uniform(0, 2))
    survive(vllm_work, victim, moment, tmp_path, vllm_undisturbed, note_repeated, cluster=place(victim), tolerance=1e-3)
