"""A listwise teacher: windows, answers of any kind, an endpoint that orders, fails or refuses, and a whole job."""

import asyncio
import json
import re

import pytest

from helpers.beir import write_beir
from helpers.endpoint import USAGE, serving
from limrank.cli import main
from limrank.config import SynthesisConfig, TeacherConfig
from limrank.config.recipe import parse_config
from limrank.errors import EndpointError, UserError
from limrank.progress import open_progress
from limrank.records import Document, Query
from limrank.storage import Storage
from limrank.synthesis import job
from limrank.synthesis.grades import Grade
from limrank.synthesis.listwise import (
    check_listwise_prompt,
    listwise_prompt,
    ranking_in,
    reordered,
    windows,
)
from limrank.synthesis.mining import mine_passages
from limrank.synthesis.teachers import check_teacher, open_teacher, teacher_usage

# ---- without an endpoint -------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        (1, 20, [(0, 1)]),
        (20, 20, [(0, 20)]),
        (21, 20, [(1, 21), (0, 20)]),
        (30, 20, [(10, 30), (0, 20)]),
        (45, 20, [(25, 45), (15, 35), (5, 25), (0, 20)]),
        (4, 2, [(2, 4), (1, 3), (0, 2)]),
        (5, 3, [(2, 5), (1, 4), (0, 3)]),
    ],
)
def test_windows_go_from_the_last_passages_to_the_first(length, size, expected):
    assert list(windows(length, size)) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[2] > [3] > [1]", [2, 3, 1]),
        ("[2]>[3]>\n[1]", [2, 3, 1]),
        ("**[2]** &gt; **[3]**", [2, 3]),
        ("Of the 5 passages, [4] looks good, but:\n[2] > [3] > [4]\nI hope that [1] helps.", [2, 3, 4]),
        ("In the form [2] > [1]:\n\n[4] > [3] > [1]", [4, 3, 1]),
        ("Ranking: 2 > 3 > 1", [2, 3, 1]),
        ("[3, 1, 2]", [3, 1, 2]),
        ("2\n1\n", [2, 1]),
        ("1. [3]\n2. [1]", [3, 1]),
        ("[ 2 ] > [ 1 ]", [2, 1]),
        ("[2] > [2] > [1] > [2]", [2, 1]),  # repeated
        ("[0] > [6] > [999999999] > [3] > [-1]", [3]),  # unknown
        ("[5] > " * 5000, [5]),
        ("[" + "9" * 6000 + "]", []),
        ("", []),
        ("I cannot rank these 4 passages.", []),
        ("Passage 4 is the best.", []),
        ("[] > []", []),
        ("[٣] > [²]", []),  # digits, but not ours
        ("0.93, 0.12", []),
        ("null", []),
    ],
)
def test_an_answer_is_read_whatever_it_is(answer, expected):
    assert ranking_in(answer, 5) == expected


def test_what_an_answer_leaves_out_keeps_its_order_at_the_end():
    assert reordered([7, 8, 9, 4], [3, 1]) == [9, 7, 8, 4]
    assert reordered([7, 8], []) == [7, 8]


