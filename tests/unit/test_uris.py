"""Credentials are refused in what a recipe stores, and taken out of what others say."""

import json

import pytest
import yaml

from limrank.batch.rundir import open_run
from limrank.cli import main
from limrank.config import EngineConfig, ModelConfig
from limrank.config.recipe import load_config, parse_config
from limrank.errors import EngineError, RowError, StorageError, UserError, first_line
from limrank.records import Failure
from limrank.storage import Storage, filesystem
from limrank.uris import credentials_in, is_secret_name, redacted, split_query

SECRET = "Hunter2Hunter2"

WITH_CREDENTIALS = [
    f"http://user:{SECRET}@host/v1",
    f"http://{SECRET}@host/v1",
    f"HTTPS://USER:{SECRET}@HOST",
    f"user:{SECRET}@host/v1",
    f"//user:{SECRET}@host/v1",
    f"http:/user:{SECRET}@host/v1",
    f"http:\\\\user:{SECRET}@host/v1",
    f" http://user:{SECRET}@host/v1",
    f"http://us er:{SECRET}@host/v1",
    f"http://user%3A{SECRET}%40host/v1",
    f"http%3A%2F%2Fuser%3A{SECRET}%40host",
    f"http%253A%252F%252Fuser%253A{SECRET}%2540host",
    f"http://{SECRET}@[::1]:8000/",
    f"s3://KEY:{SECRET}@bucket/x",
    f"s3://KEY:sla/sh{SECRET}@bucket/x",
    f"gs://u:{SECRET}@bucket/x",
    f"abfs://u:{SECRET}@account/x",
    f"hf://u:{SECRET}@datasets/x",
    f"file://user:{SECRET}@host/x",
    *(
        f"s3://bucket/x?{name}={SECRET}"
        for name in (
            *("secret_key", "access_key", "session_token", "SECRET_KEY", "secret-key", "secretKey", "token", "key"),
            *("api_key", "apikey", "password", "passwd", "sig", "signature", "auth", "code", "sas", "X-Amz-Signature"),
            *("X-Amz-Credential", "x-amz-security-token", "AWSAccessKeyId", "secret%5Fkey", "%74oken", "%2574oken"),
        )
    ),
    f"http://host/v1?a=b&token={SECRET}",
    f"http://host/v1?a=b;token={SECRET}",
    f"http://host/v1;token={SECRET}",
    f"http://host/v1#access_token={SECRET}",
    f"host/v1?token={SECRET}",
    f"s3://bucket/x?endpoint_override=http://u:{SECRET}@host",
    f"s3://bucket/x?endpoint_override=http%3A%2F%2Fu%3A{SECRET}%40host",
    f"s3://bucket/x?endpoint_override=u:{SECRET}@host",
    "s3://AKIAIOSFODNN7EXAMPLE/x",
    "hf_abcdefghijklmnopqrstuvwxyz012345",
]

WITHOUT = [
    "http://host:8000/v1",
    "http://[::1]:8000/v1",
    "http://host/v1?api-version=2024-02-01&max_tokens=5",
    "s3://bucket/x?endpoint_override=localhost%3A9000&scheme=http&region=us-east-1",
    "s3://bucket/x?endpoint_override=http://127.0.0.1:9000",
    "s3://bucket/x@v1/y",
    "hf://datasets/owner/name@main",
    "owner/name@main",
    "/data/me@home/run:1@x",
    "./user:1@host",
    "benchmark://bright/biology",
    "my data #1",
    "CC BY 4.0: see me@example.org",
    "https://creativecommons.org/licenses/by/4.0/",
    "nDCG@10",
]

KEYS = [
    *("run_dir", "data.path", "data.name", "first_stage.path", "model.id", "engine.base_url", "engine.api_key_env"),
    *("scoring.prompt",),
]
SYNTHESIS_KEYS = [
    *("judge.id", "reranker.id", "judge_engine.base_url", "reranker_engine.base_url", "synthesis.embedder"),
    *("synthesis.seeds", "synthesis.corpus", "synthesis.personas", "synthesis.prompts.query", "synthesis.license"),
]


@pytest.mark.parametrize("value", WITH_CREDENTIALS)
def test_credentials_are_seen(value):
    assert credentials_in(value)


