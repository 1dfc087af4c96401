import pytest
import yaml

from limrank.config import (
    RERANKER,
    ModelConfig,
    RerankJob,
    ScoringConfig,
    ServeJob,
    SynthesisConfig,
    TrainingConfig,
    config_hash,
    dump_config,
    is_uri,
)
from limrank.config.recipe import input_paths, load_config, parse_config, path_values, with_values
from limrank.errors import UserError


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe's text into an empty working directory and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        return "r.yaml"

    return write


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


RERANK = "job: rerank\nrun_dir: out\n"


def test_a_recipe_and_its_defaults(recipe):
    config = load_config(recipe(RERANK + "first_stage: {depth: 7}\n"))
    assert isinstance(config, RerankJob)
    assert (config.first_stage.depth, config.first_stage.kind, config.seed) == (7, "bm25", 12345)


def test_a_recipe_without_job_is_the_command_s(recipe):
    assert load_config(recipe("run_dir: out\n"), job="rerank").job == "rerank"
    assert "job: None is none of synthesize, train, rerank" in refusal(recipe("run_dir: out\n"))


def test_missing_file_and_folder(recipe, tmp_path):
    assert refusal("nowhere.yaml") == "nowhere.yaml: no such recipe"
    assert refusal(tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_unknown_key_names_the_nearest(recipe):
    message = refusal(recipe(RERANK + "first_stage:\n  deph: 7\n"))
    assert message == "r.yaml: first_stage.deph: unknown key; did you mean first_stage.depth?"


def test_unknown_section_that_is_near_nothing(recipe):
    assert refusal(recipe(RERANK + "zzzz: 1\n")) == "r.yaml: zzzz: unknown key"


def test_wrong_type_names_key_and_value(recipe):
    message = refusal(recipe(RERANK + "first_stage: {depth: deep}\n"))
    assert message.startswith("r.yaml: first_stage.depth: input should be a valid integer")
    assert message.endswith("(got 'deep')")


def test_a_union_is_one_fault_under_the_recipe_s_key(recipe):
    message = refusal(recipe("job: synthesize\nrun_dir: out\nsynthesis: {seeds: 5}\n"))
    assert message == "r.yaml: synthesis.seeds: input should be a valid string (got 5)"


def test_out_of_range_and_how_many_more(recipe):
    message = refusal(recipe(RERANK + "first_stage: {depth: 0, b: 2}\n"))
    assert message == "r.yaml: first_stage.depth: input should be greater than 0 (got 0) (and 1 more)"


def test_bad_yaml_names_the_line(recipe):
    assert refusal(recipe("job: rerank\nrun_dir: a: b\nseed: 1\n")) == (
        "r.yaml:2: not YAML: mapping values are not allowed here"
    )


@pytest.mark.parametrize("text", ["- job: rerank\n", "rerank\n", ""])
def test_what_is_no_mapping(recipe, text):
    assert refusal(recipe(text)) == "r.yaml: a recipe is a mapping of keys to values"


def test_another_job_s_recipe(recipe):
    message = refusal(recipe(RERANK), job="train")
    assert message == "r.yaml: job: this recipe is for `limrank rerank`, not `limrank train`"


@pytest.mark.parametrize("job", ["[rerank]", "3", "bogus", "{a: 1}"])
def test_a_job_that_is_none(recipe, job):
    assert "is none of synthesize, train, rerank" in refusal(recipe(f"job: {job}\nrun_dir: out\n"))


def test_an_override_of_the_job_is_checked_like_the_recipe_s(recipe):
    assert "job: 'bogus' is none of" in refusal(recipe(RERANK), ["job=bogus"])
    assert "this recipe is for `limrank train`" in refusal(recipe(RERANK), ["job=train"], job="rerank")
    assert load_config(recipe(RERANK), ["job=null"], job="rerank").job == "rerank"


def test_overrides_are_yaml_and_the_last_one_holds(recipe):
    overrides = ["first_stage.depth=3", "first_stage.depth=4", "allow_failures=true", "engine.kind=fake"]
    config = load_config(recipe(RERANK), overrides)
    assert (config.first_stage.depth, config.allow_failures, config.engine.kind) == (4, True, "fake")


def test_an_override_may_hold_equals_signs_and_lists(recipe):
    config = load_config(recipe("job: synthesize\nrun_dir: out\n"), ["model.id=a=b", "synthesis.kinds=[daily]"])
    assert (config.model.id, config.synthesis.kinds) == ("a=b", ("daily",))


def test_null_unsets_a_key_and_a_section(recipe):
    name = recipe(RERANK + "first_stage: {depth: 7, k1: 2.0}\ndata: {max_queries: 3}\n")
    config = load_config(name, ["first_stage.depth=null", "data=null"])
    assert (config.first_stage.depth, config.first_stage.k1, config.data.max_queries) == (100, 2.0, None)


def test_null_and_an_empty_section_in_the_recipe_are_the_defaults(recipe):
    config = load_config(recipe("job:\nrun_dir: out\ndata:\nfirst_stage: {depth: null, b: 0.5}\n"), job="rerank")
    assert (config.data.format, config.first_stage.depth, config.first_stage.b) == ("pydocs", 100, 0.5)


def test_a_value_where_a_section_should_be(recipe):
    assert refusal(recipe(RERANK + "model: gpt\n")) == "r.yaml: model: should be a section of keys (got 'gpt')"


@pytest.mark.parametrize("override", ["depth", "=3", " =3"])
def test_override_without_key_or_value(recipe, override):
    assert refusal(recipe(RERANK), [override]) == f"-s {override}: should be key=value"


def test_override_below_what_is_no_section(recipe):
    assert refusal(recipe(RERANK + "seed: 1\n"), ["seed.low=3"]) == "-s seed.low=3: seed is not a section"
    assert refusal(recipe(RERANK), ["seed=["]) == "-s seed=[: the value is not YAML"
    assert "first_stage.dept: unknown key; did you mean first_stage.depth?" in refusal(
        recipe(RERANK), ["first_stage.dept=3"]
    )


def test_what_depends_on_another_key(recipe):
    assert refusal(recipe(RERANK + "data: {format: beir}\n")) == "r.yaml: data.path is needed for data.format=beir"
    assert "first_stage.path is needed" in refusal(recipe(RERANK + "first_stage: {kind: run}\n"))
    assert "engine.base_url is needed" in refusal(recipe(RERANK + "engine: {kind: openai}\n"))
    assert refusal(recipe("job: rerank\n")) == "r.yaml: run_dir: is needed"
    no_negatives = "job: synthesize\nrun_dir: out\nsynthesis: {agreement: ranking, negatives: 0}\n"
    assert "synthesis.agreement=ranking compares with negatives" in refusal(recipe(no_negatives))
    assert SynthesisConfig(agreement="ranking", negatives=0, mined_negatives=1)
    of_what = "job: synthesize\nrun_dir: out\nsynthesis: {oversample: 2}\n"
    assert "synthesis.oversample is times synthesis.size, which is not set" in refusal(recipe(of_what))
    less = "job: synthesize\nrun_dir: out\nsynthesis: {size: 10, oversample: 0.5}\n"
    assert "synthesis.oversample: input should be greater than or equal to 1" in refusal(recipe(less))
    no_scores = "job: synthesize\nrun_dir: out\nsynthesis: {agreement: ranking, judge_by: answer}\n"
    for share in ("difficulties: {direct: .inf}", "domains: {' ': 1}"):
        assert refusal(recipe(f"job: synthesize\nrun_dir: out\nsynthesis: {{{share}}}\n"))
    assert "synthesis.agreement=ranking needs probabilities" in refusal(recipe(no_scores))
    train = "job: train\nrun_dir: out\ntraining: "
    assert "training.target=direct" in refusal(recipe(train + "{objective: softmax, target: think}\n"))
    for objective in ("margin_mse", "listnet"):
        assert "training.target=direct" in refusal(recipe(train + f"{{objective: {objective}}}\n"))
    for key in ("teacher_temperature", "list_size"):
        assert f"training.{key} belongs to a teacher's scores" in refusal(recipe(train + f"{{{key}: 2}}\n"))
    taught = train + "{objective: listnet, target: direct, "
    for value in ("0", "-1", ".nan", ".inf", "many", "true"):
        assert "training.teacher_temperature" in refusal(recipe(taught + f"teacher_temperature: {value}}}\n"))
    for value in ("1", "0", "2.5", "all"):
        assert "training.list_size: " in refusal(recipe(taught + f"list_size: {value}}}\n"))
    writer = "training: {task: writer, train_file: t.jsonl"
    for key, value in (("objective", "softmax"), ("target", "direct"), ("target", "mixed"), ("objective", "listnet")):
        refused = refusal(recipe(f"job: train\nrun_dir: out\n{writer}, {key}: {value}}}\n"))
        assert f"training.{key}={value} is of a reranker: training.task=writer learns queries: unset it" in refused
    for key in ("teacher_temperature", "list_size"):
        assert f"training.{key} belongs to" in refusal(recipe(f"job: train\nrun_dir: out\n{writer}, {key}: 2}}\n"))
    dev = "dev: {data: {format: pydocs, split: dev}}\n"
    assert "training.task=writer does not rerank" in refusal(recipe(f"job: train\nrun_dir: out\n{writer}}}\n{dev}"))
    assert "a pipeline trains a reranker" in refusal(recipe("job: pipeline\nrun_dir: out\ntraining: {task: writer}\n"))
    for value in ("judge", "1", "''"):
        assert "training.task" in refusal(recipe(train + f"{{task: {value}, train_file: t.jsonl}}\n"))
    assert "names layers for an adapter" in refusal(recipe(train + "{method: full, lora_targets: [q_proj]}\n"))
    assert "belongs to an adapter" in refusal(recipe(train + "{method: full, lora_embeddings: all}\n"))
    assert "learning_rate" in refusal(recipe(train + "{train_file: t.jsonl, learning_rate: .inf}\n"))
    board = "job: train\nrun_dir: s3://bucket/run\ntraining: {train_file: t.jsonl, tensorboard: true}\n"
    assert "need a local run_dir, which s3://bucket/run is not" in refusal(recipe(board))
    assert "data.revision is of a data set on the hub: data.format=pydocs has none" in refusal(
        recipe(RERANK + "data: {revision: mteb}\n")
    )
    local = RERANK + "data: {format: hub, name: litsearch, path: there, revision: mteb}\n"
    assert "data.path is read in its place: unset one" in refusal(recipe(local))
    rewritten = "data: {format: hub, name: bright/pony, first_stage_queries: gpt4_reason}\n"
    assert "first_stage.kind=published does not do: unset one" in refusal(
        recipe(RERANK + rewritten + "first_stage: {kind: published}\n")
    )
    assert "dev.data.first_stage_queries is what BM25 is asked" in refusal(
        recipe(train + f"{{train_file: t.jsonl}}\ndev: {{first_stage: {{kind: published}}, {rewritten.strip()}}}\n")
    )
    pairs = RERANK + "data: {format: pairs, path: p.parquet, first_stage_queries: q.jsonl}\n"
    assert "pairs have no first stage to ask" in refusal(recipe(pairs))


def test_paths_are_absolute_from_where_the_command_is_given(recipe, tmp_path):
    config = load_config(recipe(RERANK + "data: {format: beir, path: ../data}\n"))
    assert config.run_dir == str(tmp_path / "out")
    assert config.data.path == str(tmp_path.parent / "data")
    assert path_values(config) == {"run_dir": config.run_dir, "data.path": config.data.path}


def test_home_and_object_stores(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(recipe("job: rerank\nrun_dir: ~/out\n")).run_dir == "/home/someone/out"
    config = load_config(recipe("job: rerank\nrun_dir: s3://bucket/out\n"))
    assert config.run_dir == "s3://bucket/out"
    assert (is_uri("s3://bucket/out"), is_uri("/s3/out")) == (True, False)


def test_data_in_an_object_store_stays_as_it_is(recipe):
    path = "s3://bucket/pairs?endpoint_override=host:9000&scheme=http"
    config = load_config(recipe(f'job: rerank\nrun_dir: out\ndata: {{format: pairs, path: "{path}"}}\n'))
    assert config.data.path == path
    assert "data.path" not in path_values(config)


def test_credentials_are_no_part_of_a_path(recipe):
    with pytest.raises(UserError, match="holds credentials .*; put them into the environment") as raised:
        load_config(recipe("job: rerank\nrun_dir: s3://key:secret@bucket/out\n"))
    assert "secret" not in str(raised.value)
    assert load_config(recipe("job: rerank\nrun_dir: s3://bucket/me@home\n")).run_dir == "s3://bucket/me@home"


@pytest.mark.parametrize("job", ["evaluate", "pipeline"])
def test_pairs_are_refused_where_judgements_are_needed(recipe, job):
    with pytest.raises(UserError, match="data.format: pairs carry no judgements, which this job needs"):
        load_config(recipe(f"job: {job}\nrun_dir: out\ndata: {{format: pairs, path: p.parquet}}\n"))


def test_a_model_that_is_a_directory_is_absolute_and_a_name_is_not(recipe, tmp_path):
    (tmp_path / "tuned").mkdir()
    assert load_config(recipe(RERANK), ["model.id=tuned"]).model.id == str(tmp_path / "tuned")
    assert load_config(recipe(RERANK), ["model.id=owner/tuned"]).model.id == "owner/tuned"
    synthesize = recipe("job: synthesize\nrun_dir: out\n")
    assert load_config(synthesize, ["synthesis.embedder=tuned"]).synthesis.embedder == str(tmp_path / "tuned")
    assert load_config(synthesize, ["synthesis.embedder=owner/tuned"]).synthesis.embedder == "owner/tuned"
    assert load_config(synthesize).synthesis.embedder is None


def test_a_prompt_that_is_a_file_is_absolute_and_a_name_is_not(recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("{{ query }} {{ passage }}")
    assert load_config(recipe(RERANK), ["scoring.prompt=mine.txt"]).scoring.prompt == str(tmp_path / "mine.txt")
    assert load_config(recipe(RERANK)).scoring.prompt == "relevance"


def test_pydocs_is_a_word_for_seeds_and_a_path_for_other_keys(recipe, tmp_path):
    config = load_config(recipe("job: synthesize\nrun_dir: pydocs\n"))
    assert config.synthesis.seeds == "pydocs"
    assert config.run_dir == str(tmp_path / "pydocs")


def test_rewritten_queries_are_a_word_or_a_path(recipe, tmp_path):
    hub = RERANK + "data: {format: hub, name: bright/pony}\n"
    config = load_config(recipe(hub), ["data.first_stage_queries=gpt4_reason"])
    assert config.data.first_stage_queries == "gpt4_reason"
    assert [key for key, _ in input_paths(config)] == []
    config = load_config(recipe(hub), ["data.first_stage_queries=../mine.jsonl"])
    assert config.data.first_stage_queries == str(tmp_path.parent / "mine.jsonl")
    assert input_paths(config) == [("data.first_stage_queries", str(tmp_path.parent / "mine.jsonl"))]


def test_a_dumped_config_is_the_same_recipe(recipe):
    config = load_config(recipe(RERANK + "engine: {kind: fake}\nscoring: {mode: think}\n"))
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_with_values_changes_a_copy(recipe):
    config = load_config(recipe(RERANK))
    assert with_values(config, {"first_stage.depth": 2}).first_stage.depth == 2
    assert config.first_stage.depth == 100


def test_hash_does_not_depend_on_the_order_of_keys_and_is_stable_for_ever():
    assert config_hash({"a": 1, "b": ["x", None]}) == config_hash({"b": ["x", None], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    # sha256 of the text {"a": 1}, its first 16 digits.
    assert config_hash({"a": 1}) == "f9d86028c6e0d64e"


def test_keys_of_mining_that_came_later_change_no_hash_at_their_default():
    """A pipeline that an earlier limrank began can be resumed."""
    from limrank.config.stages import pipeline_hash

    def hashed(**synthesis):
        given = {"job": "pipeline", "run_dir": "/run", "synthesis": {"source": "passages", **synthesis}}
        return pipeline_hash(parse_config(given))

    teacher = {"kind": "embedder", "model": "all-minilm-l6-v2"}
    assert hashed(teacher=teacher) == "eafa4931583f7ea0"
    assert hashed(teacher=teacher, round_trip={"k": 3}) == "bf62643bf5c01007"
    assert hashed(round_trip={"retriever": "none"}) == "089aaa899c8779a7"
    changed = [
        hashed(teacher=teacher | {"bm25_weight": 0.2}),
        hashed(teacher=teacher | {"passage_first": True}),
        hashed(teacher=teacher, round_trip={"filter": False}),
    ]
    assert len({hashed(teacher=teacher), *changed}) == 4


@pytest.mark.parametrize(
    ("mode", "longest", "tokens"),
    [("none", None, 0), ("direct", 50, 0), ("think", None, 8192), ("budget", None, 256), ("budget", 32, 32)],
)
def test_think_tokens(mode, longest, tokens):
    assert ScoringConfig(mode=mode, max_think_tokens=longest).think_tokens == tokens


SYNTHESIZE = "job: synthesize\nrun_dir: out\n"


def test_a_judge_of_the_writer_s_model_is_the_same_engine(recipe):
    path = recipe(
        SYNTHESIZE + "model: {id: some/model, max_model_len: 2048, dtype: float32}\n"
        "judge: {id: some/model}\nreranker: {id: some/model, dtype: bfloat16}\n"
    )
    config = load_config(path)
    assert config.judge == config.model and config.roles()["judge"] == config.roles()["writer"]
    assert (config.reranker.max_model_len, config.reranker.dtype) == (2048, "bfloat16")
    other = load_config(path, overrides=["judge.id=another/model"])
    assert other.judge.max_model_len is None
    longer = load_config(recipe(SYNTHESIZE + "model: {id: some/model}\njudge: {max_model_len: 4096}\n"))
    assert (longer.judge.id, longer.judge.max_model_len) == ("some/model", 4096)
    assert "model" in refusal(recipe(SYNTHESIZE + "model: some/model\njudge: {id: some/model}\n"))


def test_a_reranker_s_engine_needs_a_reranker(recipe):
    message = refusal(recipe(SYNTHESIZE + "reranker_engine: {kind: fake}\n"))
    assert "need a model: reranker.id" in message


def test_a_pool_of_no_model_of_its_own_is_refused(recipe):
    message = refusal(recipe(SYNTHESIZE + "judge_workers: {replicas: 2}\n"))
    assert "judge_workers: the judge is the writer's own model" in message
    load_config(recipe(SYNTHESIZE + "judge: {id: another/model}\njudge_workers: {replicas: 2}\n"))


# ---- values of -s --------------------------------------------------------------------

VERBATIM = [
    "my data #1",
    "2024",
    "a: b",
    "[draft]",
    "{x}",
    "@x",
    "*x",
    "yes",
    "1e3",
    "0123",
    "'quoted'",
    "a\tb",
    "%x",
    "- a",
]


@pytest.mark.parametrize("text", [*VERBATIM, " x ", "2001-12-14", "!!int abc", "[", "Null"])
def test_an_override_s_text_is_taken_as_it_stands(recipe, tmp_path, text):
    overrides = ["data.format=beir", f"data.path={text}", f"data.split={text}", f"model.id={text}"]
    config = load_config(recipe(RERANK), overrides)
    assert (config.data.path, config.data.split, config.model.id) == (f"{tmp_path}/{text}", text, text)


def test_an_override_s_prompt_is_taken_as_it_stands(recipe):
    prompt = "{{ query }}: is it answered?\n# by {{ passage }}"
    assert load_config(recipe(RERANK), [f"scoring.prompt={prompt}"]).scoring.prompt == prompt


def test_the_home_directory_is_a_path_and_null_is_none(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_config(recipe(RERANK), ["data.path=~"]).data.path == "/home/someone"
    assert load_config(recipe(RERANK + "data: {path: there}\n"), ["data.path=null"]).data.path is None


def test_the_texts_of_an_override_that_is_a_list_or_a_section(recipe, tmp_path):
    synthesize = recipe("job: synthesize\nrun_dir: out\n")
    config = load_config(synthesize, ["synthesis.decontaminate=[2024, 0123, a]", "synthesis.domains={2024: 1, yes: 2}"])
    assert config.synthesis.decontaminate == tuple(f"{tmp_path}/{name}" for name in ("2024", "0123", "a"))
    assert config.synthesis.domains == {"2024": 1.0, "yes": 2.0}
    config = load_config(recipe(RERANK), ["data={format: beir, path: 2024, max_queries: 3, name: null}"])
    assert (config.data.path, config.data.max_queries) == (f"{tmp_path}/2024", 3)


@pytest.mark.parametrize("key", ["data.path", "run_dir", "first_stage.depth", "synthesis.kinds"])
def test_an_override_without_a_value(recipe, key):
    assert refusal(recipe(RERANK), [f"{key}="]) == f"-s {key}=: has no value; {key}=null unsets the key"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=true", "r.yaml: seed: should not be true"),
        ("seed=yes", "r.yaml: seed: should not be true"),
        ("seed=1.5", "r.yaml: seed: input should be a valid integer, got a number with a fractional part (got 1.5)"),
        ("seed=-1", "r.yaml: seed: input should be greater than or equal to 0 (got -1)"),
        (
            "seed=8:00",
            "r.yaml: seed: input should be a valid integer, unable to parse string as an integer (got '8:00')",
        ),
        ("seed=99999999999999999999", "r.yaml: seed: is too large a number"),
        ("seed=!!int abc", "-s seed=!!int abc: 'abc' is not of the tag !!int, or too large"),
        ("seed=&a [*a]", "-s seed=&a [*a]: more than 100 levels deep, or an alias within itself"),
        ("data={path: a, path: b}", "-s data={path: a, path: b}: the key 'path' is there twice"),
        ("first_stage.k1=.inf", "-s first_stage.k1=.inf: inf is not a finite number"),
        ("first_stage.k1=nan", "r.yaml: first_stage.k1: input should be a finite number (got 'nan')"),
        ("first_stage.k1=true", "r.yaml: first_stage.k1: should not be true"),
        ("workers.replicas=[true, 4]", "r.yaml: workers.replicas: should not be true"),
        ("data.path=\udc80", "-s data.path=\\udc80: not UTF-8 text"),
        ("data.path=a\0b", "r.yaml: data.path: holds a NUL or half a character, which is no text"),
        (
            "engine.startup_timeout_s=1e300",
            "r.yaml: engine.startup_timeout_s: input should be less than or equal to 31622400 (got '1e300')",
        ),
        (
            "engine.gpu_memory_utilization=0",
            "r.yaml: engine.gpu_memory_utilization: input should be greater than 0 (got 0)",
        ),
    ],
)
def test_values_that_no_key_takes(recipe, override, message):
    assert refusal(recipe(RERANK), [override]) == message


def test_long_values_are_not_shown_whole(recipe):
    for override in (
        f"data.path={'a' * 5000}",
        f"seed={'9' * 5000}",
        f"seed={'[' * 50_000}",
        f"scoring.mode={'x' * 200_000}",
        f"{'k' * 5000}=1",
        f"{'k' * 5000}",
        f"job={'x' * 5000}",
        f"data.path={'/a' * 3000}",
    ):
        assert len(refusal(recipe(RERANK), [override])) < 400
    assert (
        refusal(recipe(RERANK), [f"data.path={'a' * 300}"])
        == "r.yaml: data.path: is no path: a file's name has at most 255 bytes"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "r.yaml:4: the key 'seed' is there twice"),
        ("first_stage: {depth: 1, b: 1, depth: 2}\n", "r.yaml:3: the key 'depth' is there twice"),
        ("seed: true\n", "r.yaml: seed: should not be true"),
        (
            "seed: 2001-13-45\n",
            "r.yaml: seed: input should be a valid integer, unable to parse string as an integer (got '2001-13-45')",
        ),
        ("seed: !!int abc\n", "r.yaml:3: 'abc' is not of the tag !!int, or too large"),
        (
            "seed: !!python/name:os.system\n",
            "r.yaml:3: the tag 'tag:yaml.org,2002:python/name:os.system' is not known here",
        ),
        ("model: {id: ''}\n", "r.yaml: model.id: is empty; null unsets a key"),
        (
            "model: {id: yes}\n",
            "r.yaml: model.id: input should be a valid string (got True); in quotes it is taken as it is written",
        ),
        ("workers: {accelerator: ' '}\n", "r.yaml: workers.accelerator: is empty; null unsets a key"),
        (
            "engine: {api_key_env: sk-12}\n",
            "r.yaml: engine.api_key_env: should be the name of an environment variable (letters, digits and _)",
        ),
    ],
)
def test_values_of_a_recipe_that_no_key_takes(recipe, text, message):
    assert refusal(recipe(RERANK + text)) == message


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "host/v1", "ftp://host", "http://", "http:///v1", "http://h:99999", "http://h:x", "http://[::1"]
    + ["http://a b/v1", "http://h:0", "http://h/v1\n", "https//host", "//host"],
)
def test_an_endpoint_that_is_no_url(recipe, url):
    message = refusal(recipe(RERANK), ["engine.kind=openai", f"engine.base_url={url}"])
    assert message == "r.yaml: engine.base_url: should be http:// or https:// and a host, as in http://HOST:8000/v1"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://host", "http://[::1]:80/v1", "HTTP://host/v1?x=y"]
)
def test_an_endpoint(recipe, url):
    config = load_config(recipe(RERANK), ["engine.kind=openai", f"engine.base_url={url}"])
    assert config.engine.base_url == url


