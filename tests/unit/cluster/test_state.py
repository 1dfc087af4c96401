"""The files of standing clusters."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from limrank.cluster import connection, state
from limrank.cluster.processes import Identity
from limrank.cluster.state import Member, Standing
from limrank.diagnostics import doctor
from limrank.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", connection.LOOPBACK_SWITCH):
        # Set first, so that what the test's code sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def standing():
    """A cluster whose only process is this one."""
    members = (Member("head", "raylet", Identity.of(os.getpid())),)
    return Standing(
        "default", Path("/tmp/lr-x"), "http://127.0.0.1:1234", "127.0.0.1:99", 2, "2026-01-02T03:04:05", True, members
    )


def written(*states):
    with state.locked():
        for each in states:
            state.write(each)


def test_what_is_written_is_read_and_private(standing, home):
    written(standing)
    assert state.read("default") == standing
    assert stat.S_IMODE((home / "limrank" / "clusters" / "default.json").stat().st_mode) == 0o600
    assert state.names() == ["default"]
    state.remove("default")
    assert state.read("default") is None and state.names() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "default", "members": [1]}'])
def test_a_damaged_file_is_named(standing, home, text):
    written(standing)
    file = home / "limrank" / "clusters" / "default.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"default\.json: is no state of a cluster .*; remove it"):
        state.read("default")


@pytest.mark.parametrize("name", ["", "../x", "A", "x" * 41, "a/b", ".new"])
def test_a_name_is_no_path(name):
    with pytest.raises(UserError, match="--name"):
        state.read(name)


def test_only_one_command_changes_clusters():
    with state.locked(), pytest.raises(UserError, match="another"), state.locked():
        pass


def test_a_lost_process_is_told(standing):
    gone = Member("node-1", "raylet", Identity(os.getpid(), "earlier"))
    assert replace(standing, members=(*standing.members, gone)).lost() == [gone]


def test_a_state_of_another_machine_is_no_cluster_here(standing):
    assert not standing.is_elsewhere()
    renamed = replace(standing, host="other")
    assert not renamed.is_elsewhere()
    other = replace(renamed, boot="another-boot")
    assert other.is_elsewhere()
    written(other)
    assert state.meant_by("auto") is None


def test_which_cluster_an_address_means(standing):
    other = replace(standing, name="other", address="http://127.0.0.1:5678", gcs="127.0.0.1:98")
    written(other)
    assert state.meant_by("auto") == other  # the only one
    written(standing)
    assert state.meant_by("auto") == standing
    for address in ("http://127.0.0.1:5678", "http://localhost:5678/", "127.0.0.1:98"):
        assert state.meant_by(address) == other
    assert state.meant_by("http://127.0.0.1:1") is None
    written(replace(standing, name="third"))
    state.remove("default")
    assert state.meant_by("auto") is None  # which of the two?


def test_doctor_tells_of_it(standing):
    written(standing)
    assert "runs one at http://127.0.0.1:1234  →  --address auto uses it" in str(doctor._cluster())


def test_a_cluster_that_starts_or_has_died_is_not_meant(standing):
    written(replace(standing, is_up=False))
    assert state.meant_by("auto") is None
    written(replace(standing, members=(Member("head", "raylet", Identity(os.getpid(), "earlier")),)))
    assert state.meant_by("auto") is None


def test_the_token_is_that_of_the_cluster_which_is_meant(standing, monkeypatch):
    written(standing)
    assert connection.prepare_environment("auto") == standing.gcs
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "/tmp/lr-x/auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "mine")
    connection.prepare_environment("auto")
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == "mine"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert connection.prepare_environment("auto") is None
    assert connection.prepare_environment("local") is None
