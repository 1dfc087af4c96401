"""Conditional writes, with a store in memory that keeps all conditions, some or none."""

import obstore
import pytest
from obstore.exceptions import NotSupportedError

from limrank.stores import Location, Store, store


def in_memory(monkeypatch, put=obstore.put):
    monkeypatch.setattr(store, "client_of", lambda location: obstore.store.MemoryStore())
    monkeypatch.setattr(obstore, "put", put)
    return Store(Location("s3", "bucket", "", {}))


REAL_PUT = obstore.put


def ignoring(kind):
    """A put that leaves out a kind of condition: ``str`` is that there is no object, ``dict`` that it has a version."""

    def put(client, path, data, **options):
        return REAL_PUT(
            client, path, data, **{key: each for key, each in options.items() if not isinstance(each, kind)}
        )

    return put


def refusing(kind):
    def put(client, path, data, **options):
        if isinstance(options.get("mode"), kind):
            raise NotSupportedError("501 Not Implemented")
        return REAL_PUT(client, path, data, **options)

    return put


def test_an_object_is_created_once_and_a_version_replaced_once(monkeypatch):
    found = in_memory(monkeypatch)
    first = found.create("a", b"1")
    assert first and found.create("a", b"2") is None
    second = found.replace("a", b"3", first)
    assert second and found.replace("a", b"4", first) is None
    assert (found.read("a"), found.stat("a").version) == (b"3", second)


@pytest.mark.parametrize(
    ("put", "has"),
    [(REAL_PUT, True)] + [(how(kind), False) for how in (ignoring, refusing) for kind in (str, dict)],
)
def test_a_store_has_conditions_if_it_keeps_both(monkeypatch, caplog, put, has):
    found = in_memory(monkeypatch, put)
    assert found.has_conditions("probe") is has
    assert caplog.text.count("has no conditional writes") == (not has)
    assert found.walk("") == []