@pytest.mark.parametrize("host", ["' '", "a b", "localhost:80", "http://here", "[::1]", "-a", "a/b"])
def test_a_host_that_no_server_can_listen_on(recipe, host):
    message = refusal(recipe(f"job: serve\nrun_dir: out\nserving: {{host: {host!r}}}\n".replace('"', "")))
    assert message.startswith("r.yaml: serving.host: ")


def test_a_queue_without_a_place(recipe):
    message = refusal(recipe("job: serve\nrun_dir: out\nserving: {max_queued_requests: 0}\n"))
    assert message == "r.yaml: serving.max_queued_requests: should be above 0, or -1 for no limit"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "localhost", "node-1.example.org"])
def test_a_host(recipe, host):
    assert load_config(recipe("job: serve\nrun_dir: out\n"), [f"serving.host={host}"]).serving.host == host


def test_numbers_as_text_and_switches_as_numbers_are_still_taken(recipe):
    config = load_config(recipe(RERANK + "seed: '12'\nallow_failures: 1\nfirst_stage: {k1: 1e0, depth: 10.0}\n"))
    assert (config.seed, config.allow_failures, config.first_stage.k1, config.first_stage.depth) == (12, True, 1.0, 10)


@pytest.mark.parametrize(
    "text",
    [
        *VERBATIM,
        "~x",
        "=",
        "<<",
        "null x",
        "0x1f",
        "1_000",
        "1:30",
        "\x1b[31m",
        "a\u2028b",
        "\ufeffx",
        "💥",
        "a\nb\n",
        ".inf",
        "!x",
    ],
)
def test_a_submitted_config_is_the_same_recipe(recipe, tmp_path, text):
    config = load_config(
        recipe(RERANK), ["data.format=beir", f"data.path={text}", f"model.id={text}", f"engine.poison={text}"]
    )
    (tmp_path / "submitted.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "submitted.yaml") == config


def test_how_many_examples_are_enough():
    assert SynthesisConfig(size=15, oversample=1.5).enough == 23
    assert SynthesisConfig(size=15).enough is None


# ---- fusion --------------------------------------------------------------------------


def test_a_fusion_weight_is_a_number_or_a_run(recipe, tmp_path):
    path = recipe(RERANK)
    assert load_config(path).scoring.fuse is None
    assert load_config(path, ["scoring.fuse.first_stage=0.3"]).scoring.fuse.first_stage == 0.3
    assert load_config(path, ["scoring.fuse={first_stage: 1}"]).scoring.fuse.first_stage == 1.0
    assert load_config(path, ["scoring.fuse.first_stage=0.3", "scoring.fuse=null"]).scoring.fuse is None
    chosen = load_config(path, ["scoring.fuse.first_stage=runs/dev"])
    assert chosen.scoring.fuse.first_stage == str(tmp_path / "runs/dev")
    assert path_values(chosen)["scoring.fuse.first_stage"] == str(tmp_path / "runs/dev")
    assert ("scoring.fuse.first_stage", str(tmp_path / "runs/dev")) in input_paths(chosen)
    remote = load_config(path, ["scoring.fuse.first_stage=s3://bucket/dev"])
    assert ("scoring.fuse.first_stage", "s3://bucket/dev") in input_paths(remote)
    weighted = load_config(path, ["scoring.fuse.first_stage=0.3"])
    assert "scoring.fuse.first_stage" not in dict(input_paths(weighted)) | path_values(weighted)
    assert yaml.safe_load(dump_config(weighted))["scoring"]["fuse"] == {"first_stage": 0.3}


WEIGHT = "r.yaml: scoring.fuse.first_stage: should be a weight from 0 to 1, or the run directory of a rerank job (got "


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("scoring.fuse.first_stage=1.5", f"{WEIGHT}1.5)"),
        ("scoring.fuse.first_stage=-0.1", f"{WEIGHT}-0.1)"),
        ("scoring.fuse.first_stage=2", f"{WEIGHT}2)"),
        ("scoring.fuse.first_stage=[0.3]", f"{WEIGHT}[0.3])"),
        ("scoring.fuse.first_stage={a: 1}", f"{WEIGHT}{{'a': 1}})"),
        ("scoring.fuse.first_stage=true", "r.yaml: scoring.fuse.first_stage: should not be true"),
        ("scoring.fuse.first_stage=.nan", "-s scoring.fuse.first_stage=.nan: nan is not a finite number"),
        ("scoring.fuse.first_stage=''", "r.yaml: scoring.fuse.first_stage: is empty; null unsets a key"),
        ("scoring.fuse={}", "r.yaml: scoring.fuse.first_stage: is needed"),
        ("scoring.fuse=0.3", "r.yaml: scoring.fuse: should be a section of keys (got 0.3)"),
        ("scoring.fuse=[]", "r.yaml: scoring.fuse: should be a section of keys (got [])"),
        (
            "scoring.fuse={first_stage: 0.3, frist_stage: 1}",
            "r.yaml: scoring.fuse.frist_stage: unknown key; did you mean scoring.fuse.first_stage?",
        ),
    ],
)
def test_another_fusion_is_refused_in_one_line(recipe, override, message):
    assert refusal(recipe(RERANK), [override]) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "job: rerank\nscoring: {mode: none, fuse: {first_stage: 0.3}}\n",
            "scoring.fuse: mode none has no scores to fuse with the first stage's: unset one of them",
        ),
        ("job: serve\nscoring: {fuse: {first_stage: 0.3}}\n", "scoring.fuse: a request has no first-stage scores"),
        (
            "job: synthesize\nscoring: {mode: direct, fuse: {first_stage: 0.3}}\n",
            "scoring.fuse: a judge scores pairs, which have no first stage",
        ),
        (
            "job: pipeline\njudge_scoring: {mode: direct, fuse: {first_stage: 0.3}}\n",
            "judge_scoring.fuse: a judge scores pairs, which have no first stage",
        ),
        (
            "job: pipeline\nscoring: {fuse: {first_stage: runs/dev}}\n",
            "scoring.fuse.first_stage: a pipeline takes a weight from 0 to 1",
        ),
    ],
)
def test_fusion_where_there_is_nothing_to_fuse_is_refused(recipe, text, message):
    assert refusal(recipe(f"{text}run_dir: out\n")) == f"r.yaml: {message}"


