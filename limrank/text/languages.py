"""The language of a text, identified by py3langid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from limrank.config import LANGUAGE_CODES, LANGUAGES, FirstStageConfig
from limrank.records import Document

CERTAIN = 0.9
"""The least probability at which a language counts as identified."""

MIN_LETTERS = 40
"""The language of a shorter text is not identified."""

_SAMPLE, _CHARACTERS = 200, 300
"""Documents of a corpus by which its language is identified, and characters read of each."""


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def languages(text: str) -> list[tuple[str, float]]:
    """Language codes (ISO 639) with their probabilities, most probable first."""
    return _identifier().rank(text)


def with_language(first_stage: FirstStageConfig, documents: Sequence[Document]) -> FirstStageConfig:
    """Replace ``first_stage.language: auto`` by the language of an evenly spaced sample of the documents.

    It is English if no language is certain, and ``none`` if BM25 has no analyzer for the language.
    """
    if first_stage.language != "auto":
        return first_stage
    count = min(_SAMPLE, len(documents))
    text = " ".join(documents[i * len(documents) // count].contents[:_CHARACTERS] for i in range(count))
    language = "english"
    if letters(text) >= MIN_LETTERS:
        (code, probability), *_ = languages(text)
        if probability >= CERTAIN:
            name = LANGUAGE_CODES.get(code)
            language = name if name in LANGUAGES else "none"
    return first_stage.model_copy(update={"language": language})


@cache
def _identifier():
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
