"""What `up`, `status` and `down` make of clusters that died, half started, or are elsewhere. No Ray runs here."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers.processes import below
from limrank.cluster import standing, state
from limrank.cluster.processes import MARK, Identity
from limrank.cluster.state import Member, Standing
from limrank.errors import UserError


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A cluster whose only process has ended, and whose id another process has now."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "lr-x"
    folder.mkdir()
    (folder / "auth_token").write_text("token")
    gone = Member("head", "raylet", Identity(os.getpid(), "earlier"))
    made = Standing("default", folder, "http://127.0.0.1:9", "127.0.0.1:9", 1, "2026-01-02T03:04:05", True, (gone,))
    with state.locked():
        state.write(made)
    return made


@pytest.fixture
def process(there):
    """A process of the cluster that is not in its file, such as one of an `up` that was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print('on', flush=True); input()"],
        env=os.environ | {MARK: str(there.folder)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"on\n"
    yield process
    process.kill()
    process.wait()


def test_status_tells_what_died_and_that_the_dashboard_is_silent(there):
    report = standing.status("default")
    assert not report.is_well
    assert [member.what for member in report.standing.lost()] == ["raylet"]
    assert report.silent.startswith("the dashboard does not answer: ")
    assert standing.status("other") is None


def test_down_of_a_dead_cluster_removes_its_files_and_no_process(there):
    assert standing.down("default") == 0
    assert not there.folder.exists() and state.read("default") is None
    assert standing.down("default") is None


def test_down_removes_no_directory_that_is_not_a_clusters(there, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    state.write(replace(there, folder=mine))
    standing.down("default")
    assert mine.is_dir()


def test_the_rest_of_a_killed_up_is_ended_by_down(there, process):
    state.write(replace(there, is_up=False, members=()))
    with pytest.raises(UserError, match="is there in part: `limrank cluster down` ends the rest"):
        standing.up("default", 1, 1, None)
    assert standing.down("default") == 1
    assert below(process.pid) == [] and Identity.of(process.pid) is None


def test_a_cluster_of_another_machine_is_left_alone(there, process):
    state.write(replace(there, host="other", boot="another-boot"))
    for call in (standing.down, standing.status, lambda name: standing.up(name, 1, 1, None)):
        with pytest.raises(UserError, match="cluster default is on machine other"):
            call("default")
    assert process.poll() is None and there.folder.is_dir()
