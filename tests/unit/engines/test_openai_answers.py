"""What endpoints send that is not as documented: each is a retry, a row's failure in the
provider's own words, a refusal, or of no matter. Over a real HTTP server."""

import asyncio
import gzip
import json
import math
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from helpers.endpoint import HELLO, USAGE, asked, check, generate, labels, logprobs_answer, sse, stream
from limrank.engines import meter, retries
from limrank.errors import EndpointError, LimrankError, RowError, UserError

CHAT = [{"role": "user", "content": "hi"}]


def choice(**fields):
    return HELLO | {"choices": [{"index": 0, "text": " hello", "finish_reason": "stop"} | fields]}


def message(**fields):
    return {"choices": [{"index": 0, "message": {"role": "assistant"} | fields, "finish_reason": "stop"}]}


def raw(status, body, headers=(), kind="application/json"):
    """An answer of these bytes, as they are."""

    def answer(handler):
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def outcome(call):
    try:
        return call()
    except LimrankError as error:
        return error


# ---- waiting -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "header",
    [
        {"Retry-After": "1"},
        {"Retry-After": "1.0"},
        {"retry-after-ms": "1000"},
        {"x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-requests": "0"},
    ],
)
def test_it_waits_as_requested_and_no_attempt_is_counted(endpoint, monkeypatch, status, header):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    short = header | {name: "150" if name.endswith("-ms") else "0.15" for name in header if "remaining" not in name}
    endpoint.answers = [raw(status, {"error": {"message": "slow down"}}, short)] * 7 + [(200, HELLO)]
    started = time.monotonic()
    assert generate(endpoint.url).text == " hello"
    assert time.monotonic() - started >= 7 * 0.15
    assert len(endpoint.requests) == 8


def test_the_whole_engine_waits(endpoint):
    at = []

    def busy(handler):
        at.append(time.monotonic())
        raw(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})(handler)

    def well(handler):
        at.append(time.monotonic())
        handler.send(200, "application/json", HELLO)

    endpoint.answers = [busy, well]

    async def ask(engine):
        first = asyncio.create_task(engine.generate("a", max_tokens=1))
        await asyncio.sleep(0.3)
        await asyncio.gather(first, *(engine.generate("b", max_tokens=1) for _ in range(5)))

    asked(endpoint.url, ask)
    assert len(at) == 7
    assert min(at[1:]) - at[0] >= 0.99


def test_an_endpoint_that_stays_busy_ends_the_job_and_fails_no_row(endpoint):
    endpoint.answers = [raw(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})]
    with pytest.raises(
        EndpointError, match=r"asks to wait for 1 s more, beyond engine.request_timeout_s \(1.5 s\): slow"
    ):
        generate(endpoint.url, request_timeout_s=1.5)
    assert len(endpoint.requests) == 2


def test_a_wait_of_hours_is_refused_at_once(endpoint):
    endpoint.answers = [raw(429, {"error": {"message": "for today"}}, {"Retry-After": "7200"})]
    started = time.monotonic()
    with pytest.raises(EndpointError, match="asks to wait for 7200 s more"):
        generate(endpoint.url)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("value", ["soon", "-5", "NaN", "inf", "1e999", "", "0", "9" * 500, "1e20", "٣"])
def test_a_wait_that_is_none_is_left_out(value):
    assert retries.requested_wait({"Retry-After": value}) is None
    assert retries.requested_wait({"retry-after-ms": value}) is None
    assert retries.requested_wait({"x-ratelimit-reset-tokens": value}) is None


