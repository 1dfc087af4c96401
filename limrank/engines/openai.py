"""Any OpenAI-compatible endpoint as an engine.

Text and token ids go to ``/completions``, chat messages to ``/chat/completions``. Label
log-probabilities are read from the top 20 that such servers return. A label that is not
among them is a RowError.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar, Unpack

from limrank import models
from limrank.config import EngineConfig, ModelConfig
from limrank.engines import retries
from limrank.engines.base import (
    DEFAULT_IN_FLIGHT,
    Generation,
    Limits,
    Prompt,
    RequestLimiter,
    Sampling,
    SamplingOptions,
    Tokenizer,
    matched_stop,
    record_usage,
)
from limrank.engines.openai_answers import (
    UNKNOWN,
    FaultError,
    Tokens,
    answer_of,
    check_answer,
    fault_of,
    model_ids,
    piece_of,
    quoted,
    tokens_of,
    top_logprobs,
)
from limrank.engines.openai_parameters import Parameters, truncate_at
from limrank.engines.retries import Pace, backoff_s, requested_wait
from limrank.engines.tokens import break_marks
from limrank.errors import EndpointError, RowError, UserError, first_line
from limrank.parsing import clipped, parse_json
from limrank.uris import keep_secret, split_query, without_secrets

Value = TypeVar("Value")

_TOP_LOGPROBS = 20
_ATTEMPTS = 5
_CHECK_S = 10.0
"""Time limit for the list of an endpoint's models."""

_PASSING = (408, 409, 425, 429)
_REFUSES_ALL = (401, 402, 403, 404)
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_credits")
"""Codes of a 429 that waiting does not fix."""

_TOKEN_ID = re.compile(r"token_id:(\d{1,9})")


