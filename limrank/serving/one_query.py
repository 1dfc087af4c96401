"""Serve a reranker for one query over HTTP and keep the answer: a pipeline's check that its model can be served."""

from __future__ import annotations

import json

from limrank.config import FirstStageConfig, ServeJob
from limrank.engines import EngineSource
from limrank.errors import UserError
from limrank.parsing import parse_json
from limrank.progress import Event, Progress
from limrank.records import Benchmark
from limrank.retrieval import candidates
from limrank.scoring import prompt_query
from limrank.serving.job import serving
from limrank.serving.key_sources import hashed, new_key
from limrank.serving.keys import KeyRing
from limrank.storage import Storage

_ANSWER = "answer.json"
_DOCUMENTS = 5


def serve_one_query(
    config: ServeJob, source: EngineSource, benchmark: Benchmark, first_stage: FirstStageConfig, progress: Progress
) -> None:
    """Serve, post the first query that has candidates, write ``answer.json`` into ``config.run_dir``, stop serving.

    Raises:
        UserError, EngineError: see :func:`limrank.serving.job.serving`.
        httpx.HTTPError: the server did not answer with 200.
    """
    import httpx

    query, found = next((query, found) for query, found in candidates(benchmark, first_stage) if found)
    documents = [each.text for each in found[:_DOCUMENTS]]
    request = {
        "query": prompt_query(query),
        "documents": documents,
        "return_documents": False,
        "min_score": 0,  # an answer has a best document, whatever the server leaves out by default
    }
    progress.update(Event("serve", 0, 1, "requests"))
    # The server takes this process alone, whatever address it listens on.
    key = new_key()
    keys = KeyRing({"pipeline": hashed(key)})
    with serving(config, source, keys) as url:
        headers = {"Authorization": f"Bearer {key}"}
        # A proxy set for the outside must not be asked for a loopback address.
        response = httpx.post(f"{url}/v1/rerank", json=request, headers=headers, timeout=300, trust_env=False)
        response.raise_for_status()
    progress.update(Event("serve", 1, 1, "requests", finished=True))
    ranked = [result | {"doc_id": found[result["index"]].doc_id} for result in response.json()["results"]]
    Storage(config.run_dir).write_text(_ANSWER, json.dumps({"query_id": query.query_id, "results": ranked}) + "\n")


def best_document(run_dir: str) -> str | None:
    """The id of the first document of the kept answer; None where there is no answer, or it is damaged."""
    try:
        answer = parse_json(Storage(run_dir).read_bytes(_ANSWER), _ANSWER, expect=dict)
        return str(answer["results"][0]["doc_id"])
    except (OSError, UserError, LookupError, TypeError):
        return None
