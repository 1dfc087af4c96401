import json
from dataclasses import replace

import pyarrow as pa
import pytest

from helpers.units import EchoTask, planned, runner
from limrank.batch.receipts import (
    Receipt,
    Summary,
    Work,
    _covered,
    check_unique,
    manifest_parts,
    read_receipts,
    summarize,
)
from limrank.errors import StorageError
from limrank.storage import Storage

WORK = Work("s", "one", began=100.0, ended=104.0, ready=99.0, startup_seconds=3.0, engines=1, busy_seconds=3.5)
RECEIPT = Receipt(
    chunk=0,
    units=2,
    rows=20,
    failed=1,
    requests=20,
    prompt_tokens=100,
    cached_prompt_tokens=40,
    generated_tokens=10,
    work=(WORK,),
)


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 5)], 4),
        ([(1, 9), (2, 3), (4, 5)], 8),
        ([(6, 7), (1, 2)], 2),
        ([(1, 2), (2, 3)], 2),
        ([(1, 2), (1, 2)], 1),
    ],
)
def test_time_that_spans_share_counts_once(spans, covered):
    assert _covered(spans) == covered


def test_a_summary_of_two_chunks_that_overlap():
    # 100 … 104 and 102 … 108: eight seconds of work for 40 pairs.
    later = replace(WORK, worker="two", began=102.0, ended=108.0, ready=100.0, startup_seconds=5.0, busy_seconds=6.0)
    summary = summarize([RECEIPT, replace(RECEIPT, chunk=1, failed=0, work=(later,))], 40)
    assert summary == Summary(
        units=4,
        rows=40,
        failed=1,
        prompt_tokens=200,
        cached_prompt_tokens=80,
        generated_tokens=20,
        seconds=8.0,
        startup_seconds=5.0,
        busy_seconds=9.5,
        idle_seconds=3.5,  # 99 … 104 and 100 … 108, less what they were busy
        rate=5.0,
    )
    assert summary.tokens == 220
    assert manifest_parts(summary, "pairs") == {
        "counts": {"units": 4, "rows": 40, "failed": 1},
        "seconds": {"engine_startup": 5.0, "work": 8.0, "engine_busy": 9.5, "engine_idle": 3.5},
        "tokens": {"prompt": 200, "cached_prompt": 80, "generated": 20},
        "rates": {"pairs_per_second": 5.0, "tokens_per_second": 27.5},
        "dtype": {},
    }


def test_what_models_computed_with_is_told_by_role():
    first = replace(WORK, dtypes={"writer": "bfloat16", "judge": "float32"})
    other = replace(WORK, worker="two", dtypes={"writer": "float32"})
    summary = summarize([replace(RECEIPT, work=(first,)), replace(RECEIPT, chunk=1, work=(other,))], 40)
    assert manifest_parts(summary, "pairs")["dtype"] == {"judge": "float32", "writer": "bfloat16, float32"}


def test_a_worker_s_last_word_says_how_busy_it_was():
    # Both chunks are of one worker with two engines: up from 99 to 110, 22 engine-seconds.
    later = replace(WORK, began=104.0, ended=110.0, engines=2, busy_seconds=20.0)
    summary = summarize([replace(RECEIPT, chunk=1, work=(later,)), RECEIPT], 40)
    assert (summary.busy_seconds, summary.idle_seconds) == (20.0, 2.0)


def test_a_second_try_counts_its_own_time_too():
    again = replace(WORK, session="later", worker="three", began=900.0, ended=902.0, ready=899.0, busy_seconds=1.0)
    summary = summarize([replace(RECEIPT, work=(WORK, again))], 20)
    assert (summary.seconds, summary.busy_seconds, summary.idle_seconds) == (6.0, 4.5, 3.5)


def test_a_pause_between_two_sessions_is_no_work():
    tomorrow = replace(WORK, worker="two", began=90_000.0, ended=90_004.0, ready=90_000.0)
    assert summarize([RECEIPT, replace(RECEIPT, chunk=1, work=(tomorrow,))], 40).seconds == 8.0


def test_nothing_done_has_no_rate():
    assert summarize([], 0).rate is None


def test_a_receipt_travels_as_json():
    assert Receipt.from_json(RECEIPT.to_json()) == RECEIPT


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
    assert summary.kept == 7 and manifest_parts(summary, "seeds")["counts"]["kept"] == 7
    assert summarize(receipts[2:], 20).kept is None
