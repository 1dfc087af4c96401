import pytest

from helpers.units import EchoTask, planned, runner
from limrank.batch.receipts import read_receipts
from limrank.batch.rows import check_unique
from limrank.errors import StorageError


def test_ids_are_unique_over_all_chunks(tmp_path):
    names = [f"u{number:03d}" for number in range(130)]
    storage, plan = planned(tmp_path, names)
    for chunk in plan.chunks:
        runner(storage, EchoTask()).run(chunk.number, isolated=False)
    assert [receipt.chunk for receipt in read_receipts(storage)] == [0, 1, 2]
    check_unique(storage, ("unit_id",))
    storage.write_bytes("rows/chunk-000007.parquet", storage.read_bytes("rows/chunk-000002.parquet"))
    with pytest.raises(StorageError, match="2 of 132 rows are there twice, such as unit_id 'u12[89]'"):
        check_unique(storage, ("unit_id",))


def test_a_key_is_all_of_its_columns(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask(row_error={"a", "b"})).run(0, isolated=False)
    # Different units with the same answer (none) are different rows.
    check_unique(storage, ("unit_id", "answer"))


def test_ids_that_share_a_hash_are_not_the_same(tmp_path, monkeypatch):
    import numpy as np
    import pandas.util

    monkeypatch.setattr(pandas.util, "hash_array", lambda ids, categorize: np.zeros(len(ids), np.uint64))
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask()).run(0, isolated=False)
    check_unique(storage, ("unit_id",))
