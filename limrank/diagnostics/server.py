"""``limrank doctor --url``: whether a running server answers, takes our key, and scores alike each time."""

from __future__ import annotations

import time

import httpx

from limrank.diagnostics.doctor import Finding
from limrank.errors import ApiStatusError, EndpointError, LimrankError, first_line
from limrank.records import ScoreStatus
from limrank.serving.answers import RerankResponse, ServedModel
from limrank.serving.connection import API_KEY, Server, UnansweredError
from limrank.serving.http_client import Client

_QUERY = "merge several sorted inputs into one sorted stream"
_DOCUMENTS = (
    "heapq.merge merges several sorted inputs into one sorted iterator.",
    "sorted returns a new sorted list from the items of an iterable.",
    "bisect finds the position of an item in a sorted list.",
    "json.dumps turns an object into JSON text.",
)

_AGREES = 1e-4
"""The most that the score of a pair differs between two requests in float32."""

_ROUNDED = 0.05
"""The most that it may differ in bfloat16: another batch sums in another order, and a score has few digits."""

_CHAIN_TOKENS = 64
"""Longest chain of the stream that is checked."""

_TELLS_S = 0.3
"""A stream that takes less says nothing of what is held back."""

_AT_ONCE = 0.2
"""Share of a stream's time within which the events of one that was held back arrive."""

_TIMEOUT_S = 120.0
"""Time limit of a request: a chain takes seconds, and a queue of them longer."""


def examine_server(url: str, transport: httpx.BaseTransport | None = None) -> list[Finding]:
    """Every check of the server at a URL, as far as they are possible.

    Args:
        transport: how it is reached; None: over the network.

    Raises:
        UserError: it is no URL.
    """
    with Client(url, timeout=_TIMEOUT_S, max_retries=0, transport=transport) as client:
        findings = [_reachable(client)]
        if findings[0].broken:
            return findings
        findings.append(_ready(client))
        key = _key(client, url, transport)
        findings.append(key)
        if key.broken:
            return findings
        return findings + _model_and_scores(client)


def _reachable(client: Client) -> Finding:
    try:
        client.models()
    except UnansweredError as error:
        return _failed("reachable", first_line(error), "start it: limrank serve RECIPE.yaml")
    except (EndpointError, ApiStatusError) as error:
        if isinstance(error, ApiStatusError) and error.code == "host_not_allowed":
            return _failed("reachable", first_line(error), "add the URL's name to serving.allowed_hosts in its recipe")
        if isinstance(error, ApiStatusError) and error.status == 429:
            return _failed("reachable", first_line(error), "wait, or raise the limit of the proxy before the server")
        answers = isinstance(error, ApiStatusError) and (error.status in (401, 403) or error.status >= 500)
        if not answers:
            return _failed("reachable", first_line(error), "give the URL of a `limrank serve`, without /v1")
    return Finding("reachable", "it answers")


def _ready(client: Client) -> Finding:
    if client.ready():
        return Finding("ready", "an engine is up")
    return _failed("ready", "no engine is up", "wait until its model is loaded, or read its log")


def _key(client: Client, url: str, transport: httpx.BaseTransport | None) -> Finding:
    """Whether the server asks for a key, and takes the one that is set here."""
    has_key = Server.at(url).has_key
    set_here = f"{API_KEY} is set" if has_key else f"{API_KEY} is not set"
    with Client(url, api_key="", timeout=_TIMEOUT_S, max_retries=0, transport=transport) as nobody:
        refused = _refusal(nobody)
    if refused is None:
        return Finding("key", "it asks for none")
    if (refused := _refusal(client)) is None:
        return Finding("key", f"it asks for one, and takes that of {API_KEY}")
    return _failed("key", f"it asks for one, and {set_here}: {refused}", f"export {API_KEY}=…")


def _refusal(client: Client) -> str | None:
    try:
        client.models()
    except ApiStatusError as error:
        return error.words if error.status in (401, 403) else None
    except EndpointError:
        return None
    return None


def _model_and_scores(client: Client) -> list[Finding]:
    findings = []
    try:
        cards = client.models()
        findings.append(_model(cards))
        mode = "direct" if any("direct" in card.modes for card in cards) else None
        findings += _scores(client, mode)
        findings += _stream(client, cards)
    except LimrankError as error:
        findings.append(_failed("rerank" if findings else "model", first_line(error), "read the server's log"))
    return findings


