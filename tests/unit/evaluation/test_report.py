import re

from helpers.units import Page, words
from limrank.evaluation.metrics import evaluate
from limrank.evaluation.report import System, _axis, render, write_report
from limrank.storage import Storage

QRELS = {f"q{i}": {"d1": 1} for i in range(4)}
FIRST = {f"q{i}": {"d2": 2.0, "d1": 1.0} for i in range(4)}
SECOND = {"q0": {"d1": 1.0}, "q1": {"d1": 1.0}, "q2": {"d2": 2.0, "d1": 1.0}}
TEXTS = {"q0": "is <b>this</b> & that", "q1": "x" * 400, "q2": "unchanged"}
FACTS = {"model": "smol <135M>", "recipe": "a: 1\nb: 2"}

first = System("BM25", evaluate(QRELS, FIRST, ["RR", "P@1"]))
second = System("reranked", evaluate(QRELS, SECOND, ["RR", "P@1"]), pairs_per_second=14.72, tokens_per_pair=212.4)


def test_two_systems():
    html = render("Evaluation of <me>", [first, second], TEXTS, FACTS)
    text = words(html)
    assert Page(html).loaded == []
    assert "url(" not in html and "@import" not in html
    assert "Evaluation of <me> 4 queries." in text
    # RR: 0.5 everywhere; 1, 1, 0.5 and a missing query.
    assert "BM25 0.5000 0.5000 – 0.5000 0.0000 0.0000 – 0.0000 – –" in text
    assert re.search(r"reranked 0\.6250 \S+ – \S+ 0\.5000 \S+ – \S+ 14\.7 212", text)
    assert "reranked ranks nothing for 1 of the queries" in text
    assert re.search(r"Differences from BM25 .* reranked \+0\.1250 [−+0-9.]+ to [−+0-9.]+ \+0\.5000", text)
    # q2 is the same for both and is not shown.
    assert "RR of 3 of the 4 queries" in text
    assert "is <b>this</b> & that q0 0.5000 1.0000" in text
    assert "unchanged" not in text
    assert "x" * 279 + "… q1" in text
    assert "smol <135M>" in text
    assert "<b>" not in html


def test_one_system_shows_its_worst_queries_and_compares_with_nothing():
    text = words(render("t", [second], TEXTS, {}))
    assert "Differences" not in text
    worst = text[text.index("The lowest-scoring queries") :]
    assert worst.index("q3 0.0000") < worst.index("q2 0.5000") < worst.index("q0 1.0000")


def test_systems_that_never_differ():
    assert "The systems score the same on every query." in words(render("t", [first, first], TEXTS, {}))


def test_bars_are_drawn_to_scale():
    html = render("t", [first, second], TEXTS, {})
    bars = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)%"', html)]
    assert bars[1] / bars[0] == 0.625 / 0.5


def test_axes_have_round_steps():
    assert _axis(0.623) == (0.8, 0.2)
    assert _axis(0.5058) == (0.6, 0.1)
    assert _axis(0.033) == (0.04, 0.01)
    assert _axis(1.0) == (1.0, 0.2)
    assert _axis(0.0) == (1.0, 0.2)


def test_the_intervals_are_those_of_the_seed(tmp_path):
    assert render("t", [second], TEXTS, {}, seed=1) == render("t", [second], TEXTS, {}, seed=1)
    write_report(Storage(str(tmp_path)), "t", [second], TEXTS, {}, seed=1)
    assert (tmp_path / "report.html").read_text() == render("t", [second], TEXTS, {}, seed=1)