class OpenAIEngine:
    """The model's tokenizer is loaded by the model's name when scoring needs it."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._model = model
        self._key = os.environ.get(engine.api_key_env)
        keep_secret(self._key, engine.api_key_env)
        self._url, query = split_query(engine.base_url)
        # Local servers need no key, but the client requires one.
        self._client = AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            timeout=engine.request_timeout_s,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(params=query),  # of every request, such as api-version
        )
        self._limits = Limits(model.max_model_len or 32768, engine.max_in_flight or DEFAULT_IN_FLIGHT)
        self.limiter = RequestLimiter(self._limits.in_flight)
        self._patience_s = engine.request_timeout_s
        self._pace = Pace()
        self._parameters = Parameters()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return models.tokenizer(self._model.id)

    @property
    def limits(self) -> Limits:
        return self._limits

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        sampling = Sampling(**options)
        stop, sent = sampling.stop, _request_parameters(sampling)
        if isinstance(prompt, list) and not _is_chat(prompt) and self._stops_at_special(stop):
            # vLLM and SGLang leave special tokens out of the text, and the stop with them.
            sent["skip_special_tokens"] = False
        answer, tokens = await self._ask(prompt, sent, lambda body: answer_of(body, chat=_is_chat(prompt)))
        text, stopped_by = truncate_at(answer.text, stop)  # an endpoint may ignore stops
        # An endpoint may quote the key in an answer, too.
        text, reasoning = without_secrets(text), answer.reasoning and without_secrets(answer.reasoning)
        reason = "stop" if stopped_by else answer.finish_reason
        if stopped_by is None and reason == "stop" and answer.stopped_by != UNKNOWN:
            stopped_by = matched_stop(answer.stopped_by, stop, lambda: self.tokenizer.get_added_vocab())
        elif stopped_by is None and reason == "stop" and len(stop) == 1:
            # Most endpoints do not say whether the stop or the model ended the text. Take the stop.
            stopped_by = stop[0]
        return Generation(text, reason, tokens.prompt, tokens.cached, tokens.generated, reasoning, stopped_by)

    async def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        sent = _request_parameters(Sampling(**options)) | streamed
        tokens = Tokens()
        async with self.limiter, contextlib.AsyncExitStack() as stack:
            response = await self._send(prompt, sent, lambda body: self._opened(prompt, body, stack))
            try:
                async for event in _events(response):
                    tokens = tokens_of(event) if event.get("usage") else tokens
                    if text := piece_of(event, chat=_is_chat(prompt)):
                        yield without_secrets(text)
            except FaultError as fault:
                raise RowError(f"the endpoint broke off: {fault.words}", retryable=True) from None
        record_usage(tokens.prompt, tokens.cached, tokens.generated)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        wanted = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if _is_chat(prompt) else {"logprobs": _TOP_LOGPROBS}
        logprobs, _ = await self._ask(prompt, _request_parameters(Sampling(max_tokens=1)) | wanted, top_logprobs)
        if not logprobs:
            raise RowError("the endpoint gives no log-probabilities, which a score by label tokens needs")
        if all(_TOKEN_ID.fullmatch(token) for token in logprobs):  # vLLM's --return-tokens-as-token-ids
            ids = {self.tokenizer.decode([int(_TOKEN_ID.fullmatch(token)[1])]): token for token in reversed(logprobs)}
            logprobs = {text: logprobs[token] for text, token in ids.items()}
        missing = [label for label in labels if label not in logprobs]
        if missing:
            raise RowError(f"labels {missing} are not among the endpoint's top {len(logprobs)} log-probabilities")
        return {label: logprobs[label] for label in labels}

    async def check(self) -> None:
        """List the endpoint's models once.

        Raises:
            UserError: the endpoint cannot be reached, refuses the key, or lacks the model.
        """
        import httpx2
        from openai import APIConnectionError, APIStatusError

        where = f"engine.base_url {self._url}"
        try:
            response = await self._client.models.with_raw_response.list(timeout=_CHECK_S)
        except (APIConnectionError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise UserError(f"{where}: cannot be reached: {quoted(first_line(error.__cause__ or error))}") from error
        except APIStatusError as error:
            if error.status_code in (404, 405, 501):  # a server without a model list may still serve
                return
            raise UserError(f"{where}: answered {error.status_code}: {_fault(error).words}") from None
        try:
            body = parse_json(response.content, where, finite=False)
        except UserError:
            body = None
        if not isinstance(body, dict | list):
            start = quoted(response.content[:5000].decode(errors="replace"), 80)
            raise UserError(f"{where}: does not answer as an OpenAI endpoint: {start!r}")
        listed = model_ids(body)
        if not listed and isinstance(body, dict) and body.get("error"):
            fault = fault_of(body, 200)
            raise UserError(f"{where}: answered {fault.status}: {fault.words}")
        names = {self._model.id, f"{self._model.id}:latest", f"models/{self._model.id}"}
        if listed and names.isdisjoint(listed):
            some = ", ".join(clipped(name) for name in listed[:8])
            raise UserError(f"{where}: has no model {self._model.id!r}; it serves {some}")

    async def aclose(self) -> None:
        await self._client.close()

    def _stops_at_special(self, stop: Sequence[str]) -> bool:
        return bool(stop) and not self.tokenizer.get_added_vocab().keys().isdisjoint(stop)

    async def _ask(
        self, prompt: Prompt, options: dict[str, Any], read: Callable[[dict[str, Any]], Value]
    ) -> tuple[Value, Tokens]:
        """Send a request; what ``read`` returns for its answer, and its tokens. ``read`` raises
        FaultError for an answer that lacks what it needs."""

        async def send(sent: dict[str, Any]) -> tuple[Value, Tokens]:
            response = await self._create(prompt).with_raw_response.create(**sent)
            body = self._body(response)
            fault = None
            try:
                answer = check_answer(body)
                return read(answer), tokens_of(answer)
            except FaultError as raised:
                fault = raised
            fault.headers = {**response.headers, **fault.headers}
            raise fault

        async with self.limiter:
            value, tokens = await self._send(prompt, options, send)
        record_usage(tokens.prompt, tokens.cached, tokens.generated)
        return value, tokens

    async def _opened(self, prompt: Prompt, sent: dict[str, Any], stack: contextlib.AsyncExitStack) -> Any:
        response = await stack.enter_async_context(self._create(prompt).with_streaming_response.create(**sent))
        if "json" in response.headers.get("content-type", ""):  # an error, or the endpoint does not stream
            return check_answer(self._parsed(await response.read()))
        return response

    def _create(self, prompt: Prompt) -> Any:
        return self._client.chat.completions if _is_chat(prompt) else self._client.completions

    def _body(self, response: Any) -> Any:
        if not response.content.strip():
            raise FaultError("an empty answer", 500)
        return self._parsed(response.content)

    def _parsed(self, content: bytes) -> Any:
        try:
            return parse_json(content.decode(errors="replace"), "the answer", finite=False)
        except UserError:
            start = quoted(content[:5000].decode(errors="replace"), 80)
            raise EndpointError(f"{self._url} does not answer as an OpenAI endpoint: {start!r}") from None

    async def _send(
        self, prompt: Prompt, options: dict[str, Any], send: Callable[[dict[str, Any]], Awaitable[Value]]
    ) -> Value:
        """Send one request. It is retried on 429, 5xx and time-outs, and once after a lost connection (a
        server may have closed an idle one).

        Where the endpoint asks to wait, all requests of the engine wait. Such an attempt does not
        count until ``request_timeout_s`` has passed.
        """
        payload = {"messages": [_plain(each) for each in prompt]} if _is_chat(prompt) else {"prompt": prompt}
        started, attempts, losses = time.monotonic(), 0, 0
        while True:
            await self._pace.free()
            sent = self._parameters.adapted(options)
            fault, lost = None, None
            try:
                value = await send({"model": self._model.id, **payload, "extra_body": sent})
            except FaultError as raised:
                fault = raised
            except Exception as raised:
                fault, lost = self._failure(raised)
            else:
                self._pace.answered = time.monotonic()
                return value
            # The client's errors are not chained: an endpoint may quote the key that it refuses.
            if lost is not None:
                losses += 1
                if losses > 1:
                    raise EndpointError(f"the endpoint {self._url} is gone: {lost}")
                await asyncio.sleep(backoff_s(1))
                continue
            if fault.status < 500 and fault.status not in _PASSING or fault.status in (501, 505):
                if self._parameters.learns(fault, sent) and self._parameters.adapted(options) != sent:
                    continue
                raise _lasting(fault)
            if fault.code in _USED_UP:
                raise EndpointError(f"the endpoint answered {fault.status}: {fault.words}")
            wait = requested_wait(fault.headers)
            if wait is not None:
                self._check_patience(wait, started, fault)
                wait = max(wait, retries.FIRST_WAIT_S)
                if time.monotonic() + wait - started <= self._patience_s:
                    self._pace.hold(wait)
                    continue
            attempts += 1
            if attempts >= _ATTEMPTS:
                failed = f"the endpoint failed {_ATTEMPTS} times: {fault.words}"
                raise RowError(failed, retryable=True, attempts=_ATTEMPTS)
            if fault.status == 429:
                self._pace.hold(wait or backoff_s(attempts))
            else:
                await asyncio.sleep(wait or backoff_s(attempts))

    def _check_patience(self, wait: float, started: float, fault: FaultError) -> None:
        """Raises EndpointError where the endpoint answers no request for longer than ``request_timeout_s``:
        that is not a fault of a row."""
        if self._pace.answered > started and wait <= self._patience_s:
            return
        if time.monotonic() + wait - started > self._patience_s:
            raise EndpointError(
                f"the endpoint asks to wait for {wait:.0f} s more, beyond engine.request_timeout_s "
                f"({self._patience_s:g} s): {fault.words}"
            )

    def _failure(self, error: Exception) -> tuple[FaultError | None, str | None]:
        """A client's error as a fault that the endpoint answered, or as the reason of a lost connection."""
        import httpx2  # the client's own library; its errors come out where a body breaks off
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        if isinstance(error, APIStatusError):
            return _fault(error), None
        if isinstance(error, APITimeoutError | httpx2.TimeoutException):
            return FaultError("Request timed out.", 504), None
        if isinstance(error, APIConnectionError | httpx2.HTTPError | httpx2.InvalidURL):
            cause = error.__cause__ or error
            return None, quoted(first_line(cause))
        raise error


