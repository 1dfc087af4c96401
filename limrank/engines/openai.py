"""Any OpenAI-compatible endpoint as an engine.

Text and token ids go to ``/completions``, chat messages to ``/chat/completions``. Label
log-probabilities are read from the top 20 that such servers give; a label that is not
among them is a RowError.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from functools import cached_property
from typing import Any

from limrank import models
from limrank.config import EngineConfig, ModelConfig
from limrank.encoding import break_marks
from limrank.engines.base import DEFAULT_IN_FLIGHT, Generation, Limits, Prompt, Tokenizer, Traffic, record_usage
from limrank.engines.retries import retrying
from limrank.errors import EndpointError, RowError, UserError
from limrank.uris import keep_secret, redacted, split_query, without_secrets

_TOP_LOGPROBS = 20
_ATTEMPTS = 5


class OpenAIEngine:
    """The model's tokenizer, where scoring needs one, is loaded by the model's name."""

    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._model = model
        self._key = os.environ.get(engine.api_key_env)
        keep_secret(self._key, engine.api_key_env)
        self._where, query = split_query(engine.base_url)
        # Local servers ask for no key, but the client insists on one.
        self._client = AsyncOpenAI(
            base_url=self._where,
            api_key=self._key or "none",
            timeout=engine.request_timeout_s,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(params=query),  # each request's, such as api-version
        )
        self._limits = Limits(model.max_model_len or 32768, engine.max_in_flight or DEFAULT_IN_FLIGHT)
        self.traffic = Traffic(self._limits.in_flight)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return models.tokenizer(self._model.id)

    @property
    def limits(self) -> Limits:
        return self._limits

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Generation:
        options = _sampling(max_tokens, temperature, top_p, stop)
        if seed is not None:
            options["seed"] = seed
        if schema is not None:
            answer = {"name": "answer", "schema": schema, "strict": True}
            options["extra_body"] = {"response_format": {"type": "json_schema", "json_schema": answer}}
        if isinstance(prompt, list) and not _is_chat(prompt) and self._stops_at_special(stop):
            # vLLM and SGLang leave special tokens out of the text, where the stop would not be seen.
            options.setdefault("extra_body", {})["skip_special_tokens"] = False
        response = await self._ask(prompt, options)
        choice = response.choices[0]
        text = choice.message.content if _is_chat(prompt) else choice.text
        reasoning = _reasoning(choice.message) if _is_chat(prompt) else None
        prompt_tokens, cached, generated = self._record(response.usage)
        # An endpoint may quote the key in an answer too.
        text, reasoning = without_secrets(text or ""), reasoning and without_secrets(reasoning)
        return Generation(text, choice.finish_reason or "stop", prompt_tokens, cached, generated, reasoning)

    async def stream(
        self, prompt: Prompt, *, max_tokens: int, temperature: float = 0.0, top_p: float = 1.0, stop: Sequence[str] = ()
    ) -> AsyncIterator[str]:
        from openai import APIError

        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        options = _sampling(max_tokens, temperature, top_p, stop) | streamed
        usage = None
        async with self.traffic, await self._send(prompt, options) as events:
            try:
                async for event in events:
                    usage = event.usage or usage
                    if event.choices:
                        text = event.choices[0].delta.content if _is_chat(prompt) else event.choices[0].text
                        if text:
                            yield without_secrets(text)
            except APIError as error:
                broke = f"the endpoint broke off: {self._without_key(error.message)}"
                raise RowError(broke, retryable=True) from None
        self._record(usage)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        chat = _is_chat(prompt)
        wanted = {"logprobs": True, "top_logprobs": _TOP_LOGPROBS} if chat else {"logprobs": _TOP_LOGPROBS}
        response = await self._ask(prompt, _sampling(1, 0.0, 1.0, ()) | wanted)
        self._record(response.usage)
        given = response.choices[0].logprobs
        if chat:
            first = given.content[0].top_logprobs if given and given.content else []
            logprobs = {entry.token: entry.logprob for entry in first}
        else:
            logprobs = (given.top_logprobs or [{}])[0] if given else {}
        if not logprobs:
            raise RowError("the endpoint gives no log-probabilities, which a score by label tokens needs")
        missing = [label for label in labels if label not in logprobs]
        if missing:
            raise RowError(f"labels {missing} are not among the endpoint's top {len(logprobs)} log-probabilities")
        return {label: logprobs[label] for label in labels}

    async def check(self) -> None:
        """Ask the endpoint once.

        Raises:
            UserError: it cannot be reached, refuses the key, or lacks the model.
        """
        from openai import APIConnectionError, APIStatusError

        where = f"engine.base_url {self._where}"
        try:
            answer = await self._client.get("/models", cast_to=object, options={"timeout": 10})
        except APIConnectionError as error:
            raise UserError(f"{where}: cannot be reached: {error.__cause__ or error}") from error
        except APIStatusError as error:
            if error.status_code in (404, 405):  # a server without a model list may still serve
                return
            raise UserError(f"{where}: answered {error.status_code}: {self._without_key(error.message)}") from None
        if not isinstance(answer, dict):
            raise UserError(f"{where}: does not answer as an OpenAI endpoint: {redacted(str(answer))[:80]!r}")
        listed = [model["id"] for model in answer.get("data") or []]
        if listed and self._model.id not in listed:
            raise UserError(f"{where}: has no model {self._model.id!r}; it serves {', '.join(listed[:8])}")

    async def aclose(self) -> None:
        await self._client.close()

    def _record(self, usage: Any) -> tuple[int, int, int]:
        if usage is None:
            return 0, 0, 0
        details = getattr(usage, "prompt_tokens_details", None)
        cached = (details.cached_tokens or 0) if details else 0
        record_usage(usage.prompt_tokens, cached, usage.completion_tokens)
        return usage.prompt_tokens, cached, usage.completion_tokens

    def _stops_at_special(self, stop: Sequence[str]) -> bool:
        return bool(stop) and not self.tokenizer.get_added_vocab().keys().isdisjoint(stop)

    async def _ask(self, prompt: Prompt, options: dict[str, Any]) -> Any:
        async with self.traffic:
            return await self._send(prompt, options)

    async def _send(self, prompt: Prompt, options: dict[str, Any]) -> Any:
        """One request, sent again on 429, 5xx and time-outs, and once where the connection
        is lost (a server may close an idle one just then). An endpoint may quote the key
        that it refuses: its words are told without it, and without the error they came in.
        """
        from openai import APIConnectionError, APIStatusError, APITimeoutError, InternalServerError, RateLimitError

        def attempts(error: BaseException) -> int:
            if isinstance(error, (RateLimitError, InternalServerError, APITimeoutError)):
                return _ATTEMPTS
            return 2 if isinstance(error, APIConnectionError) else 1

        if _is_chat(prompt):
            call, what = self._client.chat.completions.create, {"messages": [_plain(each) for each in prompt]}
        else:
            call, what = self._client.completions.create, {"prompt": prompt}
        try:
            async for attempt in retrying(attempts):
                with attempt:
                    response = await call(model=self._model.id, **what, **options)
        except (RateLimitError, InternalServerError, APITimeoutError) as error:
            failed = f"the endpoint failed {_ATTEMPTS} times: {self._without_key(error.message)}"
            raise RowError(failed, retryable=True, attempts=_ATTEMPTS) from None
        except APIConnectionError as error:
            raise EndpointError(f"the endpoint {self._where} is gone: {error.__cause__ or error}") from error
        except APIStatusError as error:
            answered = f"the endpoint answered {error.status_code}: {self._without_key(error.message)}"
            raise (EndpointError if error.status_code in (401, 403, 404) else RowError)(answered) from None
        if isinstance(response, str):  # the client hands on what is not JSON as it came
            raise EndpointError(
                f"{self._where} does not answer as an OpenAI endpoint: {redacted(response[:5000])[:80]!r}"
            )
        return response

    def _without_key(self, message: str) -> str:
        return message.replace(self._key, "***") if self._key else message


def _reasoning(message: Any) -> str | None:
    """A chain that is no part of the content: DeepSeek's ``reasoning_content``, which vLLM has
    renamed to ``reasoning``. Neither is OpenAI's own, so the client has no field for it."""
    return getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or None


def _plain(message: dict[str, str]) -> dict[str, str]:
    return message | {"content": break_marks(message["content"])}


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _sampling(max_tokens: int, temperature: float, top_p: float, stop: Sequence[str]) -> dict[str, Any]:
    options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    return options | {"stop": list(stop)} if stop else options
