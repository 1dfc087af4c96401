"""The names and the model's card that a server and its clients share."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

from limrank import models, prompts
from limrank.config import DEFAULT_SEED, ModelConfig, ScoringConfig
from limrank.config.serving import MAX_DOCUMENTS as MAX_DOCUMENTS
from limrank.errors import UserError
from limrank.scoring.calibration import fingerprint, read_calibration

APP, API, SCORER = "limrank", "Api", "Scorer"
"""The Serve application, its deployment that speaks HTTP, and the one that scores."""

_KEYS = {
    "model": "model.id",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "prompt": "scoring.prompt, as a hash,",
    "seed": "seed",
    "calibration": "scoring.calibration, as a hash,",
}


@dataclass(frozen=True)
class Served:
    """What the scores depend on, of the keys of a recipe. The rows and the config hash of a run
    follow its recipe, so the server's recipe must have the same values."""

    model: str
    dtype: str
    max_model_len: int | None
    mode: str
    max_think_tokens: int
    min_think_tokens: int | None
    compatibility: str | None
    prompt: str
    cutoff: int | None
    band: float | None
    samples: int = 1
    temperature: float = 0.0
    seed: int | None = None
    labels: list[str] | None = None
    calibration: str | None = None

    @classmethod
    def of(cls, model: ModelConfig, scoring: ScoringConfig, seed: int = DEFAULT_SEED) -> Served:
        """The card of a recipe's sections and its ``seed``, which matters where chains are sampled."""
        cascade, thinks = scoring.mode == "cascade", scoring.think_tokens > 0
        temperature = scoring.chain_temperature if thinks else 0.0
        return cls(
            model=models.served_name(model.id),
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            mode=scoring.mode,
            max_think_tokens=scoring.think_tokens,
            min_think_tokens=scoring.min_think_tokens if thinks else None,
            compatibility=scoring.compatibility if thinks else None,
            prompt=hashlib.sha256(prompts.load(scoring.prompt_name).encode()).hexdigest()[:16],
            cutoff=scoring.cutoff if cascade else None,
            band=scoring.band if cascade else None,
            samples=scoring.samples if thinks else 1,
            temperature=temperature,
            seed=seed if temperature else None,
            labels=list(scoring.labels) if scoring.labels else None,
            calibration=fingerprint(read_calibration(scoring.calibration)),
        )

    def scoring(self) -> dict[str, Any]:
        """Everything but the model's name, for a model's card. Keys with a default are there where they differ
        from it."""
        default = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name != "model" and value != default[name]}

    def check(self, recipe: Served, where: str) -> None:
        """Raises UserError where this server differs from a client's recipe. The server's dtype and
        context hold where the recipe leaves them open."""
        for name, wanted in asdict(recipe).items():
            found = getattr(self, name)
            left_open = (name, wanted) in (("dtype", "auto"), ("max_model_len", None))
            if wanted != found and not left_open:
                key = _KEYS.get(name, f"scoring.{name}")
                raise UserError(f"{where}: its {key} is {found}, the recipe's {wanted}")
