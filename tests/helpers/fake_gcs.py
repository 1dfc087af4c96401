"""Google Cloud Storage's XML interface, as far as limrank asks it: an S3 server whose versions are generations."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from urllib.parse import quote, unquote

import httpx

from helpers.faulty_store import FaultyStore

_OWNER = "AWS4-HMAC-SHA256 Credential=someone/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""The owner of the server's buckets. moto does not check signatures."""

_CONDITION = "x-goog-if-generation-match"


class FakeGcs(FaultyStore):
    """Before moto's S3 server. Buckets and objects are the server's. ``x-goog-if-generation-match`` becomes
    ``If-None-Match`` (0) or ``If-Match``, and an object's generation is a number made of its ETag."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._tags: dict[str, str] = {}

    def _pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> httpx.Response:
        # The client of GCS encodes every sign, "/" too, which moto does not undo.
        path, mark, query = request.path.partition("?")
        request.path = quote(unquote(path)) + mark + query
        del request.headers["authorization"]  # empty, for an emulator
        request.headers["authorization"] = _OWNER
        if (generation := request.headers.get(_CONDITION)) is not None:
            del request.headers[_CONDITION]
            is_new = generation == "0"
            request.headers["If-None-Match" if is_new else "If-Match"] = "*" if is_new else self._tags[generation]
        answer = super()._pass_on(request, body)
        if tag := answer.headers.get("etag"):
            generation = str(int(tag.strip('"')[:15], 16))
            self._tags[generation] = tag
            answer.headers["x-goog-generation"] = generation
        return answer
