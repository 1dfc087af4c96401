import io

import pytest

from helpers.units import Recorder, clock
from limrank.progress import Event, JsonRenderer, LineRenderer, Progress, describe, open_progress, parse_json_line
from limrank.training import job


def test_a_line_says_all_there_is():
    event = Event("rerank", 120, 400, "pairs", failed=1, rate=14.0, tokens_per_second=2100.4, detail="loss 0.3")
    # 280 pairs are left: 20 seconds at 14 a second.
    assert describe(event) == "rerank: 120/400 pairs, 14.0 pairs/s, 2100 tokens/s, ETA 20 s, 1 failed, loss 0.3"


def test_a_line_leaves_out_what_is_not_known():
    assert describe(Event("train", 0, 10, "steps")) == "train: 0/10 steps"
    assert describe(Event("train", 10, 10, "steps", rate=2.0, finished=True)) == "train: 10/10 steps, 2.0 steps/s"


def test_eta_needs_a_rate():
    assert Event("train", 2, 10, "steps", rate=4.0).eta_s == 2.0
    assert Event("train", 2, 10, "steps").eta_s is None
    assert Event("train", 2, 10, "steps", rate=0.0).eta_s is None


def test_an_event_travels_as_a_line_of_json():
    stream = io.StringIO()
    event = Event("rerank, base", 1, 2, "pairs", failed=3, rate=0.1, detail="é\n", finished=True)
    JsonRenderer(stream).show(event)
    line = stream.getvalue()
    assert line.endswith("\n") and line.count("\n") == 1
    assert parse_json_line(line.rstrip("\n")) == event


@pytest.mark.parametrize("line", ["", "rerank: 1/2 pairs", '{"stage": "rerank"}', " @limrank-progress {}"])
def test_other_lines_are_no_events(line):
    assert parse_json_line(line) is None


def test_updates_are_throttled_but_for_the_first_and_the_last(monkeypatch):
    recorder = Recorder()
    progress = Progress(recorder, every_s=0.5)
    with clock(monkeypatch, "limrank.progress") as now:
        for seconds, done, finished in (
            (0.0, 0, False),
            (0.1, 1, False),
            (0.2, 0, False),
            (0.75, 2, False),
            (0.8, 3, False),
            (0.9, 4, True),
        ):
            now[0] = 1000 + seconds
            progress.update(Event("rerank", done, 4, "pairs", finished=finished))
    progress.close()
    assert [each if each == "closed" else each.done for each in recorder.events] == [0, 0, 2, 4, "closed"]


def test_lines_come_every_five_seconds_a_stage(monkeypatch):
    stream = io.StringIO()
    lines = LineRenderer(stream)
    with clock(monkeypatch, "limrank.progress") as now:
        for seconds, stage in ((0, "a"), (4, "a"), (4, "b"), (5, "a")):
            now[0] = 1000 + seconds
            lines.show(Event(stage, seconds, 9, "steps"))
        lines.show(Event("a", 9, 9, "steps", finished=True))
    assert stream.getvalue().splitlines() == ["a: 0/9 steps", "b: 4/9 steps", "a: 5/9 steps", "a: 9/9 steps"]


def test_json_where_another_process_reads_else_lines(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setenv("LIMRANK_PROGRESS", "json")
    open_progress(stream).update(Event("rerank", 0, 1, "pairs"))
    assert parse_json_line(stream.getvalue()).stage == "rerank"
    monkeypatch.delenv("LIMRANK_PROGRESS")
    plain = io.StringIO()
    open_progress(plain).update(Event("rerank", 0, 1, "pairs"))
    assert plain.getvalue() == "rerank: 0/1 pairs\n"


def test_of_training_the_bar_says_what_a_step_came_to():
    pace = job.Pace()
    line = {"step": 3, "loss": 0.5, "learning_rate": 1e-4, "tokens_per_second": 200.0}
    event = job._event(line, 9, pace)
    assert (event.done, event.total, event.tokens_per_second, event.rate) == (3, 9, 200.0, None)
    assert event.detail == "loss 0.5000, lr 0.0001"
    event = job._event(line | {"step": 5, "validation_loss": 0.25, "ndcg": 0.75}, 9, pace)
    assert event.detail == "loss 0.5000, lr 0.0001, held out 0.2500, nDCG@10 0.7500"
    assert event.rate > 0