def test_waits_are_read_in_every_form():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert retries.requested_wait({"Retry-After": "15"}) == 15
    assert retries.requested_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retries.requested_wait({"retry-after": format_datetime(soon, usegmt=True)}) == pytest.approx(30, abs=2)
    assert retries.requested_wait({"retry-after": format_datetime(soon - timedelta(days=1), usegmt=True)}) is None
    assert retries.requested_wait({"x-ratelimit-reset-requests": "1m30.5s"}) == 90.5
    assert retries.requested_wait({"x-ratelimit-reset-requests": "20ms"}) == 0.02
    used_up = {
        "x-ratelimit-reset-requests": "9s",
        "x-ratelimit-remaining-requests": "3",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert retries.requested_wait(used_up) == 2
    assert retries.requested_wait({"X-RateLimit-Reset": str(int((time.time() + 20) * 1000))}) == pytest.approx(
        20, abs=1
    )
    assert retries.requested_wait({}) is None


# ---- errors in a 200 -----------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "slow down", "code": 429}},
        {"error": {"message": "slow down", "code": "429"}},
        {"error": {"message": "slow down", "type": "rate_limit_exceeded", "code": None}},
        {"error": {"message": "down", "code": 502, "metadata": {"raw": "upstream"}}},
        {"error": "overloaded"},
        {"object": "error", "message": "slow down", "type": "internal_error", "code": 500},
        {"detail": "try again"},
        {"message": "try again"},
        [{"error": {"message": "slow down", "code": 429, "status": "RESOURCE_EXHAUSTED"}}],
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": {}},
        {},
        choice(text=None),
        choice(text=7),
        choice(finish_reason="error"),
        choice(error={"message": "down", "code": 502}),
        "",
    ],
    ids=str,
)
def test_a_passing_error_in_a_200_is_asked_again(endpoint, body):
    endpoint.answers = [raw(200, body), (200, HELLO)]
    assert generate(endpoint.url).text == " hello"
    assert len(endpoint.requests) == 2
    endpoint.answers = [raw(200, body)]
    assert isinstance(outcome(lambda: generate(endpoint.url)), RowError)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"error": {"message": "too long for us", "code": 400}}, RowError, "answered 400: too long for us"),
        ({"error": {"message": "flagged", "type": "invalid_request_error"}}, RowError, "flagged"),
        ({"object": "error", "message": "too long", "code": 400}, RowError, "too long"),
        ({"error": {"message": "no credits", "code": 402}}, EndpointError, "no credits"),
        ({"error": {"message": "who are you", "type": "authentication_error"}}, EndpointError, "who are you"),
        ({"error": {"message": "no quota", "code": "insufficient_quota"}}, EndpointError, "no quota"),
        (choice(finish_reason="content_filter"), RowError, "content filter"),
        ("<html>login</html>", EndpointError, "does not answer as an OpenAI endpoint: '<html>login"),
        ("[" * 50000, EndpointError, "does not answer as an OpenAI endpoint"),
    ],
    ids=str,
)
def test_a_lasting_error_in_a_200_is_reported_in_the_providers_words(endpoint, body, kind, words):
    endpoint.answers = [raw(200, body)]
    found = outcome(lambda: generate(endpoint.url))
    assert type(found) is kind
    assert words in str(found)
    assert len(endpoint.requests) == 1


def test_a_long_message_is_cut(endpoint):
    endpoint.answers = [(400, {"error": {"message": "too long " * 20000}})]
    found = outcome(lambda: generate(endpoint.url))
    assert isinstance(found, RowError) and len(str(found)) < 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": "text"}, "answered 400: text"),
        ({"detail": [{"loc": ["body", "n"], "msg": "Input should be 1"}]}, "answered 400: body.n: Input should be 1"),
        ({"message": "no"}, "answered 400: no"),
        ("plain words", "answered 400: plain words"),
        ("", "answered 400: status 400, without a word"),
        (None, "answered 400: "),
        (7, "answered 400: 7"),
    ],
    ids=str,
)
def test_an_errors_words_are_found(endpoint, body, words):
    endpoint.answers = [raw(400, body)]
    assert words in str(outcome(lambda: generate(endpoint.url)))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": "yes"}, "yes"),
        ({"content": [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]}, "yes"),
        ({"content": ["y", "es"]}, "yes"),
        ({"content": None, "reasoning": "so"}, ""),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "a",
        ),
        ({"content": "yes", "refusal": None}, "yes"),
    ],
    ids=str,
)
def test_the_content_of_a_message_is_read(endpoint, fields, text):
    endpoint.answers = [raw(200, message(**fields))]
    assert generate(endpoint.url, CHAT).text == text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (message(content=None, refusal="I can not help with that"), "refused: I can not help"),
        (message(content=[{"type": "refusal", "refusal": "no"}]), "refused: no"),
        (message(content=None), "content is null"),
        (message(content=7), "content is int"),
        ({"choices": [{"message": None}]}, "without a message"),
        ({"choices": [{"message": "yes"}]}, "without a message"),
    ],
    ids=str,
)
def test_a_message_without_text_is_a_failed_row(endpoint, body, words):
    endpoint.answers = [raw(200, body)]
    found = outcome(lambda: generate(endpoint.url, CHAT))
    assert isinstance(found, RowError) and words in str(found)


