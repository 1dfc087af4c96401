"""Object stores (``s3://``, ``gs://``) through obstore: whole objects, conditional writes, and patience.

A store that throttles (429, 503 SlowDown) is waited for, and so is one that has answered this process before and is
out of reach now. An object appears whole or not at all: an upload that is broken off is aborted. Every error is an
OSError of one line.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from limrank.errors import first_line
from limrank.uris import credentials_in, is_uri

PATIENCE_S = 300.0
"""How long a store that throttles, or is out of reach for a while, is waited for."""

_LONGEST_WAIT_S = 15.0
_RETRIES = 4
"""Of the client itself, in about two seconds. After them the waits of :data:`PATIENCE_S` begin."""

_PART = 16 << 20
"""Bytes of a part of a large upload."""

_PARTS_AT_ONCE = 4
_BUFFER = 1 << 20

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_SETTINGS = {"endpoint_override", "scheme", "region", "anonymous"}

_STATUS = re.compile(r"status code: (\d{3})")
_REQUEST = re.compile(r"Error performing (\w+) (\w+://[^/\s]+)\S* in .*? - (.*)")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>|\"message\": ?\"(.*?)\"", re.DOTALL)

_log = logging.getLogger(__name__)

Version = dict[str, str]
"""What identifies one version of an object (``e_tag``, on GCS also ``version``)."""


class Stat(NamedTuple):
    """An object's version and the time of its last change, by the store's clock."""

    version: Version
    modified: datetime


class Listed(NamedTuple):
    """What lies in a folder: names of objects and of folders, without the folder's own path."""

    files: list[str]
    folders: list[str]


@dataclass(frozen=True)
class Location:
    """A URI's parts. ``settings`` are those of its query."""

    kind: str
    bucket: str
    path: str
    settings: dict[str, str]

    @classmethod
    def of(cls, uri: str) -> Location:
        """Raises ValueError: it is no URI of a store, or holds credentials or an unknown setting."""
        if found := credentials_in(uri):
            raise ValueError(f"holds credentials ({found}); put them into the environment (AWS_ACCESS_KEY_ID, …)")
        split = urlsplit(uri)
        kind = _SCHEMES.get(split.scheme.lower())
        if kind is None or not split.netloc:
            raise ValueError("no object store: s3://BUCKET/PATH and gs://BUCKET/PATH are")
        settings = dict(parse_qsl(split.query, keep_blank_values=True))
        if unknown := sorted(settings.keys() - _SETTINGS):
            raise ValueError(f"has the setting {unknown[0]}; there are {', '.join(sorted(_SETTINGS))}")
        return cls(kind, split.netloc, split.path.strip("/"), settings)

    @property
    def endpoint(self) -> str | None:
        """The address that the URI or the environment names, with its scheme; None for the provider's own."""
        if given := self.settings.get("endpoint_override"):
            return given if "://" in given else f"{self.settings.get('scheme', 'https')}://{given}"
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if self.kind == "s3" else ("STORAGE_EMULATOR_HOST",)
        found = next((value for name in names if (value := os.environ.get(name))), None)
        return found if found is None or "://" in found else f"http://{found}"

    @property
    def is_anonymous(self) -> bool:
        """Whether requests carry no credentials: as the URI says, and for an emulator of GCS."""
        return self.settings.get("anonymous", "").lower() == "true" or (self.kind == "gs" and bool(self.endpoint))


