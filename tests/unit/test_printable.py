"""Text of anybody's, on a terminal and in Markdown."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
import yaml

from limrank import cli
from limrank.html import render, visible
from limrank.printable import ONE_LINE, as_markdown, printable

HOSTILE = "a\x1b[31mred\x07\r\n\u202eback\u2066\u200b\u2028\x9b\x7f\ud800\ufeff<script>[x](y)"


def unseen(text, keeps=""):
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [each for each in text if unicodedata.category(each) in hidden and each not in keeps + "\u200c\u200d"]


def test_what_moves_hides_or_turns_is_spelt_out():
    shown = printable(HOSTILE)
    assert not unseen(shown)
    assert shown.startswith("a\\x1b[31mred\\x07\\r\\n\\u202eback")
    assert "\\ud800" in shown and "\\u2028" in shown
    shown.encode("utf-8")


@pytest.mark.parametrize(
    "text", ["", "naïve café", "日本語 한국어", "हिन्दी", "👩‍🔬", "שלום مرحبا", "a b", "[bold]x[/]"]
)
def test_ordinary_text_stays(text):
    assert printable(text) == text == printable(text, lines=True)


def test_every_character_is_seen_or_spelt_out():
    for start in range(0, 0x110000, 0x1000):
        assert not unseen(printable("".join(map(chr, range(start, start + 0x1000))), None))


def test_lines_stay_where_a_text_has_several_on_purpose():
    assert printable("a\tb\nc\x1b", lines=True) == "a\tb\nc\\x1b"
    assert printable("a\nb") == "a\\nb"


def test_a_long_text_loses_its_middle():
    shown = printable("start " + "x" * 200_000 + " end")
    assert len(shown) <= ONE_LINE
    assert shown.startswith("start xxx") and shown.endswith("xxx end") and "…" in shown


def test_markdown_shows_marks_as_they_are():
    assert as_markdown("![x](http://a/b.png) <img src=x> `c` *d* a\nb") == (
        "\\!\\[x\\](http://a/b.png) \\<img src=x\\> \\`c\\` \\*d\\* a\\\\nb"
    )


def test_a_page_spells_out_every_field_and_escapes_it(tmp_path):
    from limrank.evaluation.metrics import evaluate
    from limrank.evaluation.report import System
    from limrank.evaluation.report import render as report

    name = HOSTILE.replace("\ud800", "") + '"><img src=x onerror=alert(1)>'
    scores = evaluate({name: {"d": 1}}, {name: {"d": 1.0}}, ["nDCG@10"])
    page = report(name, [System(name, scores, 1.0, 2.0)], {name: name}, {name: name}, seed=1)
    assert not unseen(page, "\n\t")
    assert "<img" not in page and "<script>" not in page and "⟨U+202E⟩" in page
    assert visible("a\u202eb") == "a⟨U+202E⟩b"
    assert render is not None


# ---- at the command line -----------------------------------------------------------------


def one_safe_line(text):
    assert text.endswith("\n") and text.count("\n") == 1, text
    assert not unseen(text, "\n") and len(text) <= ONE_LINE + 1
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ["rerank", "no\x1b[2Jsuch\nrecipe\u202e.yaml"],
        ["x\x1b[31m\u202e"],
        ["rerank", "--\x1b[31m"],
        ["failures", "a\x1b[2J\nb"],
        ["failures", "x" * 5000],
        ["models", "fetch", "x\x1b]0;title\x07/y\u202e"],
    ],
)
def test_a_complaint_is_one_short_line_of_what_can_be_seen(arguments, capsys):
    assert cli.main(arguments) == 2
    assert one_safe_line(capsys.readouterr().err).startswith("limrank: ")


@pytest.mark.parametrize(
    "override",
    [
        "no\x1b[31mkey=1",
        "data.format=x\x1b[2J\u202e",
        "first_stage.depth=" + "x" * 200_000,
        "y" * 200_000 + "=1",
        "model.id=" + "z\x1b" * 100_000,
    ],
)
def test_what_an_override_quotes_is_safe_and_short(override, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"job: rerank\nrun_dir: {tmp_path}/run\n")
    assert cli.main(["rerank", str(recipe), "-s", override]) == 2
    one_safe_line(capsys.readouterr().err)


def test_a_plan_shows_nothing_that_acts(tmp_path, capsys):
    folder = tmp_path / "b"
    (folder / "qrels").mkdir(parents=True)
    text = "feeds \x1b[31m\u202e" + "w" * 3000
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "d\x1b", "text": "feeds \x1b[2J \u202e merge"}) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q\x1b", "text": text}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\x1b\td\x1b\t1\n")
    recipe = tmp_path / "r.yaml"
    config = {"job": "rerank", "run_dir": str(tmp_path / "run"), "engine": {"kind": "fake"}}
    recipe.write_text(yaml.safe_dump(config | {"data": {"format": "beir", "path": str(folder)}}))
    assert cli.main(["rerank", str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert not unseen(out, "\n\t")
    assert "feeds \\x1b[31m\\u202e" in out


def test_a_terminal_of_few_characters_is_no_error(tmp_path):
    recipe = tmp_path / "r.yaml"
    config = {"job": "rerank", "run_dir": str(tmp_path / "run"), "engine": {"kind": "fake"}}
    config |= {
        "data": {"format": "pydocs", "max_queries": 2},
        "scoring": {"prompt": "日本 ü {{ query }} {{ passage }}"},
    }
    recipe.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "limrank", "rerank", str(recipe), "--dry-run"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert b"\\u65e5\\u672c \\xfc" in done.stdout and not done.stderr