# ---- what is needless ----------------------------------------------------------------

STRANGE = [None, "3", 3.7, -3, math.nan, math.inf, True, [], {}, "many", 1e300]


@pytest.mark.parametrize("value", STRANGE, ids=str)
def test_token_counts_are_never_a_reason_to_lose_a_score(endpoint, value):
    top = {" true": -2.0, " false": -3.0}
    for usage in (value, {"prompt_tokens": value, "completion_tokens": value, "prompt_tokens_details": value}):
        for details in (usage, USAGE | {"prompt_tokens_details": {"cached_tokens": value}}):
            endpoint.answers = [raw(200, logprobs_answer(top) | {"usage": details, "id": value, "model": value})]
            with meter() as spent:
                assert labels(endpoint.url) == top
            assert spent.requests == 1 and spent.prompt in (0, 3) and spent.cached_prompt in (0, 1, 3)


@pytest.mark.parametrize("reason", [None, "", 7, [], "stop"])
def test_a_reason_of_another_kind_is_an_end(endpoint, reason):
    endpoint.answers = [raw(200, choice(finish_reason=reason))]
    assert generate(endpoint.url).finish_reason == "stop"


@pytest.mark.parametrize("kind", ["text/plain", "application/json; charset=latin-1", "text/html", "nonsense"])
def test_a_wrong_content_type_is_no_matter(endpoint, kind):
    endpoint.answers = [raw(200, HELLO, kind=kind)]
    assert generate(endpoint.url).text == " hello"


# ---- log-probabilities ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("logprobs", "found"),
    [
        ({"top_logprobs": [{" true": "-2.0", " false": -3}]}, True),
        ({"top_logprobs": {" true": -2.0, " false": -3.0}}, True),
        ({"top_logprobs": [[{"token": " true", "logprob": -2.0}, {"token": " false", "logprob": -3.0}]]}, True),
        (
            {"content": [{"top_logprobs": [{"token": " true", "logprob": -2}, {"token": " false", "logprob": -3}]}]},
            True,
        ),
        (
            {
                "content": [
                    {
                        "top_logprobs": [
                            {"token": "Ġtrue", "logprob": -2, "bytes": list(b" true")},
                            {"token": " false", "logprob": -3, "bytes": None},
                            {"token": " false", "logprob": -9},
                            {"token": ["?"], "logprob": -9, "bytes": [999]},
                            None,
                        ]
                    }
                ]
            },
            True,
        ),
        (None, False),
        ([], False),
        ({}, False),
        ({"content": None}, False),
        ({"content": []}, False),
        ({"content": [{"top_logprobs": None}]}, False),
        ({"top_logprobs": None}, False),
        ({"top_logprobs": [None]}, False),
        ({"top_logprobs": [{" true": None, " false": -3}]}, False),
        ({"top_logprobs": [{" true": math.nan, " false": -3}]}, False),
        ({"top_logprobs": [{" true": -math.inf, " false": -3}]}, False),
        ({"top_logprobs": [{" true": 5, " false": -3}]}, False),
        ({"top_logprobs": [{" true": True, " false": -3}]}, False),
        ({"top_logprobs": [{" true": "x", " false": -3}]}, False),
    ],
    ids=str,
)
def test_log_probabilities_of_every_shape(endpoint, logprobs, found):
    endpoint.answers = [raw(200, choice(logprobs=logprobs))]
    answer = outcome(lambda: labels(endpoint.url))
    if found:
        assert answer == {" true": -2.0, " false": -3.0}
    else:
        assert isinstance(answer, RowError) and "log-probabilities" in str(answer)


def test_tokens_that_are_returned_as_ids_are_read(endpoint):
    class Numbered:
        def decode(self, ids):
            return {5: " true", 6: " false"}[ids[0]]

    async def call(engine):
        engine.tokenizer = Numbered()
        return await engine.label_logprobs("x", (" true", " false"))

    endpoint.answers = [(200, logprobs_answer({"token_id:5": -2.0, "token_id:6": -3.0}))]
    assert asked(endpoint.url, call) == {" true": -2.0, " false": -3.0}


# ---- parameters ----------------------------------------------------------------------


