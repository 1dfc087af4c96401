"""API keys: where they come from, how they are checked, and how often each may be used."""

import asyncio
import json
import os
import pickle
import signal
from pathlib import Path

import httpx
import pytest

from helpers.asgi import Bodies, answer, sent_by
from helpers.backend import EngineBackend
from limrank.cli import main
from limrank.config import ModelConfig, ScoringConfig, ServeJob, ServingConfig
from limrank.config.recipe import input_paths, load_config
from limrank.errors import UserError
from limrank.serving import job, keys
from limrank.serving.access import Access
from limrank.serving.api import build_api
from limrank.serving.errors import ApiError
from limrank.serving.key_sources import (
    VARIABLE,
    file_line,
    hashed,
    keys_of_environment,
    keys_of_file,
    new_key,
)
from limrank.serving.keys import KeyCheck, KeyRing, current_key
from limrank.serving.protocol import Served
from limrank.serving.rates import RateLimiter
from limrank.serving.settings import ApiSettings

A, B = "key-a-0123456789abcdef", "key-b-0123456789abcdef"
RING = KeyRing({"a": hashed(A), "b": hashed(B)})


@pytest.fixture(autouse=True)
def no_keys_of_this_shell(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path):
    def write(content, mode=0o600):
        path = tmp_path / "keys"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return str(path)

    return write


def refusal(read, value):
    with pytest.raises(UserError) as caught:
        read(value)
    assert "\n" not in str(caught.value)
    assert A not in str(caught.value) and B not in str(caught.value)
    return str(caught.value)


# ---- where keys come from ------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [f"a={A},b={B}", f"a={A}\nb={B}\n", f" a = {A} ,\n b={B},", f"a=sha256:{hashed(A).upper()},b={B}"]
)
def test_keys_of_the_environment(value):
    assert keys_of_environment(value) == {"a": hashed(A), "b": hashed(B)}


def test_a_key_may_hold_an_equals_sign():
    assert keys_of_environment(f"a={A}==") == {"a": hashed(A + "==")}
    assert keys_of_environment(None) == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "holds no key"),
        (" ,\n,", "holds no key"),
        (A, "entry 1: should be NAME=KEY"),
        (f"a={A},{B}", "entry 2: should be NAME=KEY"),
        (f"={A}", "entry 1: should be NAME=KEY"),
        (f"a b={A}", "entry 1: should be NAME=KEY"),
        (f"{'n' * 65}={A}", "entry 1: should be NAME=KEY"),
        (f"é={A}", "entry 1: should be NAME=KEY"),
        ("a=", "entry 1: a key has 16 to 512"),
        ("a=short", "entry 1: a key has 16 to 512"),
        (f"a={'x' * 513}", "entry 1: a key has 16 to 512"),
        (f"a={A} {A}", "entry 1: a key has 16 to 512"),
        (f"a={A}é", "entry 1: a key has 16 to 512"),
        (f"a={A}\0", "entry 1: a key has 16 to 512"),
        ("a=sha256:abc", "entry 1: a key has 16 to 512"),
        (f"a=sha256:{'g' * 64}", "entry 1: a key has 16 to 512"),
        (f"a={A},a={B}", "entry 2: has the name of an earlier key"),
        (f"a={A},b=sha256:{hashed(A)}", "entry 2: is the same key as in LIMRANK_API_KEYS: entry 1"),
        (",".join(f"n{i}=key-{i:020}" for i in range(501)), "holds 501 keys; at most 500"),
    ],
)
def test_garbage_in_the_environment(value, said):
    assert refusal(keys_of_environment, value).startswith(f"{VARIABLE}: {said}")


def test_keys_of_a_file(file):
    path = file(f"# ours\n\n  a: {A}\r\nb:sha256:{hashed(B)}\n")
    assert keys_of_file(path) == {"a": hashed(A), "b": hashed(B)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ": holds no key"),
        ("# nothing\n\n", ": holds no key"),
        (f"# x\n{A}\n", ": line 2: should be NAME: KEY"),
        ("a: null\n", ": line 1: a key has 16 to 512"),
        ("a: .nan\n", ": line 1: a key has 16 to 512"),
        (f"a: {A}\na: {B}\n", ": line 2: has the name of an earlier key"),
        (b"\xff\xfe\x00", ": is not UTF-8 text"),
        (b"a: \x00\x00\n", ": line 1: a key has"),
        (b"#" * (2**20 + 1), ": is larger than 1048576 bytes"),
    ],
)
def test_garbage_in_a_file(file, content, said):
    path = file(content)
    assert refusal(keys_of_file, path).startswith(f"serving.keys_file {path}{said}")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(keys_of_file, str(tmp_path / "pipe"))
    assert "cannot be read: Is a directory" in refusal(keys_of_file, str(tmp_path))
    assert "cannot be read: No such file" in refusal(keys_of_file, str(tmp_path / "nowhere"))


