"""The URI of a place in an object store: its bucket, path, settings and endpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from limrank.uris import credentials_in, is_uri

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_SETTINGS = {"endpoint_override", "scheme", "region", "anonymous"}


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
        # As the stores' own tools take it: "#" and "%20" stand for themselves in a path.
        split = urlsplit(uri, allow_fragments=False)
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


def is_store(path: str) -> bool:
    """Whether a path is a URI of an object store that limrank reads and writes."""
    return is_uri(path) and path.partition("://")[0].lower() in _SCHEMES
