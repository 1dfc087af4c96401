"""Every malformed file and value of ``tests/helpers/malformed.py`` is refused in one line, none crashes."""

import pytest

from helpers.malformed import all_cases, attempt, fault

CASES = all_cases()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}"[:80])
def test_it_is_refused_in_one_line_or_accepted(case):
    assert fault(case, attempt(case)) is None