def test_a_file_that_others_can_read_holds_hashes_only(file):
    for mode in (0o644, 0o640, 0o604):
        assert "other users may read its keys" in refusal(keys_of_file, file(f"a: {A}\n", mode))
    assert keys_of_file(file(f"a: sha256:{hashed(A)}\n", 0o644)) == {"a": hashed(A)}
    for mode in (0o620, 0o602):
        assert "other users may write it" in refusal(keys_of_file, file(f"a: sha256:{hashed(A)}\n", mode))


def test_both_sources_and_a_name_in_both(file, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"a={A}")
    assert KeyRing.read(file(f"b: {B}\n")).names == ["a", "b"]
    assert "key a is in LIMRANK_API_KEYS, too" in refusal(KeyRing.read, file(f"a: {B}\n"))


def test_a_new_key_and_its_line(file, capsys):
    assert main(["keys", "new", "search-team"]) == 0
    key, line = capsys.readouterr().out.splitlines()
    assert len(key) > 40 and key != new_key()
    assert keys_of_file(file(line + "\n", 0o644)) == {"search-team": hashed(key)}
    assert file_line("search-team", key) == line
    assert main(["keys", "new", "a: b"]) == 2
    assert "a key's name has" in capsys.readouterr().err


# ---- the file is read again ----------------------------------------------------------


def test_a_changed_file_is_read_again_at_most_once_a_second(file, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    path = file(f"a: {A}\n")
    ring = KeyRing.read(path)
    ring.look_again()
    file(f"longer-name: {B}\n")
    ring.look_again()
    assert ring.names == ["a"]
    now[0] += 1
    ring.look_again()
    assert (ring.names, ring.name_of(A), ring.name_of(B)) == (["longer-name"], None, "longer-name")


@pytest.mark.parametrize("content", ["", "nothing\n", f"a: {B}\na: {B}\n", None])
def test_a_faulty_or_missing_file_leaves_the_old_keys(file, monkeypatch, caplog, content):
    monkeypatch.setattr(keys, "_LOOK_AGAIN_S", 0)
    path = file(f"a: {A}\n")
    ring = KeyRing.read(path)
    ring.look_again()
    if content is None:
        Path(path).unlink()
    else:
        file(content)
    ring.look_again()
    ring.look_again()
    assert ring.name_of(A) == "a"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (content is not None)
    assert all("the keys stay as they are: serving.keys_file" in line and B not in line for line in said)
    file(f"b-is-new: {B}\n")
    ring.look_again()
    assert ring.names == ["b-is-new"]


def test_a_replica_on_another_machine_has_the_driver_s_hashes(file):
    path = file(f"a: {A}\n")
    sent = pickle.dumps(KeyRing.read(path))
    text = Access(keys=KeyRing.read(path)).to_json()
    assert A.encode() not in sent and A not in text
    Path(path).unlink()
    for ring in (pickle.loads(sent), Access.from_json(text).keys):
        ring.look_again()
        assert ring.name_of(A) == "a"


def test_the_proxy_s_checks_survive_json():
    serving = ServingConfig(max_body_bytes=2000, receive_timeout_s=1.5, allowed_hosts=("x.org",))
    access = Access.of(serving, RING)
    back = Access.from_json(access.to_json())
    assert (back.limits, back.hosts, back.keys.names) == (access.limits, access.hosts, ["a", "b"])


def test_a_hangup_says_what_the_file_holds(file, capsys):
    before = signal.getsignal(signal.SIGHUP)
    try:
        job._report_keys_on_hangup(None)
        assert signal.getsignal(signal.SIGHUP) is before
        path = file(f"a: {A}\n")
        job._report_keys_on_hangup(path)
        os.kill(os.getpid(), signal.SIGHUP)
        assert capsys.readouterr().err == f"1 keys in {path}\n"
        file(f"a {A}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        said = capsys.readouterr().err
        assert said.startswith("warning: the keys stay as they are: serving.keys_file") and A not in said
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("Authorization", f"Bearer {A}")], "a"),
        ([("authorization", f"bearer   {B} ")], "b"),
        ([("X-API-Key", B)], "b"),
        ([("Authorization", "Basic abc"), ("X-API-Key", A)], "a"),
        ([("Authorization", "Bearer wrong"), ("X-API-Key", A)], "a"),
        ([], "missing_api_key"),
        ([("Authorization", "Bearer")], "missing_api_key"),
        ([("Authorization", "Bearer ")], "missing_api_key"),
        ([("Authorization", f"Basic {A}")], "missing_api_key"),
        ([("X-API-Key", "")], "missing_api_key"),
        ([("Authorization", A)], "missing_api_key"),
        ([("Authorization", f"Bearer {A}x")], "invalid_api_key"),
        ([("Authorization", f"Bearer {A[:-1]}")], "invalid_api_key"),
        ([("Authorization", f"Bearer {A} {A}")], "invalid_api_key"),
        ([("Authorization", "Bearer é\xff")], "invalid_api_key"),
        ([("X-API-Key", hashed(A))], "invalid_api_key"),
        ([("X-API-Key", f"sha256:{hashed(A)}")], "invalid_api_key"),
    ],
)
def test_who_may(headers, found):
    seen = []

    async def app(scope, receive, send):
        seen.append(current_key())
        await Bodies()(scope, receive, send)

    answered = answer(KeyCheck(app, RING), headers=headers)
    if found in ("a", "b"):
        assert (answered.status, seen) == (200, [found])
    else:
        assert (answered.status, answered.code, seen) == (401, found, [])
        assert answered.headers["www-authenticate"] == "Bearer"
        assert A not in answered.body.decode()
    assert current_key() is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/page.css", "/page.js", "/docs"])
