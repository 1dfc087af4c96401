"""The files that a cluster runs: one a job, each the command of its name."""

import runpy
import sys

import pytest

from helpers import REPOSITORY
from limrank.config import JOBS

FILES = sorted((REPOSITORY / "jobs").glob("*.py"))


def test_every_job_has_a_file():
    assert {file.stem for file in FILES} == set(JOBS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_the_command_of_its_name(file, tmp_path, monkeypatch, capsys):
    other = next(job for job in JOBS if job != file.stem)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"job: {other}\nrun_dir: run\n")
    monkeypatch.setattr(sys, "argv", [str(file), str(recipe)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert ended.value.code == 2
    assert f"this recipe is for `limrank {other}`, not `limrank {file.stem}`" in capsys.readouterr().err


def test_a_file_that_is_imported_runs_nothing():
    assert "run_script" in runpy.run_path(str(FILES[0]), run_name="rerank")
