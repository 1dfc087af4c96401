"""The documentation says what is there: links, anchors, commands, recipes and keys. No mkdocs is needed."""

import ast
import re
import shlex
import unicodedata
from typing import NamedTuple

import pytest
import typer
import yaml

from helpers import REPOSITORY
from limrank.cli import app
from limrank.config import JOBS, known_fields
from limrank.config.recipe import load_config

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RECIPES = REPOSITORY / "jobs" / "recipes"

KEYS = {job: {name for name, _ in known_fields(config)} for job, config in JOBS.items()}
SECTIONS = {name.partition(".")[0] for keys in KEYS.values() for name in keys if "." in name}

NOT_THERE = {"limrank rag"}
"""Commands that the docs name because they do not exist."""

PLACEHOLDERS = {"key=value"}


def on_each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))(test)


# ---- reading a page ------------------------------------------------------------------


def fences(page):
    """(language, text) of each fenced block."""
    return [(each[1], each[2]) for each in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)]


def prose(page):
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def spans(page):
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page):
    """The anchors of a page's headings, as Python-Markdown's toc extension makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        text = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading)).encode("ascii", "ignore").decode()
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
        assert slug not in found, f"{page.name}: two headings have the anchor {slug}"
        found.add(slug)
    return found


class Command(NamedTuple):
    words: list[str]
    whole: bool
    """Whether it is a line to type, not a name in a sentence."""


def commands(page):
    """Every `limrank …` of a page."""
    lines = [(line, True) for _, text in fences(page) for line in text.replace("\\\n", " ").splitlines()]
    found = []
    for text, whole in [*lines, *((span, False) for span in spans(page))]:
        if not text.startswith("limrank "):
            continue
        # `limrank JOB RECIPE.yaml [-s key=value …]` stands for every job.
        # A list in a value keeps its brackets.
        words = shlex.split(
            re.sub(
                r"\[(?=-)|(?<=[…\w])\](?!')|…", " ", text.partition(" #")[0].replace("limrank JOB ", "limrank train ")
            )
        )
        ends = [place for place, word in enumerate(words) if word in ("|", ">", "&&")]
        found.append(Command(words[1 : min(ends, default=len(words))], whole))
    return found


def settings(words):
    """The key=value pairs after -s."""
    return [words[place + 1] for place, word in enumerate(words[:-1]) if word == "-s"]


# ---- the tests -----------------------------------------------------------------------


@on_each_page
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"no {target}"
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{target} is not part of the site"
        if anchor:
            assert anchor in anchors(file), f"no heading for {target}"


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry if isinstance(entry, list) else entry.values()) for page in pages(each)]

    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@on_each_page
def test_commands_parse(page):
    for words, whole in commands(page):
        text = " ".join(["limrank", *words])
        if text in NOT_THERE:
            continue
        # A name in a sentence may go without its arguments.
        given = words if whole else [*words, *(["RECIPE.yaml"] if words[0] in JOBS and len(words) == 1 else [])]
        try:
            _parse(given)
        except Exception as error:
            fault = getattr(error, "format_message", lambda error=error: repr(error))()
            assert not whole and type(error).__name__ == "MissingParameter", f"{text}: {fault}"


def _parse(words):
    """Go down the groups of commands and parse what is left, as the command line would."""
    command, context = typer.main.get_command(app), None
    names = []
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no command {' '.join([*names, *words[:1]])}"
        names.append(words[0])
        command, words = command.commands[words[0]], words[1:]
        if hasattr(command, "commands") and not words:
            return
    command.make_context(names[-1], list(words), parent=context)


@on_each_page
def test_commands_set_keys_that_their_job_has(page):
    for words, _ in commands(page):
        if words[0] not in JOBS:
            continue
        recipes = [word for word in words if word.startswith("jobs/recipes/")]
        changes = [each for each in settings(words) if each not in PLACEHOLDERS]
        for recipe in recipes:
            load_config(REPOSITORY / recipe, changes, words[0])
        unknown = {each.partition("=")[0] for each in changes} - KEYS[words[0]]
        assert not unknown, f"limrank {words[0]} has no {unknown}"


@on_each_page
def test_scripts_of_the_paper_s_rows_set_keys_of_a_rerank_job(page):
    for span in [*spans(page), *(line for _, text in fences(page) for line in text.splitlines())]:
        if span.startswith("python benchmarks/paper_rows.py"):
            words = shlex.split(span.replace("…", " "))
            assert (REPOSITORY / words[1]).is_file()
            assert {each.partition("=")[0] for each in settings(words)} <= KEYS["rerank"]


@on_each_page
def test_files_that_are_named_exist(page):
    """Recipes by their names, and paths into the repository; both may have a * in them."""
    text = page.read_text()
    for path in re.findall(r"\b(?:jobs|cluster|benchmarks|tests|limrank)/[\w./*-]*[\w*]\.(?:py|yaml|json|txt)\b", text):
        assert list(REPOSITORY.glob(path)), f"no {path}"
    for name in spans(page):
        if re.fullmatch(r"[\w*-]+\.yaml", name) and name != "config.yaml":
            assert list(RECIPES.glob(name)), f"no recipe {name}"
    for name in (name for name in spans(page) if re.fullmatch(r"\w+\.py", name)):
        assert list(REPOSITORY.glob(f"*/{name}")), f"no {name}"


@on_each_page
def test_keys_in_backticks_exist(page):
    known = set().union(*KEYS.values())
    for span in spans(page):
        key = re.fullmatch(r"([a-z_][\w]*(?:\.[a-z_][\w]*)+)(?:(?:=|: ).*)?", span)
        if key and key[1].partition(".")[0] in SECTIONS and not key[1].endswith(".py"):
            assert key[1] in known, f"no recipe key {key[1]}"


@on_each_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.M)
    assert set(named) <= targets


@on_each_page
def test_python_can_be_parsed(page):
    for language, text in fences(page):
        if language == "python":
            ast.parse(text)


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 140


def test_the_tree_of_the_architecture_names_every_module():
    page = (DOCS / "architecture.md").read_text()
    listed = set(re.findall(r"^  (\w+\.py) ", page, re.M))
    there = {path.name for path in (REPOSITORY / "limrank").glob("*.py") if not path.name.startswith("__")}
    assert listed == there


def test_the_version_has_one_place():
    """And the changelog begins with what is not released yet."""
    import limrank

    holding = [
        path
        for path in [*REPOSITORY.glob("*.toml"), *REPOSITORY.glob("*.cff"), *REPOSITORY.glob("limrank/**/*.py")]
        if re.search(rf'"{re.escape(limrank.__version__)}"', path.read_text())
    ]
    assert [path.name for path in holding] == ["version.py"]
    assert re.search(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)[1] == "Unreleased"
