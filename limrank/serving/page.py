"""The page at ``/``: it ranks what a person types in, by each mode, side by side.

The page and its parts come from this server, and its policy lets a browser load nothing else.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from importlib.util import find_spec
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from limrank.records import Document, Query
from limrank.serving.errors import ApiError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page."""

FOUND = 10
"""Passages that a search returns."""

_QUERY_CHARACTERS = 2000
_PARTS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def add_page(api: FastAPI) -> None:
    """Add the page's routes. Where the packages of BM25 are missing (the extra ``batch``), there is no search."""
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    for path, (name, media_type) in _PARTS.items():
        part = Response((resources.files("limrank.serving") / "static" / name).read_bytes(), 200, headers, media_type)
        api.get(path, include_in_schema=False)(_answering(part))
    if all(map(find_spec, ("bm25s", "Stemmer"))):
        api.api_route("/page/search", methods=["GET", "HEAD"], include_in_schema=False)(_Search().find)


def _answering(part: Response) -> Any:
    async def answer() -> Response:
        return part

    return answer


class _Search:
    """BM25 over the documentation of Python's standard library, one search at a time."""

    def __init__(self) -> None:
        # A thread of its own: readiness must not wait for it, and the search of a client that left is dropped.
        self._thread = ThreadPoolExecutor(1, "search")

    async def find(self, request: Request) -> Response:
        query = request.query_params.get("query", "")
        if request.method == "HEAD":
            return Response()
        if not 0 < len(query.strip()) <= _QUERY_CHARACTERS:
            message = f"query: should have 1 to {_QUERY_CHARACTERS} characters"
            raise ApiError(400, "invalid_query", message, param="query")
        found = await asyncio.get_running_loop().run_in_executor(self._thread, _found, query)
        return JSONResponse(
            {"documents": [{"id": each.doc_id, "title": each.title, "text": each.contents} for each in found]}
        )


def _found(query: str) -> list[Document]:
    from limrank.retrieval import bm25

    documents = _documents()
    scores = bm25(list(documents.values()), [Query("", query)], FOUND)[""]
    return [documents[doc_id] for doc_id in scores]


@cache
def _documents() -> dict[str, Document]:
    from limrank.data import pydocs

    return {document.doc_id: document for document in pydocs.documents()}