def test_probes_and_the_page_need_no_key_unless_they_have_a_body(path):
    assert answer(KeyCheck(Bodies(), RING), path=path).status == 200
    assert answer(KeyCheck(Bodies(), RING), path=path, headers=[("Content-Length", "0")]).status == 200
    for headers in ([("Content-Length", "5")], [("Transfer-Encoding", "chunked")]):
        assert answer(KeyCheck(Bodies(), RING), path=path, headers=headers).code == "missing_api_key"


@pytest.mark.parametrize(
    "path",
    ["/page/search", "/v1/models", "/openapi.json", "/metrics", "/healthz/", "/healthz/../v1/models", "//healthz"],
)
def test_everything_else_does(path):
    assert answer(KeyCheck(Bodies(), RING), path=path).code == "missing_api_key"


def test_without_keys_any_is_taken():
    assert answer(KeyCheck(Bodies(), KeyRing()), headers=[("Authorization", "Bearer none")]).status == 200


def test_a_web_socket_needs_a_key():
    (sent,) = asyncio.run(sent_by(KeyCheck(Bodies(), RING), kind="websocket"))
    assert sent == {"type": "websocket.close", "code": 1008}


def test_every_key_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda one, other: compared.append(other) or one == other)
    assert RING.name_of(A) == "a"
    assert compared == [hashed(A), hashed(B)]


# ---- rates ---------------------------------------------------------------------------


def waits(limiter, key, pairs):
    try:
        limiter.take(pairs, key)
    except ApiError as error:
        assert (error.status, error.code) == (429, "rate_limited")
        assert "serving.rate_limit_pairs_per_minute" in str(error)
        return int(error.headers["Retry-After"])
    return 0


def test_a_bucket_for_each_key():
    now = [0.0]
    limiter = RateLimiter(60, lambda: now[0])
    assert [waits(limiter, "a", 50), waits(limiter, "a", 11), waits(limiter, "b", 60)] == [0, 1, 0]
    now[0] += 0.5
    assert waits(limiter, "a", 11) == 1  # half a second is rounded up
    now[0] += 0.5
    assert waits(limiter, "a", 11) == 0
    assert waits(limiter, "a", 60) == 60
    now[0] += 3600
    assert waits(limiter, "a", 60) == 0  # no more than a minute's pairs are saved


def test_a_request_that_is_larger_than_the_bucket_leaves_a_debt():
    now = [0.0]
    limiter = RateLimiter(60, lambda: now[0])
    assert waits(limiter, "a", 180) == 0
    assert waits(limiter, "a", 1) == 121
    now[0] += 121
    assert waits(limiter, "a", 1) == 0


def test_no_rate_and_no_key_are_not_limited():
    RateLimiter(None).take(10**9, "a")
    RateLimiter(1).take(10**9)