async def _events(response: Any) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream (server-sent events) as JSON objects. An answer in one piece is one event.

    Raises:
        FaultError: the stream breaks off, or is not a stream of events.
    """
    if isinstance(response, dict):
        yield response
        return
    lines, data = response.iter_lines(), []
    while True:
        try:
            line = await anext(lines, None)
        except Exception as error:  # the client's, or its HTTP library's
            raise FaultError(quoted(str(error) or type(error).__name__), 500) from None
        if line and line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif line and line.startswith("{"):  # an error without a frame, or an answer in one piece
            data.append(line)
        if data and not line:
            text, data = "\n".join(data), []
            if text == "[DONE]":
                return
            try:
                yield parse_json(text, "an event", expect=dict, finite=False)
            except UserError as error:
                raise FaultError(str(error), 500) from None
        if line is None:
            return


def _fault(error: Any) -> FaultError:
    """An endpoint's refusal, from its body."""
    try:
        body = parse_json(error.response.text, "an answer", finite=False)
    except UserError:
        body = error.response.text
    fault = fault_of(body, error.status_code)
    fault.headers = {**error.response.headers, **fault.headers}
    return fault


def _lasting(fault: FaultError) -> EndpointError | RowError:
    answered = f"the endpoint answered {fault.status}: {fault.words}"
    return (EndpointError if fault.status in _REFUSES_ALL else RowError)(answered)


def _plain(message: dict[str, str]) -> dict[str, str]:
    return message | {"content": break_marks(message["content"])}


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _request_parameters(sampling: Sampling) -> dict[str, Any]:
    """The parameters of a request, without those that are not set."""
    parameters = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        parameters["seed"] = sampling.seed
    if sampling.schema is not None:
        answer = {"name": "answer", "schema": sampling.schema, "strict": True}
        parameters["response_format"] = {"type": "json_schema", "json_schema": answer}
    return parameters