def picky(refuses, text=" hello"):
    """Answers 400 to a request that ``refuses`` gives a message for."""

    def answer(handler):
        body = handler.server.requests[-1][2]
        words = refuses(body)
        handler.send(
            400 if words else 200, "application/json", {"error": {"message": words}} if words else choice(text=text)
        )

    return answer


def refuses(name, words, when=lambda value: True):
    return picky(lambda body: words if name in body and when(body[name]) else None)


def twice(url, **options):
    async def call(engine):
        return [(await engine.generate("x", max_tokens=5, **options)).text for _ in range(2)]

    return asked(url, call)


@pytest.mark.parametrize(
    ("name", "words", "options"),
    [
        (
            "max_tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'",
            {},
        ),
        (
            "temperature",
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1)",
            {},
        ),
        ("top_p", "Unsupported parameter: 'top_p'", {}),
        ("seed", "Unknown parameter: 'seed'", {"seed": 1}),
        ("stop", "Unsupported parameter: 'stop' is not supported with this model.", {"stop": ["!"]}),
        ("response_format", "This response_format type is unavailable: unsupported", {"schema": {"type": "object"}}),
    ],
)
def test_what_an_endpoint_takes_is_learnt_once(endpoint, name, words, options):
    endpoint.answers = [refuses(name, words)]
    assert twice(endpoint.url, **options) == [" hello", " hello"]
    bodies = [body for *_, body in endpoint.requests]
    assert [name in body for body in bodies] == [True, False, False]
    if name == "max_tokens":
        assert [body.get("max_completion_tokens") for body in bodies] == [None, 5, 5]


def test_the_text_is_truncated_at_a_stop_that_the_endpoint_ignores(endpoint):
    endpoint.answers = [picky(lambda body: "unsupported parameter: stop" if "stop" in body else None, " a! b! c")]
    assert twice(endpoint.url, stop=["!"]) == [" a", " a"]


def test_all_that_are_in_flight_learn(endpoint):
    endpoint.answers = [refuses("max_tokens", "use max_completion_tokens")]

    async def call(engine):
        return await asyncio.gather(*(engine.generate("x", max_tokens=5) for _ in range(10)))

    assert len(asked(endpoint.url, call)) == 10


def test_a_top_p_of_the_recipe_is_not_left_out(endpoint):
    endpoint.answers = [refuses("top_p", "Unsupported parameter: 'top_p'")]
    with pytest.raises(EndpointError, match="does not give the recipe's top_p: Unsupported"):
        twice(endpoint.url, top_p=0.5)


def test_an_endpoint_that_allows_fewer_log_probabilities_is_asked_for_fewer(endpoint):
    top = logprobs_answer({" true": -2.0, " false": -3.0})

    def answer(handler):
        most = handler.server.requests[-1][2]["logprobs"] <= 5
        words = "Invalid value for 'logprobs': must be less than or equal to 5"
        handler.send(200 if most else 400, "application/json", top if most else {"error": {"message": words}})

    endpoint.answers = [answer]
    assert labels(endpoint.url) == {" true": -2.0, " false": -3.0}
    assert [body["logprobs"] for *_, body in endpoint.requests] == [20, 5]


def test_an_endpoint_without_log_probabilities_ends_the_job(endpoint):
    endpoint.answers = [refuses("logprobs", "logprobs is not supported by this model")]
    with pytest.raises(EndpointError, match="does not give log-probabilities, .*: logprobs is not supported"):
        labels(endpoint.url)


def test_a_prompt_that_is_too_long_teaches_nothing(endpoint):
    words = "'max_tokens' is too large: 5. This model's maximum context length is 4096 tokens"
    endpoint.answers = [(400, {"error": {"message": words, "param": "max_tokens"}})]
    assert isinstance(outcome(lambda: generate(endpoint.url)), RowError)
    assert len(endpoint.requests) == 1


# ---- connections ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        raw(200, b"no gzip at all", {"Content-Encoding": "gzip"}),
        raw(200, gzip.compress(json.dumps(HELLO).encode())[:20], {"Content-Encoding": "gzip"}),
        raw(200, b"{}", {"Content-Length": "1000"}),
        raw(200, b"zz\r\n{}", {"Transfer-Encoding": "chunked"}),
        raw(302, b"", {"Location": "/login"}),
        raw(302, b""),
        raw(307, b"", {"Location": "http://[bad"}),
        raw(204, b""),
        raw(200, b"\xff\xfe\x00"),
    ],
    ids=range(9),
)
def test_a_broken_answer_is_an_error_of_ours(endpoint, answer):
    endpoint.answers = [answer]
    for call in (lambda: generate(endpoint.url), lambda: stream(endpoint.url)):
        found = outcome(call)
        assert isinstance(found, LimrankError) or found == ([], found[1])