def test_over_the_api():
    async def go():
        served = Served.of(ModelConfig(id="served"), ScoringConfig())
        api = build_api(EngineBackend(), served, ApiSettings(access=Access(keys=RING, pairs_per_minute=3)))
        found = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http:
            for key in (A, A, B, None):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                body = {"query": "q", "documents": ["a", "b"]}
                found.append(await http.post("/v1/rerank", json=body, headers=headers))
            found.append(await http.get("/healthz"))
        return found

    found = asyncio.run(go())
    assert [answered.status_code for answered in found] == [200, 429, 200, 401, 200]
    assert found[1].headers["retry-after"] == "20"
    assert set(found[3].json()["error"]) == {"message", "type", "param", "code"}


# ---- the recipe and the command ------------------------------------------------------


def serve_job(tmp_path, **serving):
    return ServeJob(run_dir=str(tmp_path), engine={"kind": "fake"}, serving=serving)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "node-1.example.org"])
def test_an_open_address_needs_keys(tmp_path, monkeypatch, host):
    config = serve_job(tmp_path, host=host)
    with pytest.raises(UserError, match=r"LIMRANK_API_KEYS or serving.keys_file\), or give --insecure"):
        job.plan(config, insecure=False)
    assert "none" in job.plan(config, insecure=True)["keys"]
    monkeypatch.setenv(VARIABLE, f"team={A}")
    plan = job.plan(config, insecure=False)
    assert plan["keys"] == ["team"] and A not in json.dumps(plan)


def test_run_refuses_before_ray_is_started(tmp_path):
    with pytest.raises(UserError, match="--insecure"):
        job.run(serve_job(tmp_path, host="0.0.0.0"), address="local", progress=None)


def test_the_command(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("job: serve\nrun_dir: out\nengine: {kind: fake}\nserving: {host: 0.0.0.0}\n")
    assert main(["serve", str(recipe), "--dry-run"]) == 2
    assert "--insecure" in capsys.readouterr().err
    assert main(["serve", str(recipe), "--dry-run", "--insecure"]) == 0
    out = capsys.readouterr().out
    assert "'body_bytes': 33554432" in out and "keys: none" in out
    monkeypatch.setenv(VARIABLE, f"team={A}")
    assert main(["serve", str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "keys: ['team']" in out and A not in out and hashed(A) not in out
    monkeypatch.setenv(VARIABLE, A)
    assert main(["serve", str(recipe), "--dry-run"]) == 2
    assert A not in capsys.readouterr().err


def test_a_rate_without_keys_is_refused(tmp_path):
    with pytest.raises(UserError, match="rate_limit_pairs_per_minute is for each API key"):
        job.plan(serve_job(tmp_path, rate_limit_pairs_per_minute=5))


def test_the_keys_file_is_no_input_of_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text("job: serve\nrun_dir: out\nserving: {keys_file: k}\n")
    config = load_config("r.yaml")
    assert config.serving.keys_file == str(tmp_path / "k")
    assert "serving.keys_file" not in dict(input_paths(config))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("max_body_bytes", ["0", "-1", "1023", "1e99", ".nan", ".inf", "many", "true", "[]", "{}", "2.5", 2**31]),
        ("receive_timeout_s", ["0", "-1", ".nan", ".inf", "1e12", "soon", "false", "[1]"]),
        ("max_documents", ["0", "1001", "-5", ".inf", "all", "true"]),
        ("max_document_chars", ["0", "-1", ".nan", "long", 2**40, 10**30]),
        ("max_query_chars", ["0", "-1", ".nan", "long", 2**40]),
        ("allowed_hosts", ["5", "[5]", "[a b]", "['']", "[null]", "[a:80]", "[http://a]", "[a, A]", "[[a]]", "{a: b}"]),
        ("keys_file", ["''", "' '", "s3://bucket/keys", "5", "[a]", "true", f"'{'x' * 300}'"]),
        ("rate_limit_pairs_per_minute", ["0", "-1", ".inf", ".nan", "fast", "true", 10**12]),
    ],
)
def test_garbage_in_the_recipe(tmp_path, monkeypatch, key, values):
    monkeypatch.chdir(tmp_path)
    for value in values:
        (tmp_path / "r.yaml").write_text(f"job: serve\nrun_dir: out\nserving: {{{key}: {value}}}\n")
        with pytest.raises(UserError) as caught:
            load_config("r.yaml")
        assert f"serving.{key}" in str(caught.value), (value, str(caught.value))
        assert str(caught.value).startswith("r.yaml:")
        assert "\n" not in str(caught.value)
    # null unsets a key.
    (tmp_path / "r.yaml").write_text(f"job: serve\nrun_dir: out\nserving: {{{key}: null}}\n")
    assert load_config("r.yaml").serving == ServingConfig()
