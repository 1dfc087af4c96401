import pytest

from helpers.endpoint import serving
from limrank.engines import retries


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.01)
    with serving() as server:
        yield server
