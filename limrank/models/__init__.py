"""A model's name → a local directory that transformers, PEFT and vLLM load.

A name is a directory, an object store's URI of one, a packaged model (small enough for the
package index, see :data:`PACKAGED`), or a Hugging Face hub id.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.config import is_uri
from limrank.errors import UnavailableError, UserError, first_line
from limrank.files import is_folder, kind_of, printable_path
from limrank.models.cache import MODEL_CONFIG, cache_dir, made_once
from limrank.models.packaged import PACKAGED as PACKAGED
from limrank.models.packaged import fetch, identity
from limrank.models.packaged import is_cached as is_cached
from limrank.parsing import clipped, parse_json
from limrank.storage import filesystem

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TASK_FILE = "limrank.json"
"""What a model directory holds if limrank trained the model for something else than to answer true or false."""

_COPIED_AT_ONCE = 16 << 20
"""Bytes in memory while a file is copied from a store."""


@dataclass(frozen=True)
class ModelTask:
    """What a model was trained for.

    Attributes:
        task: ``writer``, or ``reranker`` for a model that answers graded labels.
        prompt: the template that the model continues, with the placeholder ``{{ passage }}`` and, of a reranker,
            ``{{ query }}``.
        labels: the graded labels of a reranker, from least to most relevant.
    """

    task: str
    prompt: str
    labels: tuple[str, ...] | None = None

    def values(self) -> dict[str, Any]:
        """The fields that have a value, as JSON and YAML take them."""
        labels = {"labels": list(self.labels)} if self.labels else {}
        return {"task": self.task, "prompt": self.prompt} | labels

    def as_json(self) -> str:
        return json.dumps(self.values(), indent=2, ensure_ascii=False) + "\n"


def resolve(name: str, *, weights: bool = True) -> Path:
    """The local directory of a model. A missing model is fetched.

    Args:
        weights: False if config and tokenizer are enough; no weights are fetched from a hub or a store then.

    Raises:
        UserError: the name is neither a directory, nor packaged, nor on the hub, or the hub cannot be
            reached.
    """
    if is_uri(name):
        return _from_store(name, weights)
    path = _local(name)
    if is_folder(path):
        if kind_of(path / MODEL_CONFIG) != "file":
            raise UserError(f"model {name}: the directory holds no {MODEL_CONFIG}, so it is not a model")
        return path.resolve()
    if name in PACKAGED:
        return fetch(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"model {printable_path(name)}: no such directory, and not a packaged model ({', '.join(PACKAGED)}) or a hub id (owner/name)"
        )
    return _from_hub(name, weights)


def task_of(name: str) -> ModelTask | None:
    """What a model was trained for, if that is not to answer true or false. A model of the hub that is not on this machine, and a
    name that is no model, have no task.

    Raises:
        UserError: the model's file says nothing of the kind.
    """
    if is_uri(name):
        path = resolve(name, weights=False) / TASK_FILE
    elif _is_folder(name):
        path = _local(name) / TASK_FILE
    else:
        path = _in_hub_cache(name)
    if path is None or kind_of(path) != "file":
        return None
    found = parse_json(path.read_bytes(), str(path), expect=dict)
    if not all(isinstance(found.get(key), str) and found[key].strip() for key in ("task", "prompt")):
        raise UserError(f"{path}: should hold the texts task and prompt")
    labels = found.get("labels")
    if labels is not None and not (
        isinstance(labels, list) and labels and all(isinstance(each, str) for each in labels)
    ):
        raise UserError(f"{path}: labels should be a list of texts")
    return ModelTask(found["task"], found["prompt"], tuple(labels) if labels else None)


def check_scores(name: str, labels: Sequence[str] | None = None) -> None:
    """Raises UserError if a model was trained to write queries, or to answer other labels than these: its scores would
    mean nothing.

    Args:
        labels: graded labels. None: true and false.
    """
    task = task_of(name)
    if task and task.labels and task.labels != (labels and tuple(labels)):
        asked = ", ".join(labels) if labels else "true and false"
        raise UserError(
            f"model {printable_path(name)}: limrank trained it to answer {', '.join(task.labels)} (training.labels), and "
            f"it is asked for {asked}: set scoring.labels={json.dumps(task.labels)}"
        )
    if task and task.task == "writer":
        raise UserError(
            f"model {printable_path(name)}: limrank trained it to write queries (training.task=writer), so it cannot "
            "score passages: give a reranker or its base model"
        )


def _in_hub_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name in PACKAGED or name.count("/") != 1:
        return None
    try:
        found = try_to_load_from_cache(name, TASK_FILE)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _local(name: str) -> Path:
    return Path(os.path.expanduser(name))  # noqa: PTH111  Path.expanduser raises for an unknown user


def _is_folder(name: str) -> bool:
    return is_folder(_local(name))


def fingerprint(name: str) -> str:
    """A model in a config hash: its name, or for a directory a SHA-256 of its config and of the ends of
    its weights, since the model may be retrained in place.

    The ends are enough: a safetensors file starts with a table of its tensors, and any training
    changes the last ones.
    """
    if not is_uri(name) and not _is_folder(name):
        return identity(name) if name in PACKAGED else name
    return _digest(*_listed(name))


_END_BYTES = 1 << 20


def _digest(files: Any, found: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for file in found:
        if file.base_name != MODEL_CONFIG and file.extension != "safetensors":
            continue
        digest.update(f"{file.base_name}:{file.size}:".encode())
        with files.open_input_file(file.path) as stream:
            digest.update(stream.read(_END_BYTES))
            stream.seek(max(0, file.size - _END_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def _listed(name: str) -> tuple[Any, list[Any]]:
    """The file system of a model's directory or URI, and its files (pyarrow's ``FileInfo``) sorted by
    name. Raises UserError where the store does not answer."""
    from pyarrow.fs import FileSelector

    try:
        files, path = filesystem(name if is_uri(name) else str(_local(name)))
        found = files.get_file_info(FileSelector(path, allow_not_found=True))
    except (OSError, ValueError) as error:
        raise UserError(f"model {name}: cannot be read: {first_line(error)}") from error
    return files, sorted((each for each in found if each.is_file), key=lambda each: each.base_name)


def parameters(name: str) -> int:
    """The number of a model's parameters, by :func:`shapes`; 0 where its weights are not on this machine."""
    return sum(map(math.prod, shapes(name).values()))


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shape of each of a model's tensors, from the tables in its weights. Empty where the weights
    are not on this machine.

    Raises:
        UserError: there is no such model, or its weights cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if not _is_folder(name) and name not in PACKAGED:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for file in resolve(name).glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                found |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"model {printable_path(name)}: {file.name} cannot be read: {clipped(first_line(error))}"
            ) from None
    return found