@pytest.mark.parametrize("job", [RerankJob, ServeJob])
def test_a_model_that_is_not_named_is_the_packaged_reranker_however_it_is_spelt(job):
    assert job(run_dir="out").model == ModelConfig(id=RERANKER)
    for model in ({"dtype": "float32"}, ModelConfig(dtype="float32")):
        assert job(run_dir="out", model=model).model == ModelConfig(id=RERANKER, dtype="float32")
    base = ModelConfig().id
    for model in ({"id": base}, ModelConfig(id=base)):
        assert job(run_dir="out", model=model).model.id == base != RERANKER


def test_a_pipeline_s_run_dir_is_a_directory_or_in_a_store(recipe):
    from limrank.config.stages import stage_configs

    assert stage_configs(load_config(recipe("job: pipeline\nrun_dir: s3://b/x\n"))).train.run_dir == "s3://b/x/train"
    with pytest.raises(UserError, match="run_dir: hdfs://b/x: no directory, and no store"):
        stage_configs(load_config(recipe("job: pipeline\nrun_dir: hdfs://b/x\n")))


@pytest.mark.parametrize("model", ["", "model: {dtype: float32}\n"])
def test_a_pipeline_ranks_its_base_by_the_model_that_it_trains(recipe, model):
    from limrank.config.stages import stage_configs

    stages = stage_configs(load_config(recipe(f"job: pipeline\nrun_dir: out\n{model}")))
    assert stages.first_stage.model == stages.rerank_base.model == stages.train.model
    assert stages.rerank_base.model.id == ModelConfig().id
    assert stages.rerank_tuned.model.id == stages.serve.model.id
    assert stages.serve.model.id.endswith("out/train/model")


