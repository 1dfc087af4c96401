"""A pipeline's check that its model can be served. No server: the request is what counts."""

import contextlib
import json

import httpx

from limrank.config import FirstStageConfig, ServeJob
from limrank.records import Benchmark, Candidate, Query
from limrank.serving import one_query


def test_the_answer_is_never_empty(monkeypatch, tmp_path):
    asked = []

    def post(url, json, **_):
        asked.append(json)
        answer = {"results": [{"index": 0, "relevance_score": 0.1}]}
        return httpx.Response(200, json=answer, request=httpx.Request("POST", url))

    found = (Query("q", "cat"), [Candidate("d", "the cat", 1, 1.0)])
    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setattr(one_query, "serving", lambda *_: contextlib.nullcontext("http://x"))
    monkeypatch.setattr(one_query, "candidates", lambda *_: iter([found]))
    progress = type("Silent", (), {"update": lambda *_: None})()
    config = ServeJob(run_dir=str(tmp_path), scoring={"min_score": 0.9})
    one_query.serve_one_query(config, None, Benchmark("b", [], [], {}), FirstStageConfig(), progress)
    assert asked[0]["min_score"] == 0
    assert one_query.best_document(str(tmp_path)) == "d"
    assert json.loads((tmp_path / "answer.json").read_text())["query_id"] == "q"
