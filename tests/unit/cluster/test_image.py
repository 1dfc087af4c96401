"""cluster/Dockerfile, read: what it installs, copies and runs as. Nothing is built."""

import fnmatch
import json
import re
import shlex
import tomllib

import pytest

import limrank
from helpers import REPOSITORY

FILE = REPOSITORY / "cluster" / "Dockerfile"
TEXT = FILE.read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def instructions():
    """(stage, instruction, its arguments) in their order; the stage of an ARG before the first FROM is None."""
    stage, found = None, []
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            stage = rest.split()[-1]
        found.append((stage, word, rest))
    return found


def parents(stage):
    """A stage, and those that it is made from, the first one first."""
    bases = {name: rest.split()[0] for name, word, rest in instructions() if word == "FROM"}
    return [*(parents(bases[stage]) if bases[stage] in bases else []), stage]


def of(stage, word):
    """The arguments of an instruction in a stage and in those before it."""
    return [rest for each in parents(stage) for name, found, rest in instructions() if (name, found) == (each, word)]


def installs(stage):
    """The words of each `pip install` of a stage."""
    return [shlex.split(part) for run in of(stage, "RUN") for part in run.split("&&") if "pip install" in part]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_image_installs_the_extra_of_its_name_and_names_no_package(kind):
    (dependencies, own) = installs(f"build-{kind}")
    assert dependencies[-1] == f".[{kind}]" and kind in PROJECT["optional-dependencies"]
    assert own[2:] == ["--no-deps", "--force-reinstall", "."]
    options = [word for word in dependencies[2:-1] if word.startswith("-")]
    assert options == (["--extra-index-url"] if kind == "cpu" else [])
    assert not re.search(r"[a-z]==\d", TEXT)  # versions are pyproject's alone
    assert of(kind, "COPY")[-1] == f"--from=build-{kind} /opt/limrank /opt/limrank"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_it_runs_as_a_user_and_says_how_it_is(kind):
    assert of(kind, "USER") == ["1000:1000"]
    assert any("useradd --uid 1000" in run for run in of(kind, "RUN"))
    (check,) = of(kind, "HEALTHCHECK")
    assert "http://127.0.0.1:8000/healthz" in check
    assert any(re.search(r"--no-install-recommends.*\bwget\b", run) for run in of(kind, "RUN"))  # KubeRay's probes, too


def test_its_python_is_a_slim_one_that_limrank_takes():
    (python,) = [rest.partition("=")[2] for stage, word, rest in instructions() if word == "ARG" and stage is None]
    assert tuple(map(int, python.split("."))) >= tuple(
        map(int, PROJECT["requires-python"].removeprefix(">=").split("."))
    )
    bases = [rest.split()[0] for _, word, rest in instructions() if word == "FROM"]
    assert {base for base in bases if base.startswith("python:")} == {"python:${PYTHON}-slim-bookworm"}


def test_its_command_is_one_of_limrank():
    from limrank.config.recipe import load_config

    (command,) = map(json.loads, of("cuda", "CMD"))
    assert command[:2] == ["limrank", "serve"]
    assert load_config(REPOSITORY / command[2], command[4::2], "serve").serving.port == 8000


def test_what_is_copied_is_there_and_reaches_the_builder():
    ignored = [
        line for line in (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert ignored[0] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for stage, word, rest in instructions():
        words = [each for each in rest.split() if not each.startswith("--")]
        if word == "COPY" and "--from" not in rest:
            for source in words[:-1]:
                assert (REPOSITORY / source).exists(), f"{stage}: {source}"
                assert any(fnmatch.fnmatch(source, name) or source.startswith(f"{name}/") for name in kept), source
    # What pyproject's build reads is in the first layer.
    (first,) = [
        rest.split()[:-1]
        for stage, word, rest in instructions()
        if (stage, word) == ("build", "COPY") and "pyproject.toml" in rest
    ]
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= set(first)


@pytest.mark.parametrize("path", ["cluster/Dockerfile", "docs/clusters.md"])
def test_the_tags_in_the_text_are_this_version(path):
    text = (REPOSITORY / path).read_text()
    assert set(re.findall(r"-t \S*limrank:(\S+)", text)) == {
        f"{limrank.__version__}-cuda",
        f"{limrank.__version__}-cpu",
    }
    assert set(re.findall(r"--target (\w+)", text)) == {"cpu", "cuda"}