def test_a_pipeline_learns_from_a_teacher_s_lists(recipe):
    from limrank.config.stages import stage_configs

    taught = "training: {objective: listnet, target: direct}\n"
    assert refusal(recipe(f"job: pipeline\nrun_dir: out\n{taught}")) == (
        "r.yaml: training.objective=listnet learns from graded lists: set synthesis.source=passages and "
        "synthesis.teacher"
    )
    passages = "synthesis: {source: passages, teacher: {kind: embedder, model: all-minilm-l6-v2}}\n"
    stages = stage_configs(load_config(recipe(f"job: pipeline\nrun_dir: out\n{passages}{taught}")))
    assert stages.train.training.train_file.endswith("synthesize/lists.jsonl")
    stages = stage_configs(load_config(recipe(f"job: pipeline\nrun_dir: out\n{passages}")))
    assert stages.train.training.train_file.endswith("synthesize/train.jsonl")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("target: think", "training.labels are learned without a chain: set training.target=direct, not think"),
        ("target: mixed", "training.labels are learned without a chain: set training.target=direct, not mixed"),
        (
            "target: direct, objective: binary",
            "training.labels need training.objective=label: binary trains the log-odds of true and false",
        ),
        (
            "target: direct, objective: listnet",
            "training.labels need training.objective=label: listnet trains the log-odds of true and false",
        ),
        ("task: writer", "training.labels are a reranker's: training.task=writer learns queries: unset one of them"),
    ],
)
def test_graded_labels_are_learned_directly(recipe, keys, message):
    text = f'job: train\nrun_dir: out\ntraining: {{train_file: t.jsonl, labels: ["0", "1"], {keys}}}\n'
    assert refusal(recipe(text)) == f"r.yaml: {message}"


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ('["1"]', "should have at least 2 items"),
        ("[]", "should have at least 2 items"),
        ('["1", "1"]', "training.labels: has '1' twice"),
        ('["1", "a b"]', "training.labels: has 'a b', and a label is a word or a number"),
        ('["1", ""]', "is empty"),
        ("[0, 1]", "valid string"),
        ("[.nan, .inf]", "nan is not a finite number"),
        ("[true, false]", "should not be true"),
        ("7", "valid tuple"),
        ("{a: 1}", "valid tuple"),
    ],
)
def test_graded_labels_to_learn_are_a_few_distinct_words(recipe, labels, fault):
    text = f"job: train\nrun_dir: out\ntraining: {{train_file: t.jsonl, target: direct, labels: {labels}}}\n"
    message = refusal(recipe(text))
    assert "training.labels" in message and fault in message and "\n" not in message


