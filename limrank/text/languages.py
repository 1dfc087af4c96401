"""Which language a text is in, by py3langid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from limrank.config import LANGUAGE_CODES, LANGUAGES, FirstStageConfig
from limrank.records import Document

SURELY = 0.9
"""Probability from which a text is in a language."""

LETTERS_TO_TELL = 40
"""A shorter text is in no language that could be told."""

_SAMPLE, _CHARACTERS = 200, 300
"""Documents that tell a corpus's language, and how much of each is read."""


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def languages(text: str) -> list[tuple[str, float]]:
    """Language codes (ISO 639) with their probabilities, most probable first."""
    return _identifier().rank(text)


def with_language(first_stage: FirstStageConfig, documents: Sequence[Document]) -> FirstStageConfig:
    """``first_stage.language: auto`` as the language of a sample of the documents, evenly spaced
    over them: English where none is sure, ``none`` where BM25 knows nothing of the one that is."""
    if first_stage.language != "auto":
        return first_stage
    count = min(_SAMPLE, len(documents))
    text = " ".join(documents[i * len(documents) // count].contents[:_CHARACTERS] for i in range(count))
    language = "english"
    if letters(text) >= LETTERS_TO_TELL:
        (code, probability), *_ = languages(text)
        if probability >= SURELY:
            name = LANGUAGE_CODES.get(code)
            language = name if name in LANGUAGES else "none"
    return first_stage.model_copy(update={"language": language})


@cache
def _identifier():
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
