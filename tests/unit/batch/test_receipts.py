import json
from dataclasses import replace

import pyarrow as pa
import pytest

from helpers.units import RECEIPT, EchoTask, planned, runner
from limrank.batch.receipts import Receipt, read_receipts
from limrank.batch.summary import manifest_sections, summarize
from limrank.storage import Storage


def test_a_receipt_travels_as_json():
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-60] + bytes(60), lambda data: b""]
)
def test_a_damaged_file_is_not_committed(tmp_path, damage):
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask()).run(0, isolated=False)
    storage.write_bytes("rows/chunk-000000.parquet", damage(storage.read_bytes("rows/chunk-000000.parquet")))
    assert read_receipts(storage) == []


def test_a_receipt_says_how_many_rows_are_kept_and_of_an_older_one_they_are_counted(tmp_path):
    storage = Storage(str(tmp_path))
    rows = pa.table({"name": ["a", "b", "c"], "kept": [True, False, True]})
    older = {name: value for name, value in json.loads(RECEIPT.to_json()).items() if name != "kept"}
    noted = rows.replace_schema_metadata({b"limrank.receipt": json.dumps(older).encode()})
    storage.write_table("rows/chunk-000000.parquet", noted)
    newer = replace(RECEIPT, chunk=1, kept=5)
    storage.write_table("rows/chunk-000001.parquet", newer.attach(rows))
    # Of rows that are all there to stay nothing is counted.
    storage.write_table("rows/chunk-000002.parquet", replace(RECEIPT, chunk=2).attach(rows.select(["name"])))
    receipts = read_receipts(storage)
    assert [receipt.kept for receipt in receipts] == [2, 5, None]
    summary = summarize(receipts, 60)
    assert summary.kept == 7 and manifest_sections(summary, "seeds")["counts"]["kept"] == 7
    assert summarize(receipts[2:], 20).kept is None
