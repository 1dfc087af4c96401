"""URIs of object stores: their parts, settings and paths, and what an error says. No store is asked."""

import pytest
from pyarrow.fs import FileSystem

from limrank.files import StorePath, path_of
from limrank.stores import Location, filesystem, is_store
from limrank.stores.errors import reason_of
from limrank.uris import is_uri


def test_the_parts_of_a_uri(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    found = Location.of("s3://bucket/runs/mine/?endpoint_override=host:9000&scheme=http&region=eu-1")
    assert (found.kind, found.bucket, found.path) == ("s3", "bucket", "runs/mine")
    assert (found.endpoint, found.settings["region"]) == ("http://host:9000", "eu-1")
    assert Location.of("s3://bucket?endpoint_override=https://host").endpoint == "https://host"
    assert (Location.of("gcs://b/x").kind, Location.of("s3://bucket").path, Location.of("s3://bucket").endpoint) == (
        "gs",
        "",
        None,
    )


def test_the_endpoint_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "emulator:4443")
    assert Location.of("s3://b/x").endpoint == "http://store:9000"
    assert Location.of("s3://b/x?endpoint_override=other").endpoint == "https://other"
    assert (Location.of("gs://b/x").endpoint, Location.of("gs://b/x").is_anonymous) == ("http://emulator:4443", True)
    assert not Location.of("s3://b/x").is_anonymous
    assert Location.of("s3://b/x?anonymous=true").is_anonymous


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://host/x", "no object store: s3://BUCKET/PATH and gs://BUCKET/PATH are"),
        ("s3:///x", "no object store"),
        ("s3://b/x?endpoint=host", "has the setting endpoint; there are anonymous, endpoint_override, region, scheme"),
        ("s3://key:secret@b/x", "holds credentials"),
    ],
)
def test_what_is_no_uri_of_a_store(uri, message):
    with pytest.raises(ValueError, match=message):
        Location.of(uri)


@pytest.mark.parametrize("uri", ["s3://b/x?region=eu-1&endpoint_override=h:9&scheme=http", "s3://b/x?region=eu-1"])
def test_pyarrow_s_client_is_as_pyarrow_makes_it(uri):
    assert filesystem(uri)[0].equals(FileSystem.from_uri(uri)[0])


@pytest.mark.parametrize("path", ["my runs/läufe", "a%20b", "run#1"])
def test_both_clients_take_a_path_as_it_stands(path):
    uri = f"s3://b/{path}?region=eu-1&anonymous=true"
    assert (filesystem(uri)[1], Location.of(uri).path) == (f"b/{path}", path)
    assert filesystem(f"s3a://b/{path}?region=eu-1")[1] == f"b/{path}"


def test_paths_in_a_store_are_joined_before_the_settings():
    path = path_of("s3://b/run/?scheme=http")
    assert str(path / "rows" / "a.parquet") == "s3://b/run/rows/a.parquet?scheme=http"
    assert ((path / "a.jsonl.gz").name, (path / "a.jsonl.gz").suffix, path.name) == ("a.jsonl.gz", ".gz", "run")
    assert path_of(path) is path and isinstance(path, StorePath)
    assert not isinstance(path_of("runs/mine"), StorePath)
    assert [is_store(each) for each in ("s3://b", "gs://b", "hub://a/b", "/s3/b")] == [True, True, False, False]
    assert is_uri("hub://a/b")


def test_what_an_error_says():
    request = "Generic S3 error: Error performing PUT http://h:9/b/x in 3.4ms, after 4 retries, max_retries: 4 "
    said = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    answered = f"{request}- Server returned non-2xx status code: 503 Service Unavailable: {said}\n\nDebug source:"
    assert reason_of(Exception(answered)) == "Please reduce your request rate. (HTTP status 503)"
    silent = f"{request}- HTTP error: error sending request\n\nDebug source:"
    assert reason_of(Exception(silent)) == "http://h:9 does not answer: HTTP error: error sending request"
    denied = "Generic S3 error: Error performing PUT http://169.254.169.254/latest in 1ms - status code: 403 Forbidden"
    assert reason_of(Exception(denied)).startswith("no credentials: set AWS_ACCESS_KEY_ID")