class Store:
    """One bucket. Paths are names in it, without a leading slash. Every method raises OSError."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._store = _client(location)
        self._answered = False
        self._has_conditions: bool | None = None

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError: there is no such object."""
        import obstore

        return self._asked(lambda: bytes(obstore.get(self._store, path).bytes()))

    def open(self, path: str, part: int = 1 << 20) -> BinaryIO:
        """A seekable stream, which asks for ``part`` bytes at a time. Raises FileNotFoundError."""
        import obstore

        file = self._asked(lambda: obstore.open_reader(self._store, path, buffer_size=part))
        return io.BufferedReader(_Reader(self, file), min(part, _BUFFER))  # type: ignore[return-value]

    def write(self, path: str, data: bytes | Path) -> None:
        """Replace an object by these bytes, or by a file's, of any size."""
        self._put(path, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)

    def create(self, path: str, data: bytes) -> Version | None:
        """Write an object that is not there yet; None where it is. A request that is sent again may find what it has
        written itself: the caller compares the contents.

        Raises:
            NotImplementedError: the store has no conditional writes.
        """
        return self._conditional(path, data, "create")

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        """Write an object if it still has this version; None where it has not. See :meth:`create`."""
        return self._conditional(path, data, version)

    def has_conditions(self, path: str) -> bool:
        """Whether the store refuses to create an object twice. It is asked once, with an object at ``path``, which is
        deleted again. A logged warning says so where it does not."""
        if self._has_conditions is None:
            try:
                self.create(path, b"")
                self._has_conditions = self.create(path, b"") is None
            except NotImplementedError:
                self._has_conditions = False
            finally:
                self.delete(path)
            if not self._has_conditions:
                where = f"{self._location.kind}://{self._location.bucket}"
                _log.warning(
                    "%s: the store has no conditional writes: two drivers are told apart by their times", where
                )
        return self._has_conditions

    def stat(self, path: str) -> Stat:
        """Raises FileNotFoundError."""
        import obstore

        found = self._asked(lambda: obstore.head(self._store, path))
        return Stat(_version(found), found["last_modified"])

    def exists(self, path: str) -> bool:
        """Whether there is an object of this name, or a folder."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return any(self.folder(path))
        return True

    def folder(self, path: str) -> Listed:
        """What lies in a folder, each sorted; nothing where there is no such folder."""
        import obstore

        found = self._asked(lambda: obstore.list_with_delimiter(self._store, path or None))
        start = len(path) + 1 if path else 0
        folders = {each[start:] for each in found["common_prefixes"]}
        files = {each["path"][start:] for each in found["objects"]}
        return Listed(sorted(files - folders - {""}), sorted(folders))

    def walk(self, path: str) -> list[str]:
        """The names of all objects below a folder, relative to it, sorted, without the marks of its folders."""
        import obstore

        found = self._asked(lambda: obstore.list(self._store, path or None).collect())
        names = {each["path"][len(path) + 1 if path else 0 :] for each in found}
        folders = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
        return sorted(names - folders - {""})

    def delete(self, path: str) -> None:
        """Delete an object, if it exists."""
        import obstore

        try:
            self._asked(lambda: obstore.delete(self._store, path))
        except FileNotFoundError:
            return

    def _put(self, path: str, data: Any, **options: Any) -> Version:
        import obstore

        try:
            return _version(self._asked(lambda: obstore.put(self._store, path, data, **options)))
        except FileNotFoundError as error:  # the answer where there is no bucket
            raise OSError(str(error)) from error

    def _conditional(self, path: str, data: bytes, mode: Any) -> Version | None:
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        try:
            return self._put(path, data, mode=mode)
        except OSError as error:
            if isinstance(error.__cause__, AlreadyExistsError | PreconditionError):
                return None
            if isinstance(error.__cause__, NotSupportedError) or _status(error.__cause__) == 501:
                raise NotImplementedError(str(error)) from error
            # S3 answers so where the object of a version is gone.
            if mode != "create" and _status(error.__cause__) in (404, 409):
                return None
            raise

    def _asked(self, request: Callable[[], Any]) -> Any:
        """A request's answer, waited for while the store throttles."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        patient = Retrying(
            retry=retry_if_exception(self._is_passing),
            wait=wait_random_exponential(multiplier=1, max=_LONGEST_WAIT_S),
            stop=stop_after_delay(PATIENCE_S),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            answer = patient(request)
        except FileNotFoundError as error:
            self._answered = True
            raise FileNotFoundError(_reason(error)) from error
        except Exception as error:  # obstore's, by no common base with OSError
            from obstore.exceptions import BaseError

            if not isinstance(error, BaseError | OSError):
                raise
            self._answered |= _status(error) is not None
            raise OSError(_reason(error)) from error
        self._answered = True
        return answer

    def _tell(self, state: Any) -> None:
        if state.attempt_number == 1:
            where = f"{self._location.kind}://{self._location.bucket}"
            _log.warning("%s: %s: waiting for it", where, _reason(state.outcome.exception()))

    def _is_passing(self, error: BaseException) -> bool:
        """Whether a request may succeed later: the store is busy, or has answered before and does not now."""
        from obstore.exceptions import GenericError

        if not isinstance(error, GenericError):
            return False
        status = _status(error)
        return status in (429, 500, 502, 503, 504) or (status is None and self._answered)


