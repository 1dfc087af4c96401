"""A unit that kills every engine it meets, among ten thousand that do not."""

import subprocess

import pytest

from helpers.beir import write_common
from helpers.rundirs import rows_of
from helpers.runs import Work

UNITS = 10_000
POISON = "q7777"

pytestmark = pytest.mark.faults


def test_one_poison_unit_is_one_failure(tmp_path):
    beir = write_common(tmp_path / "beir", queries=UNITS, documents=1)
    work = Work(beir, queries=UNITS, depth=1, engine={"kind": "fake", "poison": "common need 7777"})
    run_dir = tmp_path / "run"
    done = subprocess.run(work.command(run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    (failure,) = rows_of(run_dir, "failures")
    assert failure["unit_id"].split("\t")[0] == POISON
    assert failure["error_type"] == "EngineError"
    rows = rows_of(run_dir)
    assert len(rows) == len({row["query_id"] for row in rows}) == UNITS
    assert [row["query_id"] for row in rows if row["status"] != "direct"] == [POISON]
    assert [row["query_id"] for row in rows if row["score"] is None] == [POISON]
