"""The OpenAPI document against the server itself: schemathesis makes requests from it, through Ray Serve's proxy."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from helpers.openapi_checks import CHECKS
from limrank.config import ServeJob
from limrank.serving import job

EXAMPLES = 150
"""Of each operation that scores; all together take well under a minute."""

CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake"},
    scoring={"mode": "budget", "max_think_tokens": 30},
    serving={"port": 0, "modes": ["cascade"]},
)
OPERATIONS = [
    ("post", "/v1/rerank"),
    ("post", "/v2/rerank"),
    ("post", "/v1/score"),
    ("get", "/v1/models"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
]


@pytest.fixture(scope="module")
def document(local_ray):
    with job.serving(CONFIG) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_operation_is_tried(document):
    assert {(operation.ok().method, operation.ok().path) for operation in document.get_all_operations()} == set(
        OPERATIONS
    )


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_documented(document, method, path):
    @given(case=document[path][method.upper()].as_strategy())
    @settings(
        max_examples=EXAMPLES if method == "post" else 5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    def answered(case):
        case.validate_response(case.call(), checks=CHECKS)

    answered()
