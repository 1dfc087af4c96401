"""Other people's clients against the server: real Ray Serve with API keys, and the fake engine behind it.

A client that is not installed is skipped with the package that it needs: `-ra`, which pytest has by default here,
says so at the end.
"""

import asyncio
import json
import subprocess

import pytest

from limrank.config import RERANKER, ServeJob
from limrank.engines import open_engine
from limrank.records import Query
from limrank.scoring import rank_judgments, score_query
from limrank.serving import job
from limrank.serving.key_sources import VARIABLE, new_key
from limrank.serving.options import to_candidates

ALIAS = "rerank-v3.5"
KEY = new_key()
CONFIG = ServeJob(run_dir="unused", engine={"kind": "fake"}, serving={"port": 0, "aliases": [ALIAS]})
QUERY = "merge sorted feeds"
DOCUMENTS = [f"passage {number}" for number in range(6)]


@pytest.fixture(scope="module")
def server(local_ray):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, f"client={KEY}")
        with job.serving(CONFIG) as url:
            yield url


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy of the environment comes between a client and the server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(scope="module")
def expected():
    """The order and the scores of limrank's own scoring on the same engine."""

    async def score():
        engine = open_engine(CONFIG.model, CONFIG.engine)
        candidates = to_candidates(DOCUMENTS)
        judgments = await score_query(Query("", QUERY), candidates, engine, CONFIG.scoring)
        return [(index, judgments[index].score) for index in rank_judgments(candidates, judgments)]

    return asyncio.run(score())


def needs(module, package):
    return pytest.importorskip(module, reason=f"the client is not installed: pip install {package}")


def ranking(results):
    return [(result.index, result.relevance_score) for result in results]


# ---- Cohere's SDK ------------------------------------------------------------------------


@pytest.fixture(params=["Client", "ClientV2"])
def cohere_client(request, server):
    cohere = needs("cohere", "cohere")
    return getattr(cohere, request.param)(KEY, base_url=server)


@pytest.mark.parametrize("model", [RERANKER, ALIAS])
def test_coheres_clients(cohere_client, expected, model):
    answer = cohere_client.rerank(model=model, query=QUERY, documents=DOCUMENTS, top_n=3)
    assert ranking(answer.results) == expected[:3]
    assert answer.id


def test_coheres_first_client_gets_documents(server, expected):
    client = needs("cohere", "cohere").Client(KEY, base_url=server)
    documents = [{"title": f"number {number}", "body": text} for number, text in enumerate(DOCUMENTS)]
    by_field = client.rerank(
        model=ALIAS, query=QUERY, documents=documents, rank_fields=["body"], return_documents=True, max_chunks_per_doc=1
    )
    assert ranking(by_field.results) == expected
    texts = client.rerank(model=ALIAS, query=QUERY, documents=DOCUMENTS, return_documents=True)
    assert [result.document.text for result in texts.results] == [DOCUMENTS[index] for index, _ in expected]


def test_coheres_asynchronous_client(server, expected):
    cohere = needs("cohere", "cohere")

    async def ask():
        async with cohere.AsyncClientV2(KEY, base_url=server) as client:
            return await client.rerank(model=ALIAS, query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=4096)

    assert ranking(asyncio.run(ask()).results) == expected


@pytest.mark.parametrize(
    ("error", "status", "key", "model", "documents"),
    [
        ("UnauthorizedError", 401, "x" * 40, ALIAS, DOCUMENTS),
        ("NotFoundError", 404, KEY, "rerank-v2.0", DOCUMENTS),
        ("BadRequestError", 400, KEY, ALIAS, []),
        ("UnprocessableEntityError", 422, KEY, ALIAS, ["a"] * 1001),
    ],
)
def test_coheres_errors(server, error, status, key, model, documents):
    cohere = needs("cohere", "cohere")
    errors = needs("cohere.errors", "cohere")
    with pytest.raises(getattr(errors, error)) as raised:
        cohere.ClientV2(key, base_url=server).rerank(model=model, query=QUERY, documents=documents)
    assert raised.value.status_code == status


# ---- what is built on it -----------------------------------------------------------------


def test_langchains_reranker(server, expected):
    reranker = needs("langchain_cohere", "langchain-cohere").CohereRerank(
        cohere_api_key=KEY, base_url=server, model=ALIAS, top_n=3
    )
    document = needs("langchain_core.documents", "langchain-cohere").Document
    given = [document(text, metadata={"place": place}) for place, text in enumerate(DOCUMENTS)]
    found = reranker.compress_documents(given, QUERY)
    ranked = [(each.metadata["place"], each.metadata["relevance_score"]) for each in found]
    assert ranked == expected[:3]
    by_field = reranker.rerank([{"text": text} for text in DOCUMENTS], QUERY, top_n=None)
    assert len(by_field) == len(DOCUMENTS)


def test_llamaindexs_reranker(server, expected):
    package = "llama-index-postprocessor-cohere-rerank"
    reranker = needs("llama_index.postprocessor.cohere_rerank", package).CohereRerank(
        api_key=KEY, base_url=server, model=ALIAS, top_n=3
    )
    schema = needs("llama_index.core.schema", package)
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [(DOCUMENTS.index(each.node.text), each.score) for each in found] == expected[:3]


@pytest.mark.parametrize("provider", ["cohere", "jina"])
def test_the_rerankers_package(server, expected, provider):
    rerankers = needs("rerankers", "rerankers")
    needs("requests", "requests")
    ranker = rerankers.Reranker(
        ALIAS, model_type="APIRanker", api_provider=provider, api_key=KEY, url=f"{server}/v1/rerank", verbose=0
    )
    found = ranker.rank(QUERY, DOCUMENTS)
    assert [(each.document.doc_id, each.score) for each in found.results] == expected
    assert found.top_k(1)[0].text == DOCUMENTS[expected[0][0]]


# ---- curl --------------------------------------------------------------------------------


def curl(*arguments):
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--noproxy", "*", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("curl is not installed")


@pytest.mark.parametrize("header", ["Authorization: Bearer {}", "X-API-Key: {}"])
def test_curl(server, expected, header):
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS, "top_n": 2})
    done = curl(f"{server}/v1/rerank", "-H", header.format(KEY), "-H", "content-type: application/json", "-d", body)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(result["index"], result["relevance_score"]) for result in results] == expected[:2]


def test_curl_without_a_content_type_and_from_a_pipe(server, expected):
    body = json.dumps({"text_1": QUERY, "text_2": DOCUMENTS})
    command = ["curl", "-sS", "--noproxy", "*", f"{server}/v1/score", "-H", f"X-API-Key: {KEY}", "--data-binary", "@-"]
    command += ["-H", "content-type:"]  # curl would call it a form
    try:
        done = subprocess.run(command, input=body, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("curl is not installed")
    found = {entry["index"]: entry["score"] for entry in json.loads(done.stdout)["data"]}
    assert found == dict(expected)


def test_curl_without_a_key_fails_and_says_why(server):
    done = curl("--fail-with-body", f"{server}/v1/rerank", "-d", "{}")
    assert done.returncode == 22
    assert json.loads(done.stdout)["error"]["code"] == "missing_api_key"