def test_passages_are_numbered_lines_of_a_few_words():
    prompt = listwise_prompt("{{ count }}: {{ query }}\n{{ passages }}", "q {{ x }}", ["a b\n\nc d", "see [1]"], 3)
    assert prompt == "2: q {{ x }}\n[1] a b c\n[2] see (1)"
    # Two characters of Chinese count as a word. A text without words ends, too.
    assert (
        listwise_prompt("{{ query }}{{ passages }}", "", ["中" * 50, "x" * 500], 3) == f"[1] {'中' * 6}\n[2] {'x' * 36}"
    )
    packaged = listwise_prompt("listwise", "merge feeds", ["a heap", "bread"], 300)
    assert "\n[1] a heap\n[2] bread\n" in packaged and packaged.count("Query: merge feeds") == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{{ passages }}", "has no {{ query }}"),
        ("{{ query }}", "has no {{ passages }}"),
        ("{{ query }} {{ passages }} {{ persona }}", "persona"),
        ("{{ query", "line 1"),
        ("no/such/prompt", "no such file, and not one of"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(prompt, message):
    with pytest.raises(UserError) as refused:
        check_listwise_prompt(prompt)
    assert message in str(refused.value) and "\n" not in str(refused.value)


ENDPOINT = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "synthesis.teacher.engine: with kind=listwise it has to be an endpoint"),
        ({"engine": {"kind": "vllm"}}, "synthesis.teacher.engine: with kind=listwise it has to be an endpoint"),
        ({"engine": {"kind": "openai"}}, "synthesis.teacher.engine.base_url is needed"),
        ({"engine": {"kind": "openai", "base_url": "here"}}, "synthesis.teacher.engine.base_url: should be http://"),
        ({"engine": "http://here"}, "synthesis.teacher.engine: should be a section"),
        ({"engine": ENDPOINT, "model": None}, "synthesis.teacher.model is needed with kind=listwise"),
        ({"engine": ENDPOINT, "path": "run.json"}, "synthesis.teacher.path is not for kind=listwise"),
        ({"engine": ENDPOINT, "window": 1}, "synthesis.teacher.window"),
        ({"engine": ENDPOINT, "window": 1e9}, "synthesis.teacher.window"),
        ({"engine": ENDPOINT, "passage_words": 0}, "synthesis.teacher.passage_words"),
        ({"engine": ENDPOINT, "passage_words": float("nan")}, "synthesis.teacher.passage_words"),
        ({"engine": ENDPOINT, "answer_tokens": True}, "synthesis.teacher.answer_tokens"),
        ({"engine": ENDPOINT, "prompt": " "}, "synthesis.teacher.prompt: is empty"),
        ({"engine": ENDPOINT, "step": 10}, "synthesis.teacher.step: unknown key"),
        ({"kind": "pointwise"}, "synthesis.teacher.kind"),
        ({"kind": "embedder", "window": 10}, "synthesis.teacher.window is for kind=listwise"),
        ({"kind": "embedder", "engine": ENDPOINT}, "synthesis.teacher.engine is for kind=listwise"),
    ],
)
def test_keys_that_do_not_fit_are_refused_in_one_line(values, message):
    teacher = {"kind": "listwise", "model": "m", **values}
    with pytest.raises(UserError) as refused:
        parse_config({"job": "synthesize", "run_dir": "r", "synthesis": {"source": "passages", "teacher": teacher}})
    assert message in str(refused.value) and "\n" not in str(refused.value)


# ---- with an endpoint ----------------------------------------------------------------


def chat(text, reason="stop"):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": USAGE}


MODELS = {"object": "list", "data": [{"id": "judge"}]}


def answering(answer):
    """A handler that lists its model, and gives ``answer(prompt)`` to a request: a text, or (status, body)."""

    def handle(handler):
        if handler.command == "GET":
            return handler.send(200, "application/json", MODELS)
        found = answer(handler.server.requests[-1][2]["messages"][0]["content"])
        status, body = found if isinstance(found, tuple) else (200, chat(found))
        return handler.send(status, "application/json", body)

    return [handle]


def by_worth(prompt):
    """The perfect ranking of passages that are called "worth N"."""
    shown = re.findall(r"^\[(\d+)\] worth (\d+)", prompt, re.MULTILINE)
    return " > ".join(f"[{number}]" for number, _ in sorted(shown, key=lambda each: -int(each[1])))


def asked(server):
    return [body["messages"][0]["content"] for _, _, body in server.requests if body]


def teacher(url, **values):
    return TeacherConfig(kind="listwise", model="judge", engine={"kind": "openai", "base_url": url}, **values)


def worths(*numbers):
    return [Document(f"d{number}", f"worth {number} of something") for number in numbers]


def test_grades_are_minus_the_ranks_of_the_model_s_order():
    with serving() as server:
        server.answers = answering(by_worth)
        grading = open_teacher(teacher(server.url))
        grades = grading.grade(
            [Query("a", "the best"), Query("b", "one"), Query("c", "none")], [worths(3, 9, 5), worths(1), []]
        )
        assert grades == [[Grade(-3.0), Grade(-1.0), Grade(-2.0)], [Grade(-1.0)], []]
        assert grading.warnings == [] and len(server.requests) == 1  # one passage needs no order
        (body,) = [body for _, _, body in server.requests]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge", 1024, 0)


