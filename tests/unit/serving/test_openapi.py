"""The OpenAPI document against the API itself: schemathesis makes requests from it, over the fake engine."""

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from helpers.backend import EngineBackend
from helpers.openapi_checks import AS_DOCUMENTED, CHECKS
from limrank.config import ModelConfig, ScoringConfig
from limrank.serving.api import build_api
from limrank.serving.protocol import MAX_DOCUMENTS, Served

EXAMPLES = 25


def make_api(**engine):
    backend = EngineBackend(**engine)
    backend.recipe = ScoringConfig(mode="budget", max_think_tokens=30)
    return build_api(backend, Served.of(ModelConfig(id="served"), backend.recipe))


API = make_api()
schema = schemathesis.openapi.from_asgi("/openapi.json", API)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_answers_are_as_documented(case):
    case.validate_response(case.call(), checks=CHECKS)


def faults(name, body):
    document = API.openapi()
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(body)]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("RerankRequest", {"query": "q", "documents": ["plain", {"text": "a", "title": "t", "id": 7, "more": [1]}]}),
        ("RerankRequest", {"query": "q", "documents": [{"body": "a"}], "rank_fields": ["body"], "deadline_ms": 1}),
        ("RerankRequest", {"query": "q", "documents": ["a"] * MAX_DOCUMENTS, "mode": "cascade", "min_score": 1}),
        ("ScoreRequest", {"text_1": "q", "text_2": "plain"}),
        ("ScoreRequest", {"text_1": "q", "text_2": ["a", "b"]}),
    ],
)
def test_what_is_taken_is_valid(name, body):
    assert not faults(name, body)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("RerankRequest", {"query": "q", "documents": []}),
        ("RerankRequest", {"query": "q", "documents": ["a"] * (MAX_DOCUMENTS + 1)}),
        ("RerankRequest", {"query": "", "documents": ["a"]}),
        ("RerankRequest", {"query": " ", "documents": ["a"]}),
        ("RerankRequest", {"query": "q", "documents": [1]}),
        ("RerankRequest", {"query": "q", "documents": ["a"], "top_n": 0}),
        ("RerankRequest", {"query": "q", "documents": ["a"], "mode": "none"}),
        ("RerankRequest", {"query": "q", "documents": ["a"], "min_score": 1.1}),
        ("RerankRequest", {"query": "q", "documents": ["a"], "deadline_ms": 86_400_001}),
        ("RerankRequest", {"query": "q", "documents": ["a"], "model": "m" * 1025}),
        ("ScoreRequest", {"text_1": "q", "text_2": []}),
        ("ScoreRequest", {"text_1": "q"}),
    ],
)
def test_what_is_refused_is_not(name, body):
    assert faults(name, body)


def test_every_error_has_the_one_schema_and_every_answer_an_id():
    document = API.openapi()
    for path in ("/v1/rerank", "/v2/rerank", "/v1/score", "/v1/models", "/healthz", "/readyz"):
        for operation in document["paths"][path].values():
            for status, answer in operation["responses"].items():
                assert "X-Request-Id" in answer["headers"]
                (name,) = answer["content"]["application/json"]["schema"].values()
                assert (name == "#/components/schemas/ErrorBody") == (status != "200")
    statuses = set(document["paths"]["/v2/rerank"]["post"]["responses"])
    assert statuses >= {"200", "400", "404", "422", "429", "500", "503", "504"}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_a_key_s_rate_may_ask_for_a_longer_wait_than_a_minute():
    refused = API.openapi()["paths"]["/v1/score"]["post"]["responses"]["429"]
    assert refused["headers"]["Retry-After"]["schema"] == {"type": "integer", "minimum": 1}


@pytest.mark.parametrize(
    ("engine", "body", "status"),
    [
        ({"fail_rate": 1.0}, {}, 422),
        ({"fault": {"latency_ms": 200}}, {"deadline_ms": 10}, 504),
        ({}, {"model": "another"}, 404),
        ({}, {"documents": [7]}, 400),
    ],
)
def test_errors_of_the_engine_and_the_request_are_documented(engine, body, status):
    operation = schemathesis.openapi.from_asgi("/openapi.json", make_api(**engine))["/v2/rerank"]["POST"]
    case = operation.Case(body={"query": "q", "documents": ["a"]} | body, media_type="application/json")
    answer = case.call()
    assert answer.status_code == status
    case.validate_response(answer, checks=AS_DOCUMENTED)
