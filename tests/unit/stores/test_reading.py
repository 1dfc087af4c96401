"""A store that goes away while a file is read, with a store in memory."""

import obstore
import pyarrow as pa
import pytest
from obstore.exceptions import GenericError

from limrank.batch.plan import read_chunk, write_plan
from limrank.batch.receipts import read_receipt
from limrank.errors import StorageError
from limrank.storage import Storage
from limrank.stores import patience, store

AWAY = "Error performing GET http://store:9/b/x in 1ms - HTTP error: error sending request"


def test_a_store_that_goes_away_is_not_a_damaged_file(monkeypatch):
    """The message for a damaged file says to delete it, or to start over."""
    monkeypatch.setattr(store, "client_of", lambda location: obstore.store.MemoryStore())
    storage = Storage("s3://goes-away/run")
    schema = pa.schema([("unit_id", pa.string()), ("cost", pa.int64())])
    write_plan(storage, [({"unit_id": "a", "cost": 1}, 1)], schema, chunk_cost=10)
    storage.write_table("rows/chunk-000000.parquet", pa.table({"x": [1]}))

    class Away:
        def __init__(self, file):
            self.seek, self.tell = file.seek, file.tell

        def read(self, size):
            raise GenericError(AWAY)

    open_reader = obstore.open_reader
    monkeypatch.setattr(obstore, "open_reader", lambda *args, **options: Away(open_reader(*args, **options)))
    for read, name in (
        (lambda: read_chunk(storage, 0), "units/part-00000.parquet"),
        (lambda: read_receipt(storage, "chunk-000000.parquet"), "rows/chunk-000000.parquet"),
    ):
        message = rf"run_dir s3://goes-away/run: {name} cannot be read: http://store:9 does not answer"
        with patience(0.01), pytest.raises(StorageError, match=message):
            read()
