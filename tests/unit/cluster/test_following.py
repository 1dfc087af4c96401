"""A submitted job's log through breaks of the connection, and what is done about how it ended."""

import json
from urllib.parse import urlsplit

import pytest
import requests

from helpers.dashboards import Dashboard
from limrank.cluster import dashboard, following
from limrank.cluster.following import LOST, Outcome, follow
from limrank.errors import EngineError, UserError
from limrank.progress import JSON_PREFIX

LOG = "one\ntwo\nthree\n"
GONE = ConnectionError("connection refused")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits: a virtual clock goes on by what is slept."""
    now = [0.0]
    monkeypatch.setattr(following.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(following.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(following, "POLL_S", 0.05)


def test_a_log_is_printed_to_its_end(capsys):
    client = Dashboard(logs=[LOG], answers=["SUCCEEDED"])
    assert follow(client, "job").exit_code == 0
    assert capsys.readouterr().out == LOG


@pytest.mark.parametrize("cut", [0, 2, 4, len(LOG) - 1])
def test_a_log_that_breaks_off_goes_on_without_a_line_lost_or_twice(capsys, cut):
    client = Dashboard(logs=[[LOG[:cut], GONE], [LOG[:6], LOG[6:]]], answers=["RUNNING", "SUCCEEDED"])
    assert follow(client, "job").status == "SUCCEEDED"
    assert capsys.readouterr().out == LOG


def test_the_end_of_a_log_that_broke_off_as_the_job_ended(capsys):
    client = Dashboard(logs=[[LOG[:5], GONE]], answers=["FAILED", "FAILED"], text=LOG, exit_code=3)
    assert follow(client, "job").exit_code == 3
    assert capsys.readouterr().out == LOG


def test_a_connection_that_was_cut_without_a_word(capsys):
    client = Dashboard(logs=[[LOG[:5], None]], answers=["RUNNING", "SUCCEEDED", "SUCCEEDED"], text=LOG)
    assert follow(client, "job").exit_code == 0
    assert capsys.readouterr().out == LOG


def test_a_dashboard_that_does_not_answer_for_a_while(capsys):
    client = Dashboard(logs=[[LOG[:4], GONE], LOG], answers=[GONE] * 8 + ["SUCCEEDED"])
    assert follow(client, "job").exit_code == 0
    out, err = capsys.readouterr()
    assert out == LOG
    assert err.count("the dashboard does not answer") == 1


def test_a_dashboard_that_stays_away_ends_the_command_and_says_how_to_go_on():
    client = Dashboard(logs=[[GONE]], answers=[GONE])
    with pytest.raises(
        EngineError, match="has not answered for 60 s.*`limrank jobs logs -f job --address http://head:8265`"
    ):
        follow(client, "job", patience_s=60)


def test_a_head_that_was_replaced_has_lost_the_job():
    client = Dashboard(logs=[[GONE]], answers=[GONE, RuntimeError("status code 404: Job job does not exist.")])
    assert follow(client, "job").status == LOST


def test_a_404_of_a_proxy_is_no_lost_job():
    client = Dashboard(logs=[[GONE], LOG], answers=[RuntimeError("status code 404: default backend"), "SUCCEEDED"])
    assert follow(client, "job").exit_code == 0


def test_progress_is_shown_and_not_printed_as_a_line(capsys):
    event = {"stage": "rerank", "done": 5, "total": 5, "unit": "pairs", "finished": True}
    follow(Dashboard(logs=[f"{JSON_PREFIX}{json.dumps(event)}\ndone\n"], answers=["SUCCEEDED"]), "job")
    out, err = capsys.readouterr()
    assert out == "done\n"
    assert err == "rerank: 5/5 pairs\n"


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "exit_code", "may_be_retried"),
    [
        ("SUCCEEDED", 0, 0, False),
        ("SUCCEEDED", None, 0, False),
        ("FAILED", 2, 2, False),
        ("FAILED", 3, 3, False),
        ("FAILED", 1, 1, True),
        ("FAILED", -9, 137, True),
        ("FAILED", 137, 137, True),
        ("FAILED", None, 1, True),
        ("STOPPED", None, 1, False),
        (LOST, None, 1, True),
    ],
)
def test_what_is_done_about_an_end(status, driver_exit_code, exit_code, may_be_retried):
    outcome = Outcome(status, driver_exit_code, "")
    assert (outcome.exit_code, outcome.may_be_retried) == (exit_code, may_be_retried)


def test_a_successor_with_another_token_is_a_dashboard_that_does_not_answer(monkeypatch):
    status = {"/api/version": 200}

    def request(method, url, **options):
        answer = requests.Response()
        answer.status_code = status.get(urlsplit(url).path, 403)
        answer._content = b'{"ray_version": "2.60.0", "version": "4"}'
        return answer

    monkeypatch.setattr(requests, "request", request)
    for name in ("check_dashboard", "prepare_environment"):
        monkeypatch.setattr(dashboard, name, lambda address: None)
    client = dashboard.job_client("http://head:8265")
    monkeypatch.setattr(client, "tail_job_logs", Dashboard(logs=[[GONE]]).tail_job_logs)
    with pytest.raises(EngineError, match="job: the dashboard has not answered for 60 s: Authentication failed"):
        follow(client, "job", patience_s=60)
    status.clear()
    with pytest.raises(UserError, match="--address http://head:8265: Authentication failed"):
        dashboard.job_client("http://head:8265")