@pytest.mark.parametrize("value", WITHOUT)
def test_what_only_looks_like_them_is_taken(value):
    assert credentials_in(value) is None


def _run(tmp_path, job, *overrides):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: {job}\nrun_dir: {tmp_path}/run\n")
    return main([job, str(recipe), "--dry-run", *(part for each in overrides for part in ("-s", each))])


@pytest.mark.parametrize(
    "value", [WITH_CREDENTIALS[0], WITH_CREDENTIALS[3], WITH_CREDENTIALS[20], WITH_CREDENTIALS[-1]]
)
@pytest.mark.parametrize(
    ("job", "key"), [*(("rerank", key) for key in KEYS), *(("synthesize", key) for key in SYNTHESIS_KEYS)]
)
def test_no_value_of_a_recipe_holds_credentials_and_none_is_shown(job, key, value, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    values = {"job": job, "run_dir": str(tmp_path / "run")}
    below = values
    *parents, last = key.split(".")
    for parent in parents:
        below = below.setdefault(parent, {})
    below[last] = value
    recipe.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as raised:
        load_config(recipe)
    message = str(raised.value)
    assert (
        key in message
        and SECRET not in message
        and "AKIA" not in message
        and "hf_a" not in message
        and "\n" not in message
    )
    with pytest.raises(UserError) as raised:
        recipe.write_text(f"job: {job}\nrun_dir: {tmp_path}/run\n")
        load_config(recipe, [f"{key}={value}"])
    assert SECRET not in str(raised.value)


def test_the_parameter_is_named(tmp_path, capsys):
    assert _run(tmp_path, "rerank", f"run_dir=s3://b/x?region=eu&secret_key={SECRET}") == 2
    error = capsys.readouterr().err
    assert "run_dir: holds credentials (the parameter secret_key)" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "override",
    [
        f"no.such.key=http://u:{SECRET}@h",
        f"model=http://u:{SECRET}@h",
        f"first_stage.depth=http://u:{SECRET}@h",
        f"first_stage.depth=http://u:{SECRET}{'x' * 500}@h",
        f"data.format=http://u:{SECRET}@h",
        f"workers.replicas=[http://u:{SECRET}@h]",
        f"workers.replicas={{a: 'http://u:{SECRET}@h'}}",
        f"http://u:{SECRET}@h",
        f"http://u:{SECRET}@h=1",
        f"engine.latency_ms=Bearer {SECRET}",
        f"model.dtype=api_key={SECRET}",
        f"first_stage.depth=[http://u:{SECRET}@h",
        f"job=http://u:{SECRET}@h",
    ],
)
def test_a_message_shows_no_credentials(override, tmp_path, capsys):
    assert _run(tmp_path, "rerank", override) == 2
    out, error = capsys.readouterr()
    assert SECRET not in out + error and error.count("\n") == 1


