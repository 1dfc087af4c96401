"""The access log: what a line says, what it never says, and a file that cannot be written."""

import asyncio
import json
import logging
import os
import re

import httpx
import pytest

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.config.recipe import input_paths, load_config
from limrank.errors import UserError
from limrank.serving import access_log
from limrank.serving.access_log import AccessLog, check_path
from limrank.serving.api import build_api
from limrank.serving.protocol import Served

SERVED = Served.of(ModelConfig(id="served"), ScoringConfig(mode="direct"))
BODY = {"query": "secretquery", "documents": ["secretdocument", "b"]}


@pytest.fixture(autouse=True)
def logger():
    """The logger as it was."""
    logger = access_log.LOGGER
    before = logger.handlers, logger.propagate, logger.level
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def answers(*requests, path=None, backend=None):
    """The answers to requests, each (method, path, arguments), of a server with an access log."""

    async def go():
        api = build_api(backend or EngineBackend(), SERVED, observers=[AccessLog(path)])
        transport = httpx.ASGITransport(api, raise_app_exceptions=False, client=("192.0.2.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.request(method, where, **arguments) for method, where, arguments in requests]

    return asyncio.run(go())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


RERANK = ("POST", "/v1/rerank", {"json": BODY, "headers": {"X-Request-Id": "r-1"}})


def test_a_line_says_who_asked_what_it_cost_and_how_it_ended(tmp_path):
    (answer,) = answers(RERANK, path=str(tmp_path / "access.log"))
    usage = answer.json()["usage"]
    (line,) = lines(tmp_path / "access.log")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 < line.pop("milliseconds") < 60_000
    assert line == {
        "request_id": "r-1",
        "key": None,
        "client": "192.0.2.7",
        "method": "POST",
        "path": "/v1/rerank",
        "status": 200,
        "error": None,
        "mode": "direct",
        "pairs": 2,
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "generated_tokens": 2,
        "bytes_in": len(answer.request.content),
        "bytes_out": len(answer.content),
    }
    assert answer.headers["x-request-id"] == "r-1"


def test_an_error_has_its_code(tmp_path):
    class Broken(EngineBackend):
        async def score(self, query, texts, options=None):
            raise ZeroDivisionError

    requests = [("POST", "/v1/rerank", {"content": b"{nope"}), ("GET", "/nowhere", {}), RERANK]
    answers(*requests, path=str(tmp_path / "access.log"), backend=Broken())
    found = [(line["status"], line["error"], line["pairs"]) for line in lines(tmp_path / "access.log")]
    assert found == [(400, "invalid_json", 0), (404, "unknown_path", 0), (500, "internal_error", 2)]


def test_a_line_has_no_text_no_header_and_no_key(tmp_path):
    requests = [
        ("POST", "/v1/rerank?q=secretparameter", {"json": BODY, "headers": {"Authorization": "Bearer secretkey"}}),
        ("POST", "/v1/rerank", {"json": BODY | {"model": "secretmodel"}, "headers": {"Cookie": "secretcookie"}}),
        ("POST", "/v1/rerank", {"content": b'{"query": "secretquery'}),
    ]
    answers(*requests, path=str(tmp_path / "access.log"))
    text = (tmp_path / "access.log").read_text()
    assert len(text.splitlines()) == 3
    assert "secret" not in text.lower()


def test_a_path_forges_no_line_and_is_cut(tmp_path):
    answers(
        ("GET", "/a%0A%7B%22status%22:200%7D", {}), ("GET", "/" + "b" * 5000, {}), path=str(tmp_path / "access.log")
    )
    forged, long = lines(tmp_path / "access.log")
    assert forged["path"] == '/a\n{"status":200}'
    assert len(long["path"]) == 256


def test_a_rotated_file_is_opened_again(tmp_path):
    path = tmp_path / "access.log"
    answers(RERANK, path=str(path))
    os.replace(path, tmp_path / "access.log.1")
    handler = access_log.LOGGER.handlers[0]
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"msg": '{"n": 1}'}))
    assert len(lines(tmp_path / "access.log.1")) == 1
    assert lines(path) == [{"n": 1}] * 2


def test_a_full_disk_fails_no_request_and_is_said_once_a_minute(caplog):
    with caplog.at_level("WARNING", logger="ray.serve"):
        found = answers(*[RERANK] * 50, path="/dev/full")
    assert [answer.status_code for answer in found] == [200] * 50
    assert [record.message for record in caplog.records] == [
        "the access log cannot be written: [Errno 28] No space left on device"
    ]


def test_a_folder_that_vanished_fails_no_request(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    answers(RERANK, path=str(folder / "access.log"))
    (folder / "access.log").unlink()
    folder.rmdir()
    handler = access_log.LOGGER.handlers[0]
    handler.handle(logging.makeLogRecord({"msg": "{}"}))
    folder.mkdir()
    handler.handle(logging.makeLogRecord({"msg": "{}"}))
    assert lines(folder / "access.log") == [{}]


def test_without_a_file_a_program_may_give_the_logger_a_handler(caplog):
    answers(RERANK)
    assert not caplog.records
    with caplog.at_level("INFO", logger="limrank.access"):
        answers(RERANK)
    (record,) = caplog.records
    assert json.loads(record.message)["status"] == 200


def test_a_failing_observer_fails_no_request(caplog):
    def broken(record):
        raise ZeroDivisionError

    async def go():
        api = build_api(EngineBackend(), SERVED, observers=[broken])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as http:
            return (await http.post("/v1/rerank", json=BODY)).status_code

    assert asyncio.run(go()) == 200
    assert "a request was not recorded" in caplog.text


# ---- the key -------------------------------------------------------------------------


def recipe(tmp_path, value):
    path = tmp_path / "r.yaml"
    path.write_text(f"job: serve\nrun_dir: out\nserving: {{access_log: {value}}}\n")
    return str(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("''", "is empty; null unsets a key"),
        ("s3://bucket/log", "should be a local file"),
        ("true", "should be a valid string"),
        ("7", "should be a valid string"),
        ("[a]", "should be a valid string"),
        (".nan", "nan is not a finite number"),
        ('"a\\0b"', "holds a NUL or half a character, which is no text"),
        ("x" * 300, "is no path: a file's name has at most 255 bytes"),
    ],
)
def test_a_bad_value_is_one_line(tmp_path, value, message):
    with pytest.raises(UserError) as raised:
        load_config(recipe(tmp_path, value), [], "serve")
    assert "serving.access_log" in str(raised.value) and message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_path_is_absolute_and_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(recipe(tmp_path, "logs/access.log"), [], "serve")
    assert config.serving.access_log == str(tmp_path / "logs" / "access.log")
    assert input_paths(config) == []
    assert load_config(recipe(tmp_path, "null"), [], "serve").serving.access_log is None


def test_a_file_that_cannot_be_written_is_refused_before_the_start(tmp_path):
    check_path(str(tmp_path / "new.log"))
    assert not (tmp_path / "new.log").exists()
    (tmp_path / "file").touch()
    check_path(str(tmp_path / "file"))
    check_path("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    refused = {
        tmp_path: "is not a file",
        tmp_path / "pipe": "is not a file",
        tmp_path / "none" / "a.log": f"{tmp_path / 'none'} is not a directory that is there",
        tmp_path / "file" / "a.log": "Not a directory",
    }
    for path, message in refused.items():
        with pytest.raises(UserError) as raised:
            check_path(str(path))
        assert str(raised.value) == f"serving.access_log {path}: {message}"
