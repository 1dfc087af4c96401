"""The page and its search, over HTTP."""

import asyncio
import re
from html.parser import HTMLParser

import httpx
import pytest

from helpers.backend import EngineBackend
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving import page
from limrank.serving.api import build_api
from limrank.serving.protocol import Served


def get(*paths, method="GET"):
    async def go():
        api = build_api(EngineBackend(), Served.of(ModelConfig(id="served"), ScoringConfig()))
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return [await http.request(method, path) for path in paths]

    return asyncio.run(go())


def test_the_page_loads_nothing_from_elsewhere():
    html, css, script = get("/", "/page.css", "/page.js")
    kinds = [response.headers["content-type"].partition(";")[0] for response in (html, css, script)]
    assert kinds == ["text/html", "text/css", "text/javascript"]
    named = re.findall(r"""(?:src|href)="([^"]*)\"""", html.text)
    assert set(named) == {"page.css", "page.js", "docs", "data:,"}
    for response in (html, css, script):
        assert not re.search(r"https?://|@import|url\(", response.text)
        assert response.headers["content-security-policy"] == page.POLICY
        assert "unsafe" not in page.POLICY
    # What a passage or a chain says is text, never HTML.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.text)
    assert not [name for name in attributes(html.text) if name == "style" or name.startswith("on")]


def attributes(html):
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, given: found.extend(name for name, _ in given)
    parser.feed(html)
    return found


def test_the_search_finds_passages_of_pydocs(monkeypatch):
    monkeypatch.setattr(page, "_documents", lambda: {each.doc_id: each for each in DOCUMENTS})
    (answer,) = get("/page/search?query=merge%20sorted%20inputs")
    assert [each["id"] for each in answer.json()["documents"]] == ["heapq.merge", "sorted"]
    assert answer.json()["documents"][0]["text"].startswith("heapq.merge")


DOCUMENTS = [
    page.Document(
        "heapq.merge", "Merge multiple sorted inputs into a single sorted output.", "heapq.merge(*iterables)"
    ),
    page.Document("sorted", "Return a new list with all items, sorted.", "sorted(iterable)"),
    page.Document("print", "Prints the values to a stream.", "print(*args)"),
]


@pytest.mark.parametrize("query", ["", "?query=", "?query=%20", "?query=" + "x" * 2001])
def test_a_search_needs_a_query(query):
    (answer,) = get(f"/page/search{query}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_query")


def test_without_bm25_there_is_no_search(monkeypatch):
    assert get("/page/search", method="HEAD")[0].status_code == 200
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    assert get("/page/search", method="HEAD")[0].status_code == 404