def test_pydantics_own_error_shows_no_value():
    with pytest.raises(ValueError) as raised:
        EngineConfig(kind="openai", base_url=f"http://u:{SECRET}@h/v1")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank", "{recipe}", "--address", f"http://u:{SECRET}@h:8265"],
        ["rerank", "{recipe}", "--address", f"http://h:8265?token={SECRET}"],
        ["jobs", "list", "--address", f"http://u:{SECRET}@h:8265"],
        ["jobs", "stop", "x", "--address", f"http://h:8265?token={SECRET}"],
        ["failures", f"s3://KEY:{SECRET}@b/x"],
        ["models", "fetch", f"s3://KEY:{SECRET}@b/x"],
        ["evaluate", "--compare", f"s3://KEY:{SECRET}@b/x", "runs/a"],
        ["evaluate", f"http://u:{SECRET}@h/recipe.yaml"],
    ],
)
def test_no_option_holds_credentials(arguments, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: rerank\nrun_dir: {tmp_path}/run\n")
    assert main([each.format(recipe=recipe) if each == "{recipe}" else each for each in arguments]) == 2
    out, error = capsys.readouterr()
    assert SECRET not in out + error and error.count("\n") == 1


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_DASHBOARD_ADDRESS"])
def test_no_address_of_the_environment_is_shown(variable, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(variable, f"http://u:{SECRET}@h:1")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: rerank\nrun_dir: {tmp_path}/run\n")
    assert main(["rerank", str(recipe)] if variable == "RAY_ADDRESS" else ["jobs", "list"]) == 2
    out, error = capsys.readouterr()
    assert SECRET not in out + error and "credentials" in error


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"at http://user:{SECRET}@host/v1?x=1&token={SECRET} now", "at http://***@host/v1?x=1&token=*** now"),
        (f"s3://KEY:sla/sh{SECRET}@bucket/x: denied", "s3://***@bucket/x: denied"),
        (f"'http://user:{SECRET}", "'http://***"),
        (f"user:{SECRET}@host/v1", "***@host/v1"),
        (f"Authorization: Bearer {SECRET}", "Authorization: Bearer ***"),
        (f"authorization: basic {SECRET}==", "authorization: basic ***"),
        (f'{{"Authorization": "Bearer {SECRET}"}}', '{"Authorization": "Bearer ***"}'),
        (f"api_key={SECRET}, x", "api_key=***, x"),
        (f'{{"api-key": "{SECRET}"}}', '{"api-key": "***"}'),
        (f"AWS_SECRET_ACCESS_KEY={SECRET}", "AWS_SECRET_ACCESS_KEY=***"),
        ("Incorrect API key provided: sk-abcdefgh12345. See", "Incorrect API key provided: ***. See"),
        ("the key AKIAIOSFODNN7EXAMPLE is", "the key *** is"),
        ("nothing: http://127.0.0.1:8000: 8192 tokens at me@example.org", None),
        ("s3://bucket/x?region=eu: no such file; nDCG@10", None),
    ],
)
def test_a_text_is_quoted_without_them(text, left):
    assert redacted(text) == (left or text)
    assert redacted(redacted(text)) == redacted(text)


def test_every_error_of_ours_is_printed_without_them():
    for kind in (UserError, RowError, EngineError, StorageError):
        assert SECRET not in str(kind(f"Bearer {SECRET}")) + repr(kind(f"Bearer {SECRET}"))
    assert first_line(OSError(f"http://u:{SECRET}@h\nmore")) == "http://***@h"
    assert Failure.of("u", "s", ValueError(f"Bearer {SECRET}")).error == "Bearer ***"


def test_what_the_environment_keeps_secret_reaches_no_file(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        assert is_secret_name(name)
        monkeypatch.setenv(name, f"canary-of-{name}")
        with pytest.raises(UserError, match="run_dir: holds credentials") as raised:
            parse_config({"job": "rerank", "run_dir": f"/x/canary-of-{name}"})
        assert "canary" not in str(raised.value)
        with open_run(str(tmp_path), job="rerank", config_yaml="a: b\n", config_hash=name, overwrite=True) as run:
            run.note(warnings=[f"it said canary-of-{name}"], error={"x": f"http://u:{SECRET}@h"})
            run.storage.write_text("report.html", f"<p>canary-of-{name}</p>")
        for file in (each for each in tmp_path.rglob("*") if each.is_file()):
            assert b"canary" not in file.read_bytes() and SECRET.encode() not in file.read_bytes()
        assert json.loads((tmp_path / "manifest.json").read_text())["warnings"] == ["it said ***"]


def test_the_working_directory_is_no_secret(monkeypatch):
    for name in ("PWD", "OLDPWD", "SSH_AUTH_SOCK", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.setenv(name, "/home/me/project")
    assert parse_config({"job": "rerank", "run_dir": "/home/me/project/run"}).run_dir == "/home/me/project/run"


def test_a_store_is_not_opened_by_credentials_in_its_name():
    with pytest.raises(ValueError, match="the parameter secret_key") as raised:
        filesystem(f"s3://b/x?secret_key={SECRET}")
    assert SECRET not in str(raised.value)
    assert Storage("/x").root == "/x"


def test_a_urls_query_is_apart_from_its_path():
    assert split_query("http://h:1/v1/?x=y&x=z&e=") == ("http://h:1/v1", [("x", "y"), ("x", "z"), ("e", "")])
    assert split_query("http://h/v1") == ("http://h/v1", [])
    assert ModelConfig(id="owner/name@main").id == "owner/name@main"