def test_a_window_slides_over_many_passages():
    with serving() as server:
        server.answers = answering(by_worth)
        numbers = [(7 * each) % 45 for each in range(45)]
        (grades,) = open_teacher(teacher(server.url)).grade([Query("a", "the best")], [worths(*numbers)])
        by_number = dict(zip(numbers, (grade.score for grade in grades), strict=True))
        assert [by_number[44 - rank] for rank in range(10)] == [-1.0 - rank for rank in range(10)]
        assert sorted(by_number.values()) == [float(-rank) for rank in range(45, 0, -1)]
        assert [prompt.count("worth") for prompt in asked(server)] == [20] * 4
        assert len(open_teacher(teacher(server.url, window=50)).grade([Query("a", "q")], [worths(*numbers)])[0]) == 45
        assert asked(server)[-1].count("worth") == 45


def test_the_seed_draws_the_order_in_which_passages_are_shown():
    queries = [Query(str(number), f"query {number}") for number in range(30)]

    def first_shown(server, seed):
        """The passage that is shown first for each query."""
        before = len(server.requests)
        open_teacher(teacher(server.url), seed=seed).grade(queries, [worths(1, 2, 3, 4)] * 30)
        prompts = {re.search(r"query (\d+)", prompt)[1]: prompt for prompt in asked(server)[before:]}
        return [re.search(r"\[1\] worth (\d)", prompts[query.query_id])[1] for query in queries]

    with serving() as server:
        server.answers = answering(by_worth)
        shown = first_shown(server, 1)
        assert set(shown) == set("1234")  # also a query's own passage, which may be any of them
        assert first_shown(server, 1) == shown != first_shown(server, 2)


def test_a_thought_is_no_ranking():
    with serving() as server:
        server.answers = answering(lambda prompt: f"<think>[1] > [2] > [3] > [1]</think>\n{by_worth(prompt)}")
        (grades,) = open_teacher(teacher(server.url)).grade([Query("a", "q")], [worths(3, 9, 5)])
        assert grades == [Grade(-3.0), Grade(-1.0), Grade(-2.0)]
        server.answers = answering(lambda _: "<think>[1] > [2] > [3]")
        (grades,) = open_teacher(teacher(server.url)).grade([Query("a", "q")], [worths(3, 9, 5)])
        assert grades == [None] * 3


QUERIES = [Query(name, f"query {name}") for name in ("good", "prose", "refused")]
LISTS = [worths(1, 2), worths(3, 4), worths(5, 6)]


def mixed(prompt):
    if "query prose" in prompt:
        return "I'm sorry, but these 2 passages\nare alike."
    if "query refused" in prompt:
        return 400, {"error": {"message": "the prompt is too long"}}
    return by_worth(prompt)


def test_garbage_and_failures_are_no_grades_and_are_counted(tmp_path):
    with serving() as server:
        server.answers = answering(mixed)
        grading = open_teacher(teacher(server.url), Storage(str(tmp_path)))
        assert grading.grade(QUERIES, LISTS) == [[Grade(-2.0), Grade(-1.0)], [None, None], [None, None]]
        assert grading.warnings == [
            "synthesis.teacher: 2 of 3 queries are ungraded: the requests of 1 failed (the endpoint answered 400: the "
            "prompt is too long), and the answers to 1 name no passage (\"I'm sorry, but these 2 passages are "
            'alike."); the same command asks them again'
        ]
        # What is graded is not asked again, and the rest may fail once more.
        grading = open_teacher(teacher(server.url), Storage(str(tmp_path)))
        server.answers = answering(lambda _: (400, {"error": {"message": "no"}}))
        assert grading.grade(QUERIES, LISTS)[0] == [Grade(-2.0), Grade(-1.0)]
        assert "2 of 2 queries are ungraded: the requests of 2 failed" in grading.warnings[0]
        assert len(asked(server)) == 5


