"""A synthesize job with the fake engine whose command is killed twice, and given again."""

import json
import os
import random
import sys
from collections import Counter

import pytest
import yaml

from helpers.killing import SEED
from helpers.rundirs import rows_of
from helpers.runs import Run, committed, wait_until


@pytest.mark.parametrize("seeds", [2_000, pytest.param(100_000, marks=pytest.mark.faults)])
def test_every_seed_is_there_once_after_two_kills(seeds, tmp_path):
    command, run_dir = _command(tmp_path, seeds)
    draw = random.Random(f"{SEED} synthesis")
    # The first third and the second third of the chunks: something is done, something is left.
    shares = [draw.uniform(0.05, 0.35), draw.uniform(0.4, 0.7)]
    print(f"LIMRANK_FAULT_SEED={SEED}: killed at {shares} of the chunks of {run_dir}")
    before = {}
    for number, share in enumerate(shares):
        with Run(command, log=tmp_path / f"killed-{number}.log") as run:
            wait_until(
                lambda run=run, share=share: run.ended() or _done(run_dir) >= share, "some chunks", patience_s=3600
            )
            assert not run.ended(), run.log.read_text()[-3000:]
            os.kill(run.process.pid, 9)
            run.wait()
            assert run.engines_left() == []
            run.leave()
        after = committed(run_dir)
        assert {name: after[name] for name in before} == before
        before = after
    with Run(command, log=tmp_path / "again.log") as run:
        assert run.wait(patience_s=3600) == 0, run.log.read_text()[-3000:]
        assert run.left() == []
    after = committed(run_dir)
    assert {name: after[name] for name in before} == before, "a committed chunk was written again"
    planned = {f"s{number}" for number in range(seeds)}
    examples = Counter(row["example_id"] for row in rows_of(run_dir))
    assert set(examples.values()) == {1}
    assert Counter(row["seed_id"] for row in rows_of(run_dir)).keys() == planned
    stats = json.loads((run_dir / "stats.json").read_text())
    assert (stats["seeds"], stats["examples"]) == (seeds, len(examples))
    assert stats["failed"] == 0


def _done(run_dir):
    """Share of the chunks that are committed."""
    plan = run_dir / "plan.json"
    return len(committed(run_dir)) / len(json.loads(plan.read_text())["chunks"]) if plan.exists() else 0.0


def _command(folder, count):
    seeds = folder / "seeds.jsonl"
    with seeds.open("w") as file:
        for number in range(count):
            seed = {"id": f"s{number}", "query": f"how does thing {number} work", "passage": f"Thing {number} works."}
            file.write(json.dumps(seed) + "\n")
    run_dir, recipe = folder / "run", folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "job": "synthesize",
                "run_dir": str(run_dir),
                "engine": {"kind": "fake"},
                "synthesis": {"seeds": str(seeds), "kinds": ["daily"], "agreement": "ranking", "near_duplicate": 1.0},
            }
        )
    )
    return [sys.executable, "-m", "limrank", "synthesize", str(recipe), "--address", "local"], run_dir