def test_a_dev_set_and_a_pipeline_know_no_graded_labels(recipe):
    given = 'training: {train_file: t.jsonl, target: direct, labels: ["0", "1"]}\n'
    assert load_config(recipe(f"job: train\nrun_dir: out\n{given}")).training.labels == ("0", "1")
    assert refusal(recipe(f"job: train\nrun_dir: out\n{given}dev: {{data: {{format: pydocs}}}}\n")).startswith(
        "r.yaml: dev is reranked by true and false, which a model with training.labels does not learn: unset dev"
    )
    assert refusal(recipe(f"job: pipeline\nrun_dir: out\n{given}")) == (
        "r.yaml: training.labels: a pipeline trains true and false: train with labels by a job of its own"
    )


def test_a_pipeline_fuses_the_tuned_model_and_keeps_its_hash(recipe):
    from limrank.config.stages import pipeline_hash, stage_configs

    path = recipe("job: pipeline\nrun_dir: out\n")
    plain, fused = load_config(path), load_config(path, ["scoring.fuse.first_stage=0.3"])
    assert pipeline_hash(fused) == pipeline_hash(plain)
    stages = stage_configs(fused)
    assert stages.rerank_tuned.scoring.fuse.first_stage == 0.3
    assert stages.rerank_base.scoring.fuse is stages.serve.scoring.fuse is stages.first_stage.scoring.fuse is None