# ---- streams -------------------------------------------------------------------------


def piece(text):
    return {"choices": [{"index": 0, "text": text}]}


@pytest.mark.parametrize(
    "events",
    [
        sse(piece(" a"), piece("b")),
        ": keep-alive\n\n"
        + sse({"id": 1}, {"choices": []}, {"choices": None}, piece(" a"), piece(None), piece("b"), "[DONE]"),
        "event: completion\nid: 1\n" + sse(piece(" a")).replace("data: ", "data:") + sse(piece("b"), "[DONE]"),
        sse(piece(" ab"), {"choices": [], "usage": "many"}, "[DONE]"),
        sse(piece(" ab")).replace("\n", "\r\n"),
        json.dumps(choice(text=" ab")),
    ],
    ids=range(6),
)
def test_a_stream_of_another_shape_is_read(endpoint, events):
    kind = "application/json" if events.startswith("{") else "text/event-stream"
    endpoint.answers = [raw(200, events, kind=kind)]
    pieces, _ = stream(endpoint.url)
    assert "".join(pieces) == " ab"


@pytest.mark.parametrize(
    "event",
    [
        {"error": "out of memory"},
        {"error": {"message": "out of memory", "code": 500}},
        {"message": "out of memory"},
        "nonsense",
        "[1]",
    ],
    ids=str,
)
def test_an_error_in_a_stream_is_a_failed_row(endpoint, event):
    endpoint.answers = [raw(200, sse(piece(" a"), event), kind="text/event-stream")]
    with pytest.raises(RowError, match="broke off: (out of memory|an event)"):
        stream(endpoint.url)


def test_a_stream_that_begins_with_an_error_is_asked_again(endpoint):
    endpoint.answers = [
        raw(200, {"error": {"message": "busy", "code": 429}}),
        raw(200, sse(piece("b")), kind="text/event-stream"),
    ]
    assert stream(endpoint.url)[0] == ["b"]


# ---- /models -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"id": "small"}]},
        {"data": [{"name": "small"}, None, 7, {"id": None}]},
        {"data": ["small"]},
        {"data": {"id": "small"}},
        {"data": {"small": {}}},
        {"models": [{"name": "small:latest", "model": "small:latest"}]},
        ["small"],
        [{"id": "small"}],
        {"data": None},
        {"data": []},
        {"data": 7},
        {"data": [{"object": "model"}]},
        {"object": "list"},
        {},
    ],
    ids=str,
)
def test_a_list_of_models_of_any_shape_is_read(endpoint, body):
    endpoint.answers = [raw(200, body)]
    assert check(endpoint.url) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            raw(200, {"data": [{"id": f"m{number}"} for number in range(5000)]}),
            "has no model 'small'; it serves m0, m1",
        ),
        (raw(200, {"data": ["x" * 100000]}), "has no model 'small'; it serves xxx"),
        (raw(200, {"error": {"message": "who", "code": 401}}), "answered 401: who"),
        (raw(200, "<html>login</html>", kind="text/html"), "does not answer as an OpenAI endpoint: '<html>login"),
        (raw(200, ""), "does not answer as an OpenAI endpoint"),
        (raw(200, "7"), "does not answer as an OpenAI endpoint"),
        (raw(200, "[" * 50000), "does not answer as an OpenAI endpoint"),
        (raw(500, "x" * 100000), "answered 500: xxx"),
        (raw(503, "", {"Retry-After": "100"}), "answered 503"),
        (raw(403, {"detail": "no"}), "answered 403: no"),
        (raw(302, b""), "answered 302"),
        (raw(200, b"no gzip at all", {"Content-Encoding": "gzip"}), "cannot be reached"),
    ],
    ids=range(12),
)
def test_a_malformed_list_of_models_is_refused_in_one_line(endpoint, answer, words):
    endpoint.answers = [answer]
    with pytest.raises(UserError) as refused:
        check(endpoint.url)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 1500 and "\n" not in str(refused.value)