@pytest.mark.parametrize(
    "body", [{}, {"choices": []}, {"choices": None}, {"choices": [{"message": {"content": None}}]}, {"choices": [3]}]
)
def test_answers_of_another_shape_are_failures(body, tmp_path, monkeypatch):
    monkeypatch.setattr("limrank.engines.openai.backoff_s", lambda attempt: 0.0)
    with serving() as server:
        server.answers = answering(lambda _: (200, body))
        with pytest.raises(
            EndpointError, match=r"^synthesis.teacher: every request failed: the endpoint failed 5 times"
        ):
            open_teacher(teacher(server.url), Storage(str(tmp_path))).grade(QUERIES, LISTS)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "synthesis.teacher: the endpoint answered 401: no"),
        (400, "synthesis.teacher: every request failed: the endpoint answered 400: no"),
    ],
)
def test_an_endpoint_that_refuses_everything_is_one_error(tmp_path, status, message):
    with serving() as server:
        server.answers = answering(lambda _: (status, {"error": {"message": "no"}}))
        with pytest.raises(EndpointError) as refused:
            open_teacher(teacher(server.url), Storage(str(tmp_path))).grade(QUERIES, LISTS)
        assert str(refused.value) == message
    with pytest.raises(EndpointError, match=r"^synthesis.teacher: the endpoint .* is gone"):
        open_teacher(teacher(server.url), Storage(str(tmp_path))).grade(QUERIES, LISTS)


def test_an_endpoint_is_checked_before_anything_is_written():
    with serving() as server:
        server.answers = answering(by_worth)
        check_teacher(teacher(server.url))
        other = TeacherConfig(kind="listwise", model="x", engine={"kind": "openai", "base_url": server.url})
        with pytest.raises(UserError, match="has no model 'x'; it serves judge"):
            check_teacher(other)
    with pytest.raises(UserError, match=r"^synthesis.teacher.engine.base_url http.*: cannot be reached"):
        check_teacher(teacher(server.url))


def test_kept_grades_are_of_one_set_of_passages_one_prompt_and_one_model(tmp_path):
    storage, query = Storage(str(tmp_path)), Query("a", "q")
    with serving() as server:
        server.answers = answering(by_worth)

        def requests(passages, **values):
            before = len(server.requests)
            open_teacher(teacher(server.url, **values), storage).grade([query], [passages])
            return len(server.requests) - before

        assert requests(worths(1, 2, 3)) == 1
        assert requests(worths(3, 1, 2)) == 0  # a rank among the same passages
        assert requests(worths(1, 2)) == 1
        assert requests(worths(1, 2, 4)) == 1
        (grades,) = open_teacher(teacher(server.url), storage).grade([query], [worths(1, 2, 3)])
        assert [grade.score for grade in grades] == [-3.0, -2.0, -1.0]
        assert teacher_usage(teacher(server.url), storage).requests == 3
        assert requests(worths(1, 2), margin=0.5, best=9) == 0
        assert requests(worths(1, 2), prompt="{{ query }}\n{{ passages }}") == 1
        assert teacher_usage(teacher(server.url), storage).requests == 0  # of another prompt
        (tmp_path / "grades.parquet").write_bytes(b"damaged")
        assert requests(worths(1, 2)) == 1


def test_a_notebook_s_tokens_are_counted_too(tmp_path):
    """There a loop runs already, and the requests go through another thread."""
    storage = Storage(str(tmp_path))

    async def cell(url):
        return open_teacher(teacher(url), storage).grade([Query("a", "q")], [worths(1, 2)])

    with serving() as server:
        server.answers = answering(by_worth)
        assert asyncio.run(cell(server.url)) == [[Grade(-2.0), Grade(-1.0)]]
        assert teacher_usage(teacher(server.url), storage).prompt == 3


# ---- mining, and a whole job ---------------------------------------------------------