def text_config(name: str) -> PretrainedConfig:
    """The config of a model's language part. No weights are fetched.

    Raises:
        UserError: there is no such model, or transformers does not know its kind.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(resolve(name, weights=False), trust_remote_code=False).get_text_config()
    except UserError:
        raise
    except Exception as error:  # transformers raises different types for different damage
        raise UserError(
            f"model {printable_path(name)}: its config cannot be read: {clipped(first_line(error))}"
        ) from error


def tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A model's tokenizer. No weights are fetched.

    Raises:
        UserError: there is no such model, or its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    folder = resolve(str(name), weights=False)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise UserError(
            f"model {printable_path(name)}: its tokenizer cannot be read: {clipped(first_line(error))}"
        ) from error


def served_name(name: str) -> str:
    """A model's name for a server's clients. Of a directory it is the last component, so that clients
    see no path of the server's machine."""
    path = _local(name.partition("?")[0] if is_uri(name) else name)
    return path.name if is_uri(name) or path.is_absolute() or is_folder(path) else name


def _from_store(uri: str, weights: bool) -> Path:
    """The local copy of a model in a store. A model that changes there gets another directory here."""
    files, found = _listed(uri)
    if MODEL_CONFIG not in {each.base_name for each in found}:
        raise UserError(f"model {uri}: holds no {MODEL_CONFIG}, so it is not a model, or not yet complete")
    target = cache_dir() / "models" / f"{'' if weights else 'config-'}{_digest(files, found)[:32]}"

    def make(_: Path, made: Path) -> None:
        made.mkdir()
        for each in found:
            if weights or each.extension != "safetensors":
                with files.open_input_stream(each.path) as source, (made / each.base_name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, _COPIED_AT_ONCE)

    return made_once(target, make)


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Safetensors only: a pickle can run code when it is loaded.
        patterns = ["*.json", "*.txt", "*.model", "*.jinja"] + (["*.safetensors"] if weights else [])
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(
            f"model {printable_path(name)}: no such directory, and not a hub id: {clipped(first_line(error))}"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise UnavailableError(f"model {name}: not on this machine, and the hub did not give it: {reason}") from error
