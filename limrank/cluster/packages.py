"""What a submitted job consists of: limrank, its recipe and inputs as files, its environment, and its terms."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from limrank.cluster.addresses import CALL_S, within
from limrank.cluster.dashboard import NO_ANSWER
from limrank.cluster.environments import pip_packages
from limrank.cluster.machines import is_this_machine
from limrank.cluster.shipping import (
    SHIP_LIMIT_MIB,
    check_paths_of_cluster,
    find_inputs,
    pack,
    size_text,
    with_places,
)
from limrank.config import Job, dump_config
from limrank.config.recipe import parse_config, value_of
from limrank.errors import EngineError, UserError, first_line
from limrank.parsing import parse_json
from limrank.printable import printable

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_PACKAGE = Path(__file__).parents[1]

_LONGEST_NOTE = 32_000
"""Characters of a recipe that is kept in a job's metadata, which is an environment variable of its driver."""

_OVERWRITE = "--overwrite"
"""The flag that a job is never submitted again with: it is to go on with the run, not to remove it."""


@dataclass(frozen=True)
class Terms:
    """How a job is submitted.

    Attributes:
        detach: return as soon as the cluster has the job.
        retries: how often a job that was killed, or lost its head, is submitted again.
        env: ``image``: the nodes have limrank's dependencies. ``pip``, ``pip-cpu``: Ray installs them, with vLLM for
            GPUs or for CPUs.
        ship: whether local inputs travel with the job. None: unless the cluster is this machine. False: the recipe's
            paths are those of the cluster's nodes.
        ship_limit: the most MiB of inputs that travel.
    """

    detach: bool = False
    retries: int = 0
    env: Literal["image", "pip", "pip-cpu"] = "image"
    ship: bool | None = None
    ship_limit: float = SHIP_LIMIT_MIB


@dataclass(frozen=True)
class Package:
    """What a job consists of. ``entrypoint`` is a shell command; ``metadata`` is kept by the cluster;
    ``sizes`` are for a person."""

    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str]
    sizes: str

    def again(self, first: str, *, resumes: bool = True) -> Package:
        """The same package for one more attempt at a job, whose first attempt had the id ``first``.

        Args:
            resumes: an attempt has begun, so that ``--overwrite`` would remove what it did.
        """
        words = [word for word in shlex.split(self.entrypoint) if not resumes or word != _OVERWRITE]
        return replace(self, entrypoint=shlex.join(words), metadata={"limrank_first": first} | self.metadata)


@contextmanager
def packed(
    client: JobSubmissionClient, command: str, config: Job, address: str, flags: list[str], terms: Terms
) -> Iterator[Package]:
    """A job's package. Its files are there for the ``with`` block: each attempt may have to send them again."""
    inputs = []
    is_here = terms.ship is not False and _is_here(client)
    if terms.ship is not False and not is_here:
        check_paths_of_cluster(config, address)
    if terms.ship or (terms.ship is None and not is_here):
        inputs = find_inputs(config, terms.ship_limit)
    if not is_here:
        _note_keys(config)
    texts = {
        f"jobs/{command}.py": _entry_point(command).read_text(encoding="utf-8"),
        "recipe.yaml": dump_config(with_places(config, inputs)),
    }
    environment: dict[str, Any] = {"py_modules": [str(_PACKAGE)], "env_vars": {"LIMRANK_PROGRESS": "json"}}
    if terms.env != "image":
        environment["pip"] = pip_packages(config, on_gpus=terms.env == "pip")
    with tempfile.TemporaryDirectory(prefix="limrank-job-") as folder:
        archive = Path(folder) / "job.zip"
        pack(archive, texts, inputs)
        sizes = f"limrank {size_text(_package_size())}, recipe and inputs {size_text(archive.stat().st_size)}"
        yield Package(
            shlex.join(["python", f"jobs/{command}.py", "recipe.yaml", *flags]),
            environment | {"working_dir": str(archive)},
            _metadata(command, config, flags, terms),
            sizes,
        )


def _metadata(command: str, config: Job, flags: list[str], terms: Terms) -> dict[str, str]:
    """What :func:`retry` makes a job from where Ray has dropped its package."""
    made_from = json.dumps({"recipe": config.model_dump(mode="json"), "flags": flags, "terms": asdict(terms)})
    kept = {"limrank_made_from": made_from} if len(made_from) <= _LONGEST_NOTE else {}
    return {"limrank": command, "limrank_run_dir": config.run_dir, **kept}


@contextmanager
def kept_package(client: JobSubmissionClient, job_id: str, details: JobDetails) -> Iterator[Package]:
    """The package of a job that ended: as Ray has kept it, or made once more from the same contents."""
    metadata, environment = details.metadata or {}, details.runtime_env or {}
    first = metadata.get("limrank_first", job_id)
    if "limrank" not in metadata:
        raise UserError(f"{job_id} is not a job of limrank's")
    uris = [environment.get("working_dir"), *environment.get("py_modules", [])]
    try:
        is_there = all(within(CALL_S, partial(client._package_exists, uri)) for uri in uris)
    except NO_ANSWER as error:
        raise EngineError(f"{job_id}: {first_line(error)}") from error
    if is_there:
        kept = {key: environment[key] for key in ("working_dir", "py_modules", "env_vars", "pip") if key in environment}
        yield Package(details.entrypoint, kept, metadata, "").again(first)
        return
    dropped = f"{job_id}: Ray has dropped its package"
    if "limrank_made_from" not in metadata:
        raise UserError(f"{dropped}: submit the recipe again")
    made_from = parse_json(metadata["limrank_made_from"], f"metadata of {job_id}", expect=dict)
    config = parse_config(made_from["recipe"], f"recipe of {job_id}")
    with packed(
        client, metadata["limrank"], config, "the cluster", made_from["flags"], Terms(**made_from["terms"])
    ) as again:
        from ray._private.runtime_env.packaging import get_uri_for_package

        if get_uri_for_package(Path(again.runtime_env["working_dir"])) != environment.get("working_dir"):
            raise UserError(f"{dropped}, and its inputs are not as they were: submit the recipe again")
        print(printable(f"{dropped}: made again on this machine ({again.sizes})"), flush=True)
        yield again.again(first)


def _package_size() -> int:
    """Bytes of the package, which Ray packs without caches."""
    files = (path for path in _PACKAGE.rglob("*") if "__pycache__" not in path.parts and path.is_file())
    return sum(path.stat().st_size for path in files)


def _note_keys(config: Job) -> None:
    """Say which secrets the job needs there: none travels."""
    engines = [value for name, value in config if name.endswith("engine") and value is not None]
    if (teacher := value_of(config, "synthesis.teacher.engine")) is not None:
        engines.append(teacher)
    for name in sorted({engine.api_key_env for engine in engines if engine.kind == "openai"}):
        print(
            printable(f"limrank: ${name} does not travel with the job: set it on the nodes"),
            file=sys.stderr,
            flush=True,
        )


def _is_here(client: JobSubmissionClient) -> bool:
    try:
        return is_this_machine(client)
    except NO_ANSWER as error:
        raise EngineError(f"the dashboard does not list its nodes: {first_line(error)}") from error


def _entry_point(command: str) -> Path:
    for folder in (_PACKAGE.parent / "jobs", _PACKAGE / "_jobs"):
        if (folder / f"{command}.py").is_file():
            return folder / f"{command}.py"
    raise UserError(f"jobs/{command}.py is neither next to the limrank package nor in it; reinstall limrank")