TEXTS = {
    "heap": "worth 9 the heap merges sorted feeds that are too large for memory into one stream of items",
    "sort": "worth 2 sorted returns a new list with the items of feeds in order and needs memory for all",
    "feed": "worth 8 a feed reader polls feeds of news and merges items that it has seen before by title",
    "bread": "worth 1 bake the bread at the altitude of the resort and let the dough of rye rise for longer",
}
QUERY = Query("heap/0", "merge large sorted feeds")


def mined(url, tmp_path, **values):
    settings = SynthesisConfig(source="passages", negatives=2, teacher=teacher(url, **values))
    documents = [Document(doc_id, text) for doc_id, text in TEXTS.items()]
    return mine_passages([(QUERY, "heap")], documents, settings, None, 1, Storage(str(tmp_path)))


def test_negatives_are_mined_by_rank(tmp_path):
    with serving() as server:
        server.answers = answering(by_worth)
        found = mined(server.url, tmp_path, margin=1.5).queries["heap/0"]
        assert found.grade == Grade(-1.0)
        # The ranks of three passages have a standard deviation of 0.82.
        assert [each.doc_id for each in found.negatives] == ["sort"]
        assert [(each.doc_id, each.fault) for each in found.doubtful] == [
            ("feed", ("false_negative", "-2, the query's passage -1"))
        ]
        assert mined(server.url, tmp_path, min_score=-0.5).queries["heap/0"].fault == ("teacher_disagrees", "score -1")
        assert len(asked(server)) == 1
        server.answers = answering(lambda _: "no")
        result = mined(server.url, tmp_path, passage_words=5)
        assert result.queries["heap/0"].fault == ("ungraded", "")
        assert "1 of 1 queries are ungraded: the answers to 1 name no passage ('no')" in result.warnings[0]


def recipe(url, tmp_path):
    queries = {"q1": "how do I merge large sorted feeds", "q2": "how long does dough rise, says the feed of news"}
    corpus = write_beir(tmp_path / "corpus", TEXTS, queries, {"q1": {"heap": 1}, "q2": {"bread": 1}})
    return {
        "job": "synthesize",
        "run_dir": str(tmp_path / "run"),
        "synthesis": {
            "source": "passages",
            "writer": "none",
            "seeds": str(corpus),
            "prices": {"teacher": {"prompt": 1000, "generated": 5000}},
            "teacher": {"kind": "listwise", "model": "judge", "engine": {"kind": "openai", "base_url": url}, "best": 4},
        },
    }


def test_a_job_asks_the_teacher_once_and_counts_its_tokens(tmp_path):
    with serving() as server:
        server.answers = answering(by_worth)
        config = parse_config(recipe(server.url, tmp_path))
        assert job.plan(config)["units"].startswith("2 queries")
        assert not server.requests
        for _ in range(2):
            result = job.run(config, address="local", progress=open_progress())
            assert result.warnings == [] and len(asked(server)) == 2
            stats = json.loads((tmp_path / "run" / "stats.json").read_text())
            used = {"prompt": 6, "cached_prompt": 0, "generated": 4}
            assert stats["steps"] == {"teacher": used | {"cost": 0.026}}
            assert stats["tokens"] == {"prompt": 6, "generated": 4}
            assert (stats["teacher"], stats["prompts"]["teacher"]["name"]) == ("judge", "listwise")
        lists = [json.loads(line) for line in (tmp_path / "run" / "lists.jsonl").read_text().splitlines()]
        assert [each["scores"][0] for each in lists] == [-1.0, -4.0]


def test_the_command_says_in_one_line_that_the_endpoint_refuses(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    with serving() as server:
        path.write_text(json.dumps(recipe(server.url, tmp_path)))
        server.answers = answering(lambda _: (403, {"error": {"message": "not for you"}}))
        assert main(["synthesize", str(path)]) == 1
        # The test's own server may say on stderr that a request was given up.
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("limrank: ")]
        assert line == "limrank: EndpointError: synthesis.teacher: the endpoint answered 403: not for you"
        # The same command goes on.
        server.answers = answering(by_worth)
        assert main(["synthesize", str(path)]) == 0
    assert main(["synthesize", str(path)]) == 2
    assert "synthesis.teacher.engine.base_url" in capsys.readouterr().err