class _Reader(io.RawIOBase):
    """A file of the store as pyarrow and ``io`` read it."""

    def __init__(self, store: Store, file: Any) -> None:
        self._store = store
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        data = self._store._asked(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def is_store(path: str) -> bool:
    """Whether a path is a URI of an object store that limrank reads and writes."""
    return is_uri(path) and path.partition("://")[0].lower() in _SCHEMES


@lru_cache(maxsize=256)
def store_of(uri: str) -> tuple[Store, str]:
    """The bucket of a URI, and the path in it. A process has one client for each bucket.

    Raises:
        ValueError: see :meth:`Location.of`.
    """
    location = Location.of(uri)
    return _bucket(location.kind, location.bucket, tuple(sorted(location.settings.items()))), location.path


@lru_cache(maxsize=64)
def _bucket(kind: str, bucket: str, settings: tuple[tuple[str, str], ...]) -> Store:
    return Store(Location(kind, bucket, "", dict(settings)))


@lru_cache(maxsize=256)
def filesystem(path: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a local path or URI, and the path in it: for readers of Parquet and for Ray Train.

    The store's settings are in the URI's query (``s3://bucket/run?endpoint_override=…&scheme=http``) or in the
    environment (``AWS_ENDPOINT_URL``). A process creates one filesystem per path, so that clients keep their
    connections.

    Raises:
        ValueError: pyarrow does not know the URI's scheme, or the URI holds credentials.
        OSError: the store cannot be reached.
    """
    from pyarrow.fs import FileSystem, GcsFileSystem, LocalFileSystem

    if not is_uri(path):
        return LocalFileSystem(), path
    if found := credentials_in(path):
        raise ValueError(f"holds credentials ({found}); put them into the environment (AWS_ACCESS_KEY_ID, …)")
    if path.partition("://")[0].lower() in ("gs", "gcs"):
        location = Location.of(path)
        scheme, _, host = (location.endpoint or "").partition("://")
        settings = {"scheme": scheme, "endpoint_override": host.rstrip("/")} if host else {}
        files = GcsFileSystem(anonymous=location.is_anonymous, **settings)
        return files, f"{location.bucket}/{location.path}".rstrip("/")
    files, below = FileSystem.from_uri(path)
    return files, below.rstrip("/")


def _client(location: Location) -> Any:
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


_NO_CREDENTIALS = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
_HAS_ROLE = {
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
}
"""Variables of a machine's role other than EC2's."""

_METADATA = "169.254.169.254"
_OF_ACCOUNT = ("client_email", "private_key", "private_key_id")


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
            raise ValueError(_NO_CREDENTIALS)
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        raise ValueError("the credentials of ~/.aws need boto3: pip install boto3, or set AWS_ACCESS_KEY_ID") from None
    return Boto3CredentialProvider()


def _version(found: Any) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found.get(name)}


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error of obstore's; None where there was no answer."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _reason(error: Exception) -> str:
    """An error on one line: what the store said, or what the client met."""
    text, status = str(error), _status(error)
    if _METADATA in text:
        return _NO_CREDENTIALS if "S3" in text else "no credentials: set GOOGLE_APPLICATION_CREDENTIALS, or a role"
    if said := _MESSAGE.search(text):
        return f"{said[1] or said[2]} (HTTP status {status})"
    if (asked := _REQUEST.search(text)) and status is None:
        return f"{asked[2]} does not answer: {asked[3]}"
    return f"{asked[1]} {asked[2]}: {asked[3]}" if asked else first_line(error)
