"""``manifest.json``: what a run directory says of its run. One model writes it and reads it back."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from limrank.errors import StorageError, UserError, first_line
from limrank.parsing import brief, parse_json
from limrank.storage import Storage
from limrank.uris import redacted_values

SCHEMA_VERSION = 1
"""The version of a run directory's layout."""

EMPTIED = "emptied"
"""The status of a run that ``--overwrite`` has removed, until the next run begins in its directory."""


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a number and keep it as it is: 0 is not rewritten as 0.0."""
    check(value)
    return value


Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0), WrapValidator(_as_written)]


class _Section(BaseModel):
    """Keys that this version does not know are kept."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="allow")


class Tokens(_Section):
    """Totals over the run. A synthesize job adds ``by_step``, a train job has only ``trained``."""

    prompt: Count | None = None
    cached_prompt: Count | None = None
    generated: Count | None = None


class Data(_Section):
    """A benchmark of the hub. ``revision`` is the git revision asked for, None for the newest."""

    name: str = ""
    revision: str | None = None


class Fusion(_Section):
    """How a rerank job's run is fused with its first stage; no key where it is not.

    ``weight`` is the first stage's. ``dev_run``, ``dev_queries`` and ``dev_ndcg`` (nDCG@10 by weight) say on what it
    was chosen.
    """

    weight: Annotated[Amount, Field(le=1)] | None = None
    dev_run: str | None = None
    dev_queries: Count | None = None
    dev_ndcg: dict[str, Amount] = {}


class Manifest(_Section):
    """The facts of a run, in the order in which they are written. Any of them may be missing, as with a copied run.

    ``status`` is ``running``, ``done``, ``stopped`` (at a budget), ``interrupted``, ``failed`` or :data:`EMPTIED`.
    ``seconds`` and ``rates`` are by name (``work``, ``pairs_per_second``), ``dtype`` by role.
    """

    schema_version: Literal[1] | None = None
    job: str = ""
    status: str = ""
    config_hash: str = ""
    versions: dict[str, str] = {}
    started_at: str = ""
    resumed: bool = False
    counts: dict[str, Count] = {}
    seconds: dict[str, Amount] = {}
    tokens: Tokens = Tokens()
    rates: dict[str, Amount] = {}
    data: Data = Data()
    fusion: Fusion = Fusion()
    dtype: dict[str, str | None] = {}
    finished_at: str = ""

    def values(self) -> dict[str, Any]:
        """The keys that are there, as JSON has them."""
        return self.model_dump(exclude_unset=True)

    def merged(self, **facts: Any) -> Manifest:
        """A copy with these facts. A section's keys are added to those that it has."""
        values = self.values()
        for name, value in facts.items():
            known = values.get(name)
            values[name] = known | value if isinstance(known, dict) and isinstance(value, dict) else value
        return Manifest.model_validate(values)

    def write(self, storage: Storage, name: str = "manifest.json") -> None:
        """Publish it. Raises StorageError: it could not be written."""
        storage.write_text(name, json.dumps(redacted_values(self.values()), indent=2, default=str) + "\n")


def read_manifest(storage: Storage, name: str = "manifest.json") -> Manifest | None:
    """The manifest of a run directory; None where there is none.

    Args:
        name: the file's name in the storage, such as ``rerank-base/manifest.json`` for a pipeline's stage.

    Raises:
        UserError: it cannot be read, is no JSON object, is of another version of limrank, or a key has
            another type than limrank writes; the message names the key.
    """
    where = f"run_dir {storage.root}: its {name}"
    try:
        data = storage.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StorageError as error:
        raise UserError(str(error)) from None
    except (OSError, ValueError) as error:  # ValueError: no store has such a URI
        raise UserError(f"{where} cannot be read: {first_line(error)}") from None
    try:
        values = parse_json(data, "it", expect=dict)
    except UserError as error:
        raise UserError(f"{where} is not one of limrank's ({str(error).removeprefix('it: ')})") from None
    if values.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION and _names_limrank(values.get("versions")):
        raise UserError(
            f"{where} is of another version of limrank (schema {brief(values['schema_version'])}, "
            f"this one writes {SCHEMA_VERSION})"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where} is not one of limrank's ({_fault(error)})") from None


def _names_limrank(versions: Any) -> bool:
    return isinstance(versions, dict) and "limrank" in versions


def _fault(error: ValidationError) -> str:
    """The first key of another type: what it should be, and what it is."""
    first = error.errors(include_url=False)[0]
    what = first["msg"][0].lower() + first["msg"][1:]
    return f"{'.'.join(map(str, first['loc']))}: {what}, got {brief(first['input'])}"
