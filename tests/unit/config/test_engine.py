"""The fake engine's faults: a section of their own, whose keys older recipes have without it."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from limrank.config import EngineConfig, FaultConfig, dump_config
from limrank.config.recipe import load_config, parse_config
from limrank.config.stages import pipeline_hash
from limrank.errors import UserError

FAULTS = {
    "latency_ms": 30.0,
    "fail_rate": 0.25,
    "poison": "arsenic",
    "own_process": True,
    "start_s": 0.5,
    "fail_start": True,
}
FLAT = {"kind": "fake"} | FAULTS
NESTED = {"kind": "fake", "fault": FAULTS}


@pytest.fixture
def recipe(tmp_path):
    def write(**engines):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"job": "rerank", "run_dir": str(tmp_path / "run")} | engines))
        return path

    return write


def test_both_spellings_are_one_engine(recipe):
    expected = FaultConfig(**FAULTS)
    assert EngineConfig(**FLAT) == EngineConfig(**NESTED) == EngineConfig(kind="fake", fault=expected)
    assert EngineConfig(**FLAT).fault == expected
    assert load_config(recipe(engine=FLAT)) == load_config(recipe(engine=NESTED))


def test_keys_may_stand_in_both_places():
    mixed = EngineConfig(kind="fake", latency_ms=30, fault={"fail_rate": 0.25})
    assert mixed.fault == FaultConfig(latency_ms=30, fail_rate=0.25)
    assert EngineConfig(kind="fake", latency_ms=30, fault=FaultConfig(fail_rate=0.25)) == mixed
    assert EngineConfig(kind="fake", fail_rate=0.25, fault={"fail_rate": 0.25}).fault.fail_rate == 0.25


def test_two_values_of_one_key_are_refused_by_both_names(recipe):
    with pytest.raises(ValueError, match=r"has fail_rate and fault\.fail_rate, two names of one key"):
        EngineConfig(kind="fake", fail_rate=0.1, fault={"fail_rate": 0.2})
    path = recipe(job="synthesize", judge_engine={"kind": "fake", "poison": "a", "fault": {"poison": "b"}})
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert str(refused.value) == (
        f"{path}: judge_engine: has poison and fault.poison, two names of one key, with different values"
    )


@pytest.mark.parametrize("written", [FLAT, NESTED])
@pytest.mark.parametrize("prefix", ["engine.", "engine.fault."])
def test_an_override_by_either_name_wins_over_a_recipe_by_either(recipe, written, prefix):
    config = load_config(recipe(engine=written), [f"{prefix}fail_rate=0.1", f"{prefix}poison=null"])
    assert config.engine.fault == FaultConfig(**FAULTS | {"fail_rate": 0.1, "poison": None})


@pytest.mark.parametrize("written", [FLAT, NESTED])
def test_an_override_of_the_section_replaces_it_in_either_spelling(recipe, written):
    assert load_config(recipe(engine=written), ["engine.fault={poison: b}"]).engine.fault == FaultConfig(poison="b")
    assert load_config(recipe(engine=written), ["engine.fault=null"]).engine.fault == FaultConfig()


@pytest.mark.parametrize("name", ["engine.poison", "engine.fault.poison", "engine"])
def test_the_text_of_a_poison_is_taken_as_it_stands(recipe, name):
    text = "{kind: fake, poison: 12}" if name == "engine" else "12"
    assert load_config(recipe(), [f"{name}={text}"]).engine.fault.poison == "12"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"fail_rate": 2}, "engine.fault.fail_rate: input should be less than or equal to 1 (got 2)"),
        ({"fault": "all"}, "engine.fault: should be a section of keys (got 'all')"),
        ({"fail_rate": 0.1, "fault": "all"}, "engine.fault: should be a section of keys (got 'all')"),
        ({"fail_rat": 0.1}, "engine.fail_rat: unknown key; did you mean engine.fault.fail_rate?"),
    ],
)
def test_a_wrong_value_is_one_line(recipe, engine, message):
    path = recipe(engine={"kind": "fake"} | engine)
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert str(refused.value) == f"{path}: {message}"


def test_a_hash_has_the_keys_where_they_were_before_there_was_a_section():
    expected = {
        "kind": "fake",
        "base_url": None,
        "api_key_env": "OPENAI_API_KEY",
        "request_timeout_s": 600.0,
        "startup_timeout_s": 1800.0,
        "max_in_flight": None,
        "gpu_memory_utilization": 0.9,
        "kv_cache_gib": 2,
        "enforce_eager": None,
    }
    assert EngineConfig(**FLAT).hashed() == EngineConfig(**NESTED).hashed() == expected | FAULTS
    without_latency = {key: value for key, value in FAULTS.items() if key != "latency_ms"}
    assert EngineConfig(**NESTED).hashed({"latency_ms"}) == expected | without_latency


def test_a_pipeline_s_hash_is_that_of_its_run_directories_so_far():
    """The hashes that limrank gave before engine.fault."""

    def hashed(engine):
        return pipeline_hash(parse_config({"job": "pipeline", "run_dir": "/run", "engine": engine}))

    assert hashed({"kind": "fake"}) == "7e5519223ff1f182"
    assert hashed(FLAT) == hashed(NESTED) == "9244f0745c51ea10"


def test_the_config_of_an_older_run_directory_loads(tmp_path):
    config = parse_config({"job": "rerank", "run_dir": str(tmp_path), "engine": NESTED})
    stored = yaml.safe_load(dump_config(config))
    assert stored["engine"].pop("fault") == FAULTS
    stored["engine"] |= FAULTS | {"poison": None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(stored))
    assert load_config(path).engine == EngineConfig(**FLAT | {"poison": None})
    assert parse_config(stored) == load_config(path)


@pytest.mark.parametrize("engine", [FLAT, NESTED])
def test_an_editor_s_schema_accepts_both(engine):
    schema = json.loads((Path(__file__).parents[3] / "jobs/recipes/schema/rerank.json").read_text())
    jsonschema.validate({"job": "rerank", "run_dir": "/run", "engine": engine}, schema)
