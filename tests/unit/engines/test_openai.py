"""The OpenAI engine against a small real HTTP server that answers as it is told."""

import socket
import time
import traceback

import pytest

from helpers.endpoint import HELLO, USAGE, asked, check, generate, labels, logprobs_answer, sse, stream
from limrank.engines import meter
from limrank.engines.base import matched_stop
from limrank.errors import EndpointError, RowError, UserError

KEY = "sk-a-very-secret-key"
MODELS = {"object": "list", "data": [{"id": "small", "object": "model"}]}


def error_body(message):
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def test_an_answer_is_read(endpoint):
    answer = generate(endpoint.url)
    assert answer.text == " hello"
    assert (answer.finish_reason, answer.prompt_tokens, answer.generated_tokens) == ("stop", 3, 2)
    path, _, body = endpoint.requests[0]
    assert path == "/v1/completions"
    assert body == {"model": "small", "prompt": "hi", "max_tokens": 2, "temperature": 0.0, "top_p": 1.0}


def test_chat_messages_go_to_the_chat_endpoint(endpoint):
    message = {"role": "assistant", "content": "hello"}
    endpoint.answers = [
        (200, {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": USAGE})
    ]
    answer = generate(endpoint.url, [{"role": "user", "content": "hi"}])
    assert (answer.text, answer.finish_reason) == ("hello", "length")
    assert endpoint.requests[0][0] == "/v1/chat/completions"


def test_cached_tokens_are_counted(endpoint):
    usage = USAGE | {"prompt_tokens_details": {"cached_tokens": 1}}
    endpoint.answers = [(200, HELLO | {"usage": usage})]
    with meter() as spent:
        assert generate(endpoint.url).cached_tokens == 1
    assert (spent.requests, spent.prompt, spent.cached_prompt, spent.generated) == (1, 3, 1, 2)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(endpoint, status):
    endpoint.answers = [(status, error_body("busy")), (status, error_body("busy")), (200, HELLO)]
    assert generate(endpoint.url).text == " hello"
    assert len(endpoint.requests) == 3


def test_a_lasting_failure_is_given_up(endpoint):
    endpoint.answers = [(500, error_body("on fire"))]
    with pytest.raises(RowError, match="failed 5 times: .*on fire") as failed:
        generate(endpoint.url)
    assert failed.value.retryable
    assert len(endpoint.requests) == 5


def test_a_bad_request_is_not_tried_again(endpoint):
    endpoint.answers = [(400, error_body("the prompt is too long"))]
    with pytest.raises(RowError, match="400: .*the prompt is too long") as refused:
        generate(endpoint.url)
    assert not refused.value.retryable
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_row_can_mend_is_an_endpoint_error(endpoint, status):
    endpoint.answers = [(status, error_body("no"))]
    with pytest.raises(EndpointError, match=f"answered {status}"):
        generate(endpoint.url)
    assert len(endpoint.requests) == 1


def test_the_key_comes_from_the_environment_and_is_never_printed(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    endpoint.answers = [(401, error_body(f"no such key: {KEY}"))]
    with pytest.raises(EndpointError) as refused:
        generate(endpoint.url, api_key_env="MY_KEY")
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {KEY}"
    assert "no such key: ***" in str(refused.value)
    assert KEY not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("answer", [(400, error_body(f"bad key {KEY}")), (500, error_body(f"bad key {KEY}"))])
def test_the_key_is_not_in_a_failed_row(endpoint, monkeypatch, answer):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint.answers = [answer]
    with pytest.raises(RowError) as refused:
        generate(endpoint.url)
    assert KEY not in "".join(traceback.format_exception(refused.value))


def test_a_timeout_is_tried_again(endpoint):
    def too_late(handler):
        time.sleep(1)
        handler.send(200, "application/json", HELLO)

    endpoint.answers = [too_late, (200, HELLO)]
    assert generate(endpoint.url, request_timeout_s=0.3).text == " hello"
    assert len(endpoint.requests) == 2


def test_a_lost_connection_is_tried_once_more(endpoint):
    endpoint.answers = [lambda handler: None, (200, HELLO)]
    assert generate(endpoint.url).text == " hello"
    endpoint.answers = [lambda handler: None]
    with pytest.raises(EndpointError, match="is gone"):
        generate(endpoint.url)
    assert len(endpoint.requests) == 4


def test_no_one_there_is_an_endpoint_error_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    started = time.monotonic()
    with pytest.raises(EndpointError, match="is gone"):
        generate(url)
    assert time.monotonic() - started < 3


def test_a_page_that_is_no_answer_is_an_endpoint_error(endpoint):
    endpoint.answers = [(200, "<html>Welcome</html>")]
    with pytest.raises(EndpointError, match="does not answer as an OpenAI endpoint: '<html>Welcome"):
        generate(endpoint.url)


# ---- streams --------------------------------------------------------------------------


def text_event(text):
    return {"choices": [{"index": 0, "text": text, "finish_reason": None}]}


def test_a_stream_is_read_and_counted(endpoint):
    events = sse(text_event(" hel"), text_event("lo"), {"choices": [], "usage": USAGE}, "[DONE]")
    endpoint.answers = [lambda handler: handler.send(200, "text/event-stream", events)]
    pieces, usage = stream(endpoint.url)
    assert pieces == [" hel", "lo"]
    assert (usage.requests, usage.prompt, usage.generated) == (1, 3, 2)


def test_a_stream_that_tells_an_error_is_a_failed_row(endpoint):
    events = sse(text_event(" hel"), {"error": {"message": "out of memory", "type": "x", "code": 500}})
    endpoint.answers = [lambda handler: handler.send(200, "text/event-stream", events)]
    with pytest.raises(RowError, match="out of memory") as failed:
        stream(endpoint.url)
    assert failed.value.retryable


def test_a_stream_that_breaks_off_is_a_failed_row(endpoint):
    def half(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(sse(text_event(" hel")).encode())

    endpoint.answers = [half]
    with pytest.raises(RowError, match="broke off") as failed:
        stream(endpoint.url)
    assert failed.value.retryable


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_a_chain_in_a_separate_field_is_kept(endpoint, field):
    message = {"role": "assistant", "content": "true", field: "It fits."}
    endpoint.answers = [
        (200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}),
        (200, {"choices": [{"index": 0, "message": {"content": "true"}, "finish_reason": "stop"}], "usage": USAGE}),
    ]
    asked = [generate(endpoint.url, [{"role": "user", "content": "hi"}]) for _ in range(2)]
    assert [(each.text, each.reasoning) for each in asked] == [("true", "It fits."), ("true", None)]


# ---- labels ---------------------------------------------------------------------------


def test_label_logprobs_are_read_from_the_top(endpoint):
    endpoint.answers = [(200, logprobs_answer({" a": -0.5, " true": -2.0, " false": -3.0}))]
    assert labels(endpoint.url) == {" true": -2.0, " false": -3.0}
    assert endpoint.requests[0][2]["logprobs"] == 20


def test_label_logprobs_of_a_chat(endpoint):
    top = [
        {"token": token, "logprob": logprob, "bytes": None} for token, logprob in [(" true", -2.0), (" false", -3.0)]
    ]
    content = [{"token": " true", "logprob": -2.0, "bytes": None, "top_logprobs": top}]
    message = {"role": "assistant", "content": " true"}
    choice = {"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}}
    endpoint.answers = [(200, {"choices": [choice], "usage": USAGE})]
    assert labels(endpoint.url, [{"role": "user", "content": "hi"}]) == {" true": -2.0, " false": -3.0}


def test_a_label_that_is_not_given_is_no_number(endpoint):
    endpoint.answers = [(200, logprobs_answer({" a": -0.5, " true": -2.0}))]
    with pytest.raises(RowError, match=r"\[' false'\] are not among the endpoint's top 2"):
        labels(endpoint.url)


def test_an_endpoint_without_logprobs_is_no_number(endpoint):
    with pytest.raises(RowError, match="gives no log-probabilities"):
        labels(endpoint.url)


# ---- stops ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "stops", "message"),
    [
        ("A chain.", {}, ["</think>"], "</think>"),  # most endpoints do not say what stopped them
        ("A chain.", {"stop_reason": "</think>"}, ["</think>"], "</think>"),
        ("A chain.", {"stop_reason": 7}, ["</think>"], "</think>"),  # vLLM, of a stop that is a token
        ("A chain.", {"stop_reason": 151643}, ["</think>"], None),  # vLLM, of another end of the model's
        ("A chain.", {"stop_reason": "eos"}, ["</think>"], None),
        ("A chain.", {"matched_stop": "</think>"}, ["</think>"], "</think>"),  # SGLang
        ("A chain.", {"matched_stop": 151643}, ["</think>"], None),
        ("A chain.", {"stop_reason": False}, ["</think>"], "</think>"),  # which says nothing
        ("A chain.", {"stop_reason": ""}, ["</think>"], "</think>"),
        ("A chain.", {"stop_reason": None}, ["</think>"], None),  # vLLM, of the model's own end
        ("A chain.", {"stop_reason": {}}, ["</think>"], "</think>"),  # which says nothing
        ("A chain.", {"finish_reason": "length"}, ["</think>"], None),
        ("A chain.</think> true", {"finish_reason": "length"}, ["</think>"], "</think>"),  # stops are unknown there
        ("One! Two?", {}, ["?", "!"], "!"),
        ("One", {}, ["?", "!"], None),  # it could be either
        ("One", {}, [], None),
    ],
)
def test_which_stop_ended_an_answer(endpoint, text, fields, stops, message):
    choice = {"index": 0, "text": text, "finish_reason": "stop"} | fields
    endpoint.answers = [(200, {"choices": [choice], "usage": USAGE})]

    async def call(engine):
        engine.tokenizer = MarkedTokenizer()
        return await engine.generate("hi", max_tokens=9, stop=stops)

    answer = asked(endpoint.url, call)
    assert answer.stop == message
    assert answer.text == ("One" if text.startswith("One") else "A chain.")


def test_another_end_of_the_model_s_is_no_stop_and_nothing_is_looked_up_without_need():
    added = {"</think>": 7, "<|endoftext|>": 9}
    assert matched_stop(7, ["</think>"], lambda: added) == "</think>"
    assert matched_stop(9, ["</think>"], lambda: added) is None

    def unread():
        raise AssertionError("the tokenizer was read")

    assert [
        matched_stop(message, stop, unread) for message, stop in ((9, ()), (None, ["x"]), ("eos", ["x"]), ("x", ["x"]))
    ] == [
        *(None, None, None),
        "x",
    ]


class MarkedTokenizer:
    """Has ``</think>`` as a special token, as a trained reranker does."""

    def get_added_vocab(self):
        return {"</think>": 7}


@pytest.mark.parametrize(("stop", "kept"), [("</think>", True), (".", False)])
def test_a_stop_that_is_a_special_token_is_kept_in_the_text(endpoint, stop, kept):
    async def call(engine):
        engine.tokenizer = MarkedTokenizer()
        return await engine.generate([1, 2, 3], max_tokens=2, stop=[stop])

    asked(endpoint.url, call)
    body = endpoint.requests[0][2]
    assert body["stop"] == [stop]
    assert body.get("skip_special_tokens") == (False if kept else None)


# ---- check() --------------------------------------------------------------------------


def test_check_passes_where_the_model_is_served(endpoint):
    endpoint.answers = [(200, MODELS)]
    assert check(endpoint.url) is None
    assert endpoint.requests[0][0] == "/v1/models"


@pytest.mark.parametrize("status", [404, 405])
def test_check_passes_where_models_are_not_listed(endpoint, status):
    endpoint.answers = [(status, error_body("no such page"))]
    assert check(endpoint.url) is None


def test_check_names_the_models_that_are_served(endpoint):
    endpoint.answers = [(200, {"object": "list", "data": [{"id": "large", "object": "model"}]})]
    with pytest.raises(UserError, match="engine.base_url .*: has no model 'small'; it serves large"):
        check(endpoint.url)


def test_check_refuses_a_wrong_key(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint.answers = [(401, error_body(f"no such key: {KEY}"))]
    with pytest.raises(UserError, match="engine.base_url .*answered 401") as refused:
        check(endpoint.url)
    assert KEY not in "".join(traceback.format_exception(refused.value))


def test_check_says_that_no_one_is_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="engine.base_url .*cannot be reached"):
        check(url)


def test_check_refuses_a_page_that_is_no_answer(endpoint):
    endpoint.answers = [(200, "<html>Welcome</html>")]
    with pytest.raises(UserError, match="does not answer as an OpenAI endpoint"):
        check(endpoint.url)


def test_a_query_of_the_url_goes_with_every_request(endpoint):
    for url in (f"{endpoint.url}?api-version=2024-02-01&x=1&x=2", f"{endpoint.url}/?api-version=2024-02-01&x=1&x=2"):
        endpoint.requests.clear()
        endpoint.answers = [(200, MODELS), (200, HELLO)]
        asked(url, lambda engine: engine.check())
        asked(url, lambda engine: engine.generate("x", max_tokens=1))
        query = "?api-version=2024-02-01&x=1&x=2"
        assert [path for path, *_ in endpoint.requests] == [f"/v1/models{query}", f"/v1/completions{query}"]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_a_quoted_key_is_in_no_message(endpoint, monkeypatch, status):
    monkeypatch.setenv("MY_VARIABLE", "canary-0123456789")
    said = "you sent Authorization: Bearer canary-0123456789"
    answer = {"choices": [{"index": 0, "text": said, "finish_reason": "stop"}], "usage": USAGE}
    endpoint.answers = [(status, answer if status == 200 else {"error": {"message": said}})]
    try:
        message = asked(endpoint.url, lambda engine: engine.generate("x", max_tokens=1), api_key_env="MY_VARIABLE").text
    except (EndpointError, RowError) as error:
        message = "".join(traceback.format_exception(error))
    assert "you sent" in message and "canary" not in message


def test_a_connection_that_is_lost_without_a_message_is_an_endpoint_error(endpoint):
    """Some of the client's errors have a type and no text."""

    def hang_up(handler):
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    endpoint.answers = [hang_up]
    with pytest.raises(EndpointError, match=r"is gone: \w+"):
        generate(endpoint.url)
    endpoint.answers = [hang_up, (200, HELLO)]
    assert generate(endpoint.url).text == " hello"
