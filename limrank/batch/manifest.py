"""What a run's ``manifest.json`` holds, as it is read back: every part is of its type, or it is refused."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limrank.errors import UserError
from limrank.parsing import brief, parse_json

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Tokens(_Part):
    prompt: Count | None = None
    cached_prompt: Count | None = None
    generated: Count | None = None


class _Data(_Part):
    name: str = ""
    revision: str | None = None


class _Manifest(_Part):
    job: str = ""
    status: str = ""
    config_hash: str = ""
    started_at: str = ""
    versions: dict[str, str] = {}
    data: _Data = _Data()
    counts: dict[str, Count] = {}
    seconds: dict[str, Amount] = {}
    tokens: _Tokens = _Tokens()
    rates: dict[str, Amount] = {}


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The values of a manifest; parts may be missing, as beside a copied run.

    Raises:
        UserError: it is no JSON object, or a part of it has another type than limrank writes.
    """
    values = parse_json(data, where, expect=dict)
    check_manifest(values, where)
    return values


def check_manifest(values: dict[str, Any], where: str) -> None:
    """Raises UserError: a part of a manifest has another type than limrank writes."""
    try:
        _Manifest.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"]))
        what = fault["msg"][0].lower() + fault["msg"][1:]
        raise UserError(f"{where}: {key}: {what} (got {brief(fault['input'])})") from None
