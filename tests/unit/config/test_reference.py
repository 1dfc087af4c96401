"""The configuration reference: types in words, and the generated files of the repository."""

import json
from typing import Annotated, Literal

import jsonschema
import pytest
import yaml
from pydantic import Field, NonNegativeInt, PositiveInt

from helpers import REPOSITORY
from limrank.config import JOBS, PathStr, ServingConfig, known_fields
from limrank.config.reference import generated_files, job_keys, type_in_words

RECIPES = sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", generated_files())
def test_a_generated_file_is_current(name):
    assert (REPOSITORY / name).read_text() == generated_files()[name], "run: python -m limrank.config.reference"


@pytest.mark.parametrize("job", JOBS)
def test_every_key_has_a_description(job):
    assert [name for name, field in known_fields(JOBS[job]) if not field.description] == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_names_its_schema_and_fits_it(path):
    marker, _, name = path.read_text().splitlines()[0].partition("=")
    assert marker == "# yaml-language-server: $schema"
    recipe = yaml.safe_load(path.read_text())
    assert name == f"schema/{recipe['job']}.json"
    jsonschema.Draft202012Validator(json.loads((path.parent / name).read_text())).validate(recipe)


def test_a_schema_refuses_an_unknown_key():
    schema = json.loads((REPOSITORY / "jobs" / "recipes" / "schema" / "serve.json").read_text())
    errors = jsonschema.Draft202012Validator(schema).iter_errors({"run_dir": "runs/a", "serving": {"prot": 1}})
    assert ["'prot' was unexpected" in error.message for error in errors] == [True]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (bool, "true or false"),
        (PositiveInt, "whole number from 1"),
        (NonNegativeInt | None, "whole number from 0, or null"),
        (Annotated[float, Field(gt=0, le=1)], "number above 0 up to 1"),
        (Annotated[float, Field(ge=0.7)] | None, "number from 0.7, or null"),
        (Literal["a", "b", "c"], "a, b or c"),
        (PathStr | Literal["pydocs"], "path, or pydocs"),
        (tuple[PathStr, ...], "list of paths"),
        (tuple[int, int], "[whole number, whole number]"),
        (dict[str, float], "mapping of texts to number"),
        (ServingConfig | None, "section, or null"),
    ],
)
def test_types_in_words(annotation, words):
    assert type_in_words(annotation) == words


def test_a_sections_keys_are_listed_once():
    keys = {key.name: key for key in job_keys("synthesize")}
    assert keys["judge"].kind == "keys of model, or null" and "judge.id" not in keys
    assert keys["scoring.mode"].default == "budget"
    assert keys["synthesis.prices.NAME.prompt"].default == "required"
