"""What an update of a running server may change, and which replicas it replaces."""

import os
import pty
import subprocess
import sys

import pytest

from limrank.config import ServeJob
from limrank.config.recipe import with_values
from limrank.errors import UserError
from limrank.serving.deploying import Server, Versions, check_update
from limrank.serving.job import _updated

CONFIG = ServeJob(run_dir="unused", engine={"kind": "fake"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("host", "127.0.0.2"),
        ("port", 1),
        ("max_body_bytes", 4096),
        ("receive_timeout_s", 1),
        ("allowed_hosts", ["a.example.com"]),
        ("keys_file", "keys"),
    ],
)
def test_what_the_proxy_has_from_its_start_cannot_change(key, value):
    with pytest.raises(UserError, match=f"^serving.{key} cannot change while the server runs: start it again$"):
        check_update(CONFIG, with_values(CONFIG, {f"serving.{key}": value}))


@pytest.mark.parametrize(
    ("values", "scorer", "api"),
    [
        ({}, False, False),
        ({"run_dir": "elsewhere"}, False, False),
        ({"scoring.mode": "think"}, True, True),
        ({"engine.fault.latency_ms": 5}, True, True),
        ({"model.id": "smollm2-135m-instruct"}, True, True),
        ({"seed": 7}, True, True),
        ({"workers.cpus": 2}, True, True),
        ({"workers.replicas": 3}, False, True),
        ({"serving.aliases": ["a"]}, False, True),
        ({"serving.spread_pairs": 7}, False, True),
    ],
)
def test_only_what_changed_is_replaced(values, scorer, api):
    new = with_values(CONFIG, values)
    check_update(CONFIG, new)
    before, after = Versions.of(CONFIG), Versions.of(new)
    assert (before.scorer != after.scorer, before.api != after.api) == (scorer, api)


class FakeServer(Server):
    def update(self, config):
        check_update(self.config, config)
        return config != self.config


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "the recipe has not changed"),
        ({"seed": 7}, "updated: serving smollm2-135m-rerank"),
        (
            {"serving.port": 1},
            "warning: the recipe is refused, and the old one is still served: "
            "serving.port cannot change while the server runs: start it again",
        ),
        (
            {"scoring.mode": "none"},
            "warning: the recipe is refused, and the old one is still served: "
            "scoring.mode none gives no scores to serve: take direct, think or budget",
        ),
    ],
)
def test_a_hangup_says_one_line(values, line):
    server = FakeServer(CONFIG, access=None)
    assert _updated(server, lambda: with_values(CONFIG, values)) == line


def test_a_recipe_that_cannot_be_read_is_refused():
    def reread():
        raise UserError("serve.yaml: line 3: is no YAML")

    assert _updated(FakeServer(CONFIG, access=None), reread).endswith("still served: serve.yaml: line 3: is no YAML")


def test_a_server_does_not_show_its_secret():
    server = Server(CONFIG, access=None)
    assert server.secret not in repr(server)


WATCH = """
import signal, sys, time
from limrank.serving.job import _terminal_watch

# Tests may be run by nohup themselves, which their processes inherit.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
gone = _terminal_watch()
print(gone(), flush=True)
signal.signal(signal.SIGHUP, lambda *_: None)
until = time.monotonic() + float(sys.argv[2])
while not gone() and time.monotonic() < until:
    time.sleep(0.02)
print(gone(), flush=True)
"""


@pytest.mark.parametrize(("started", "within_s", "gone"), [("on a terminal", 30, "True"), ("nohup", 0.5, "False")])
def test_a_closed_terminal_is_noticed(started, within_s, gone):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", WATCH, started, str(within_s)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        assert process.stdout.readline() == "False\n"
        os.close(ours)
        assert process.stdout.readline() == f"{gone}\n"
