import json

import pytest

from helpers.synthesis import SEEDS
from limrank.config import EngineConfig, SynthesisConfig, SynthesizeJob


@pytest.fixture
def config(tmp_path):
    seeds = [{"id": each.seed_id, "query": each.query, "passage": each.passage} for each in SEEDS]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(each) + "\n" for each in seeds))
    return SynthesizeJob(
        run_dir=str(tmp_path / "run"),
        engine=EngineConfig(kind="fake"),
        synthesis=SynthesisConfig(seeds=str(tmp_path / "seeds.jsonl"), judge_tokens=16, license="CC0"),
    )
