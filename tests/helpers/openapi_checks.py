"""What an answer of the server has to be, by its OpenAPI document: checks for schemathesis."""

from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)


def no_failure_of_the_server(ctx, response, case):
    """A deadline of a millisecond may pass, as documented; nothing else is the server's fault."""
    assert response.status_code < 500 or (response.status_code == 504 and case.body["deadline_ms"])


AS_DOCUMENTED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CHECKS = [no_failure_of_the_server, *AS_DOCUMENTED]
