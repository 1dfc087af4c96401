"""Answers as clients read them, and what the job says; no Ray, no HTTP."""

import pytest

from limrank.config import ServeJob
from limrank.engines import Usage
from limrank.errors import RowError, UserError
from limrank.models import served_name
from limrank.records import Judgment, ScoreStatus
from limrank.serving import job
from limrank.serving.errors import ApiError
from limrank.serving.requests import RerankRequest
from limrank.serving.responses import rerank_response, score_response


def judged(score, **others):
    return Judgment("", score, ScoreStatus.DIRECT, prompt_tokens=10, generated_tokens=1, **others)


def failed(message="too long", **others):
    return Judgment("", None, ScoreStatus.FAILED, error=RowError(message, **others))


SPENT = Usage(requests=4, prompt=40, cached_prompt=30, generated=4)


def answer(judgments, body, return_documents=True):
    request = RerankRequest.model_validate(body)
    return rerank_response(request, judgments, SPENT, model="m", return_documents=return_documents)


def test_results_are_ordered_by_score_then_index():
    body = {"query": "q", "documents": ["a", "b", "c", "d"]}
    response = answer([judged(0.5), judged(0.9), judged(0.5), judged(0.1)], body)
    assert [result["index"] for result in response["results"]] == [1, 0, 2, 3]
    assert response["results"][0] == {
        "index": 1,
        "relevance_score": 0.9,
        "status": "direct",
        "truncated": False,
        "prompt_tokens": 10,
        "generated_tokens": 1,
        "document": {"text": "b"},
    }
    assert response["usage"] == {
        "prompt_tokens": 40,
        "completion_tokens": 4,
        "total_tokens": 44,
        "prompt_tokens_details": {"cached_tokens": 30},
    }
    assert (response["object"], response["model"]) == ("list", "m")


def test_top_n_cuts_and_more_than_there_are_is_all():
    judgments = [judged(0.1), judged(0.9), judged(0.5)]
    body = {"query": "q", "documents": ["a", "b", "c"]}
    assert [result["index"] for result in answer(judgments, body | {"top_n": 2})["results"]] == [1, 2]
    assert len(answer(judgments, body | {"top_n": 9})["results"]) == 3


def test_documents_come_back_by_the_requests_word_then_the_routes():
    body = {"query": "q", "documents": [{"text": "a", "title": "t"}]}
    assert answer([judged(0.1)], body)["results"][0]["document"] == {"text": "a", "title": "t"}
    assert "document" not in answer([judged(0.1)], body | {"return_documents": False})["results"][0]
    assert "document" not in answer([judged(0.1)], body, return_documents=False)["results"][0]
    asked = answer([judged(0.1)], body | {"return_documents": True}, return_documents=False)
    assert asked["results"][0]["document"]["text"] == "a"


def test_reasoning_comes_only_where_asked_for():
    body = {"query": "q", "documents": ["a"]}
    judgments = [judged(0.1, reasoning="It does not merge.")]
    assert "reasoning" not in answer(judgments, body)["results"][0]
    asked = answer(judgments, body | {"return_reasoning": True})
    assert asked["results"][0]["reasoning"] == "It does not merge."


def test_a_failed_pair_is_last_and_has_no_score():
    response = answer([failed(), judged(0.0)], {"query": "q", "documents": ["a", "b"]}, return_documents=False)
    assert [result["index"] for result in response["results"]] == [1, 0]
    assert response["results"][1] == {
        "index": 0,
        "relevance_score": None,
        "status": "failed",
        "truncated": False,
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "error": "too long",
    }


@pytest.mark.parametrize(("retryable", "status"), [(False, 422), (True, 503)])
def test_nothing_but_failures_is_an_error(retryable, status):
    with pytest.raises(ApiError, match="no document could be scored: too long") as caught:
        answer([failed(retryable=retryable)], {"query": "q", "documents": ["a"]})
    assert (caught.value.status, caught.value.code) == (status, "all_pairs_failed")


def test_score_answers_in_the_texts_order():
    response = score_response([judged(0.2), failed(), judged(0.8)], SPENT, model="m")
    assert response["data"] == [
        {"index": 0, "object": "score", "score": 0.2},
        {"index": 1, "object": "score", "score": None},
        {"index": 2, "object": "score", "score": 0.8},
    ]
    assert (response["object"], response["usage"]["total_tokens"]) == ("list", 44)


def test_a_directorys_path_is_not_returned(tmp_path):
    (tmp_path / "model").mkdir()
    assert served_name(str(tmp_path / "model")) == "model"
    assert served_name("songtingyu/limrank") == "songtingyu/limrank"


def test_plan_says_where_and_what():
    plan = job.plan(
        ServeJob(run_dir="r", serving={"host": "0.0.0.0", "port": 9000}, scoring={"mode": "budget"}), insecure=True
    )
    assert plan["url"] == "http://127.0.0.1:9000"
    assert plan["scoring"] == {"mode": "budget", "max_think_tokens": 256}
    assert {"POST /v1/score", "POST /score"} <= set(plan["routes"])


def test_scoring_mode_none_is_refused():
    with pytest.raises(UserError, match="scoring.mode none"):
        job.plan(ServeJob(run_dir="r", scoring={"mode": "none"}))


def test_documents_come_back_as_they_came():
    document = {"id": "d-7", "title": "t", "text": "a", "url": "http://x", "tags": ["b", {"c": 1.5}], "note": None}
    body = {"query": "q", "documents": [document, "plain", {"body": "only"}], "rank_fields": ["text", "body"]}
    results = answer([judged(0.3), judged(0.2), judged(0.1)], body)["results"]
    assert [result["document"] for result in results] == [document, {"text": "plain"}, {"body": "only"}]


def skipped():
    return Judgment("", None, ScoreStatus.SKIPPED, error=RowError("the deadline passed"))


def test_pairs_that_a_deadline_left_out_come_after_the_others_in_input_order():
    response = answer(
        [skipped(), judged(0.1), failed(), skipped(), judged(0.1)], {"query": "q", "documents": ["a"] * 5}
    )
    assert [result["index"] for result in response["results"]] == [1, 4, 0, 2, 3]
    last = response["results"][-1]
    assert (last["relevance_score"], last["status"], last["error"]) == (None, "skipped", "the deadline passed")


def test_a_deadline_before_any_score_is_an_error():
    with pytest.raises(ApiError) as caught:
        answer([skipped(), failed()], {"query": "q", "documents": ["a", "b"]})
    assert (caught.value.status, caught.value.code, caught.value.param) == (504, "deadline_exceeded", "deadline_ms")
    with pytest.raises(ApiError):
        score_response([skipped()], SPENT, model="m")