def test_keys_newer_than_run_directories_are_no_part_of_a_training_s_hash_at_their_defaults():
    newer = {"task", "labels", "teacher_temperature", "list_size"}
    assert TrainingConfig().model_dump().keys() - TrainingConfig().hashed().keys() == newer
    taught = TrainingConfig(objective="listnet", target="direct", list_size=8, teacher_temperature=0.5)
    assert TrainingConfig(labels=("0", "1"), target="direct").hashed()["labels"] == ("0", "1")
    assert (
        newer - {"task", "labels"} < taught.hashed().keys()
        and TrainingConfig(task="writer").hashed()["task"] == "writer"
    )
    assert "epochs" not in taught.hashed({"epochs"})


@pytest.mark.parametrize(
    ("synthesis", "expected"),
    [
        ({"teacher": {"kind": "embedder", "model": "all-minilm-l6-v2"}}, "a8fd41995ac088ec"),
        ({"round_trip": {"k": 5}, "teacher": {"kind": "run", "path": "/r"}}, "a69f8d4458173c6f"),
    ],
)
def test_a_pipeline_with_a_teacher_has_the_hash_of_its_run_directories_so_far(synthesis, expected):
    """The hashes that limrank gave before round_trip.filter, teacher.bm25_weight and the keys of a listwise teacher."""
    from limrank.config.stages import pipeline_hash

    def hashed(**teacher):
        section = {"source": "passages", "seeds": "/c", **synthesis, "teacher": synthesis["teacher"] | teacher}
        return pipeline_hash(
            parse_config({"job": "pipeline", "run_dir": "/run", "engine": {"kind": "fake"}, "synthesis": section})
        )

    assert hashed() == expected
    assert len({hashed(bm25_weight=0.5), hashed(passage_first=True), expected}) == 3


def test_where_a_listwise_teacher_s_endpoint_is_changes_no_hash():
    from limrank.config import TeacherConfig

    def hashed(url, **values):
        return TeacherConfig(kind="listwise", model="m", engine={"kind": "openai", "base_url": url}, **values).hashed()

    base = hashed("http://one/v1")
    assert hashed("http://other/v1") == base != hashed("http://one/v1", window=10)