def _model(cards: list[ServedModel]) -> Finding:
    if not cards:
        return _failed("model", "it lists none", "give the URL of a `limrank serve`")
    card = next((each for each in cards if each.root in (None, each.id)), cards[0])
    default = str(card.scoring.get("mode", "unknown"))
    others = [mode for mode in card.modes if mode != default]
    names = [each.id for each in cards if each.id != card.id]
    state = f"{card.id}, mode {default}"
    state += f" (also {', '.join(others)})" if others else ""
    return Finding("model", state + (f", also named {', '.join(names)}" if names else ""))


def _scores(client: Client, mode: str | None) -> list[Finding]:
    """One rerank and its time, and the same pairs again in another order, with one of them twice."""
    pairs = [*_DOCUMENTS, _DOCUMENTS[0]]
    began = time.perf_counter()
    response = client.rerank(_QUERY, pairs, mode=mode, min_score=0)
    seconds = time.perf_counter() - began
    failed = [result for result in response.results if result.status == ScoreStatus.FAILED]
    if failed or len(response.results) != len(pairs):
        reason = failed[0].error if failed else f"{len(response.results)} results"
        return [_failed("rerank", f"{len(pairs)} documents: {reason}", "read the server's log")]
    scored = f"{len(pairs)} documents in {seconds * 1000:.0f} ms{f', mode {mode}' if mode else ''}"
    again = client.rerank(_QUERY, pairs[::-1], mode=mode, min_score=0)
    return [Finding("rerank", scored), _agreement(_by_text(response), _by_text(again))]


def _stream(client: Client, cards: list[ServedModel]) -> list[Finding]:
    """Whether the events of a stream arrive one by one, where a mode with short chains makes them take their time."""
    longest = {mode: card.modes[mode] for card in cards for mode in ("budget", "cascade") if card.modes.get(mode)}
    mode = min(longest, key=lambda mode: longest[mode], default=None)
    if mode is None:
        return []
    options = {"mode": mode, "max_think_tokens": min(longest[mode], _CHAIN_TOKENS), "min_score": 0}
    began = time.perf_counter()
    arrived, wanted = [], 0
    try:
        for update in client.rerank_stream(_QUERY, [*_DOCUMENTS, _DOCUMENTS[0]], **options):
            arrived.append(time.perf_counter() - began)
            wanted = max(wanted, update.chains_wanted)
    except (EndpointError, ApiStatusError) as error:
        return [_failed("stream", f"mode {mode}: {first_line(error)}", "read the server's log")]
    first, last = arrived[0], arrived[-1]
    state = f"{len(arrived)} updates, the first after {first * 1000:.0f} ms and the last after {last * 1000:.0f} ms"
    if len(arrived) == 1:
        return [Finding("stream", "it does not stream (an older version)")]
    if last > _TELLS_S and last - first < last * _AT_ONCE and wanted:
        fix = "turn off buffering in the proxy before the server (nginx: proxy_buffering off)"
        return [_failed("stream", f"{state}, mode {mode}: something holds them back", fix)]
    return [Finding("stream", f"{state}, mode {mode}")]


def _by_text(response: RerankResponse) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = {}
    for result in response.results:
        if result.relevance_score is not None:
            scores.setdefault(str(result.document), []).append(result.relevance_score)
    return scores


def _agreement(first: dict[str, list[float]], second: dict[str, list[float]]) -> Finding:
    found = {text: [*first.get(text, ()), *second.get(text, ())] for text in _DOCUMENTS}
    if any(len(scores) < 2 for scores in found.values()):
        return _failed("agreement", "a pair has a score in only one of two requests", "read the server's log")
    widest = max(max(scores) - min(scores) for scores in found.values())
    if widest <= _AGREES:
        return Finding("agreement", f"a pair's score in another request and order differs by {widest:.1e} at most")
    if widest <= _ROUNDED:
        return Finding(
            "agreement", f"a pair's score differs by {widest:.2g} at most, as by rounding of bfloat16 (model.dtype)"
        )
    fix = "set model.dtype to float32 in its recipe to see whether rounding is the cause"
    return _failed("agreement", f"a pair's score differs by {widest:.2g} in another request or order", fix)


def _failed(name: str, state: str, fix: str) -> Finding:
    return Finding(name, state, True, fix, mark="failed")
