"""Clients of stores: obstore's for everything that limrank writes, pyarrow's for Parquet data and Ray Train."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from functools import lru_cache
from typing import Any

from limrank.stores.errors import NO_CREDENTIALS
from limrank.stores.location import Location, is_store
from limrank.uris import credentials_in, is_uri

_RETRIES = 4
"""Of the client itself, in about two seconds. After them the waits of :data:`PATIENCE_S` begin."""

_HAS_ROLE = {
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
}
"""Variables of a machine's role other than EC2's."""

_OF_ACCOUNT = ("client_email", "private_key", "private_key_id")


@lru_cache(maxsize=256)
def filesystem(path: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a local path or URI, and the path in it: for readers of Parquet and for Ray Train.

    The store's settings are in the URI's query (``s3://bucket/run?endpoint_override=…&scheme=http``) or in the
    environment (``AWS_ENDPOINT_URL``). A process creates one filesystem per path, so that clients keep their
    connections.

    Raises:
        ValueError: pyarrow does not know the URI's scheme, or see :meth:`Location.of`.
        OSError: the file system cannot be reached.
    """
    from pyarrow.fs import FileSystem, GcsFileSystem, LocalFileSystem, S3FileSystem

    if not is_uri(path):
        return LocalFileSystem(), path
    if not is_store(path):  # data may be where limrank writes nothing, such as hdfs://
        if found := credentials_in(path):
            raise ValueError(f"holds credentials ({found}); put them into the environment")
        files, below = FileSystem.from_uri(path)
        return files, below.rstrip("/")
    location = Location.of(path)
    scheme, _, host = (location.endpoint or "").partition("://")
    settings = {"scheme": scheme, "endpoint_override": host.rstrip("/")} if host else {}
    below = f"{location.bucket}/{location.path}".rstrip("/")
    if location.kind == "gs":
        return GcsFileSystem(anonymous=location.is_anonymous, **settings), below
    region = location.settings.get("region") or _region(location.bucket, location.endpoint)
    return S3FileSystem(anonymous=location.is_anonymous, region=region, **settings), below


def client_of(location: Location) -> Any:
    from obstore.store import GCSStore, S3Store

    endpoint = location.endpoint
    config: dict[str, Any] = {"skip_signature": True} if location.is_anonymous else {}
    common = {
        "client_options": {"allow_http": bool(endpoint and endpoint.startswith("http://"))},
        "retry_config": {"max_retries": _RETRIES, "retry_timeout": timedelta(minutes=1)},
    }
    if location.kind == "gs":
        if endpoint:
            # As object stores' tests name an emulator: without a login, at its own address.
            emulator = {"gcs_base_url": endpoint, "disable_oauth": True}
            config = {"service_account_key": json.dumps(emulator | dict.fromkeys(_OF_ACCOUNT, ""))}
        return GCSStore(location.bucket, config=config, **common)
    if endpoint:
        config["endpoint"] = endpoint
    if region := location.settings.get("region") or _region(location.bucket, endpoint):
        config["region"] = region
    # Not every store of S3's kind deletes several objects with one request.
    config["disable_bulk_delete"] = True
    return S3Store(location.bucket, config=config, credential_provider=_profile(location), **common)


def _region(bucket: str, endpoint: str | None) -> str | None:
    """The region of a bucket of Amazon's, where nothing names it; None for other stores."""
    if endpoint or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return None
    from pyarrow.fs import resolve_s3_region

    try:
        return resolve_s3_region(bucket)
    except OSError:
        return None


def _profile(location: Location) -> Any:
    """A provider of the credentials in ``~/.aws``; None where the environment or the machine has them."""
    if location.is_anonymous or os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    named = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    if not (os.environ.get("AWS_PROFILE") or os.path.exists(named)):  # noqa: PTH110  a name, from the environment
        if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" and not _HAS_ROLE & os.environ.keys():
            raise ValueError(NO_CREDENTIALS)
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        raise ValueError("the credentials of ~/.aws need boto3: pip install boto3, or set AWS_ACCESS_KEY_ID") from None
    return Boto3CredentialProvider()
