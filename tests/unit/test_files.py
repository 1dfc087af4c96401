"""A person's files: opened, or refused in one line; nothing waits, nothing has no end."""

import gzip
import os
import socket
import threading
from pathlib import Path

import pytest

from limrank.config.recipe import load_config
from limrank.errors import UserError
from limrank.files import is_file, is_folder, kind_of, listed, opened, printable_path

RECIPE = "job: rerank\nrun_dir: out\nseed: 7\n"


def read(path, **options):
    with opened(path, **options) as file:
        return file.read()


def test_a_file_is_read_and_unpacked_by_its_name(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text"))
    assert read(tmp_path / "a") == read(str(tmp_path / "a.gz")) == b"text"
    assert gzip.decompress(read(tmp_path / "a.gz", unpack=False)) == b"text"


@pytest.mark.parametrize("data", [b"text", gzip.compress(bytes(9999))[:-9], gzip.compress(b"text")[:12] + b"damaged!"])
def test_what_cannot_be_unpacked_is_named(tmp_path, data):
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"/a\.gz: cannot be read: "):
        read(tmp_path / "a.gz")


def lay(folder):
    """One of each: what is no file, by its name."""
    os.mkfifo(folder / "a pipe")
    (folder / "a folder").mkdir()
    (folder / "a device").symlink_to("/dev/zero")
    (folder / "itself").symlink_to("itself")
    (folder / "a file").write_text("")
    with socket.socket(socket.AF_UNIX) as bound:
        before = Path.cwd()
        os.chdir(folder)  # a socket's path may not be long
        bound.bind("a socket")
        os.chdir(before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a pipe", "cannot be read: a pipe, not a file"),
        ("a folder", "cannot be read: a folder, not a file"),
        ("a device", "cannot be read: a device, not a file"),
        ("a socket", "cannot be read: "),
        ("itself", "cannot be read: Too many levels of symbolic links"),
        ("a file/inside", "cannot be read: Not a directory"),
        ("x" * 300, "cannot be read: File name too long"),
        ("a\0b", "cannot be read: embedded null byte"),
        ("nowhere", "no such file"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, name, reason):
    lay(tmp_path)
    with pytest.raises(UserError) as raised:
        read(tmp_path / name)
    message = str(raised.value)
    assert f": {reason}" in message and "\0" not in message and len(message) < 400


def test_kinds(tmp_path):
    lay(tmp_path)
    kinds = {name: kind_of(tmp_path / name) for name in ("a file", "a folder", "nowhere", "a file/inside")}
    assert kinds == {"a file": "file", "a folder": "folder", "nowhere": "missing", "a file/inside": "missing"}
    for name in ("a pipe", "a device", "a socket", "itself", "x" * 300, "a\0b"):
        with pytest.raises(UserError):
            kind_of(tmp_path / name)
        assert not is_file(tmp_path / name) and not is_folder(tmp_path / name)
    assert is_file(tmp_path / "a file") and is_folder(tmp_path / "a folder")


def test_a_folder_s_names(tmp_path):
    lay(tmp_path)
    assert [path.name for path in listed(tmp_path)][:2] == ["a device", "a file"]
    assert listed(tmp_path / "nowhere") == []
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        listed(tmp_path / "a file")


def test_a_recipe_may_come_through_a_pipe(tmp_path):
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        threading.Thread(target=lambda: (file.write(RECIPE), file.close())).start()
        assert load_config(f"/dev/fd/{reading}").seed == 7
    os.close(reading)


def test_a_pipe_that_nobody_writes_to_is_an_empty_recipe(tmp_path):
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load_config(tmp_path / "r.yaml")


def test_a_long_path_is_shown_by_its_ends():
    assert printable_path("/a/b") == "/a/b"
    assert printable_path("x" * 5000) == "x" * 100 + "…" + "x" * 100
    assert printable_path("a\nb\x1b") == r"a\nb\x1b"
