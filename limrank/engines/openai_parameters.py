"""Which parameters an endpoint accepts: learnt from its refusals, and kept for all later requests."""

from __future__ import annotations

import logging
import re
from typing import Any

from limrank.engines.openai_answers import FaultError
from limrank.errors import EndpointError

_log = logging.getLogger(__name__)

_UNSUPPORTED = re.compile(
    r"unsupported|not (?:yet |currently )?support|n't support|unknown|unrecognized|unrecognised|unexpected|deprecated"
    r"|extra (?:inputs|fields)|extra_forbidden|additional (?:properties|fields)|not permitted|not allowed|not available"
    r"|only the default|not implemented|no such (?:field|parameter)"
)
_FEWER_LOGPROBS = re.compile(
    r"(?:less than or equal to|at most|maximum(?: value)?(?: is| of)?|<=|up to|between 0 and|\[0, ?)\s*(\d+)"
)
_FEW_LOGPROBS = 5
"""The limit of OpenAI's /completions, the lowest that is known."""

_RENAMED = {"max_tokens": "max_completion_tokens"}
_NEEDED = {
    "logprobs": "log-probabilities, which a score by label tokens needs",
    "top_logprobs": "log-probabilities, which a score by label tokens needs",
    "skip_special_tokens": "special tokens in its text, which mark the end of a chain",
    "top_p": "the recipe's top_p",
}
_CHANGES = {
    "temperature": "it uses its own temperature, so answers may differ from one time to the next",
    "seed": "answers may differ from one time to the next",
    "response_format": "answers may not follow the schema",
}
_HARMLESS = ("stop", "stream_options")


class Parameters:
    """Adapts the parameters of requests to what an endpoint accepts.

    A refused parameter that changes no row is replaced: ``max_tokens`` gets its newer name,
    ``top_logprobs`` a lower number, a ``top_p`` of 1 is left out, and so is ``stop``, since texts
    are truncated here. A parameter that may change rows is left out with a warning. A parameter that a
    result needs is an EndpointError.
    """

    def __init__(self) -> None:
        self._left_out: set[str] = set()
        self._renamed: set[str] = set()
        self._most_logprobs: int | None = None

    def adapted(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body, adapted to the refusals so far."""
        left = {name: value for name, value in body.items() if name not in self._left_out}
        named = {_RENAMED[name] if name in self._renamed else name: value for name, value in left.items()}
        if self._most_logprobs is not None:
            for name in ("logprobs", "top_logprobs"):
                if isinstance(named.get(name), int) and not isinstance(named[name], bool):
                    named[name] = min(named[name], self._most_logprobs)
        return named

    def learns(self, fault: FaultError, sent: dict[str, Any]) -> bool:
        """Whether a refusal is about a parameter that :meth:`adapted` will change from now on.

        Args:
            sent: the body that was refused.

        Raises:
            EndpointError: the endpoint refuses a parameter that a result needs.
        """
        if fault.status not in (400, 422, 501):
            return False
        words = f"{fault.words} {fault.code}".lower().replace("`", "'").replace("_supported", " supported")
        for name, newer in _RENAMED.items():
            if name in sent and (newer in words or (fault.param == name and _UNSUPPORTED.search(words))):
                self._renamed.add(name)
                return True
        for name in sorted({*_NEEDED, *_CHANGES, *_HARMLESS} & sent.keys(), key=len, reverse=True):
            if (fault.param or "") == name or (not fault.param and re.search(rf"\b{name}\b", words)):
                return self._does_without(name, sent, words, fault)
        return False

    def _does_without(self, name: str, sent: dict[str, Any], words: str, fault: FaultError) -> bool:
        number = sent[name]
        if name in ("logprobs", "top_logprobs") and not isinstance(number, bool):
            most = _FEWER_LOGPROBS.search(words)
            fewer = int(most[1]) if most and len(most[1]) < 4 else _FEW_LOGPROBS
            if 0 < fewer < number and (most or not _UNSUPPORTED.search(words)):
                self._most_logprobs = fewer
                return True
        # Stops are never needed: the text is truncated here.
        if not _UNSUPPORTED.search(words) and name != "stop":
            return False
        if name in _NEEDED and not (name == "top_p" and number == 1):
            raise EndpointError(f"the endpoint does not give {_NEEDED[name]}: {fault.words}")
        self._left_out.add(name)
        if name in _CHANGES:
            _log.warning("the endpoint does not take %s: %s (%s)", name, _CHANGES[name], fault.words)
        return True


def truncate_at(text: str, stops: Any) -> tuple[str, str | None]:
    """A text up to the first stop in it, and that stop; None if there is none."""
    found = [(index, stop) for stop in stops if stop and (index := text.find(stop)) >= 0]
    if not found:
        return text, None
    index, stop = min(found)
    return text[:index], stop
