"""Requests as clients send them, and answers as they read them; no Ray, no HTTP."""

import pytest
from pydantic import ValidationError

from limrank.config import ServeJob
from limrank.engines import Usage
from limrank.errors import RowError, UserError
from limrank.models import served_name
from limrank.records import Judgment, ScoreStatus
from limrank.serving import job
from limrank.serving.errors import ApiError, invalid_request
from limrank.serving.types import (
    MAX_DOCUMENTS,
    RerankRequest,
    ScoreRequest,
    rerank_response,
    score_response,
)

JINA = {
    "model": "jina-reranker-v2-base-multilingual",
    "query": "how to merge sorted feeds",
    "documents": ["heapq.merge", {"text": "bisect.insort"}],
    "top_n": 1,
    "return_documents": False,
    "truncation": True,
}
COHERE_V2 = {
    "model": "rerank-v3.5",
    "query": "how to merge sorted feeds",
    "documents": ["heapq.merge", "bisect.insort"],
    "top_n": 2,
    "max_tokens_per_doc": 4096,
}


def judged(score, **others):
    return Judgment("", score, ScoreStatus.DIRECT, prompt_tokens=10, generated_tokens=1, **others)


def failed(message="too long", **others):
    return Judgment("", None, ScoreStatus.FAILED, error=RowError(message, **others))


SPENT = Usage(requests=4, prompt=40, cached_prompt=30, generated=4)


def fault(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = invalid_request(caught.value.errors())
    # A limit is no fault of the shape.
    assert error.status == (422 if error.code == "too_many_documents" else 400)
    return error.param, error.code


def answer(judgments, body, return_documents=True):
    request = RerankRequest.model_validate(body)
    return rerank_response(request, judgments, SPENT, model="m", return_documents=return_documents)


def test_jinas_and_coheres_bodies_are_read():
    jina = RerankRequest.model_validate(JINA)
    assert (jina.query, jina.texts()) == ("how to merge sorted feeds", ["heapq.merge", "bisect.insort"])
    assert (jina.top_n, jina.return_documents) == (1, False)
    cohere = RerankRequest.model_validate(COHERE_V2)
    assert (cohere.top_n, cohere.return_documents) == (2, None)


def test_title_and_instruction_are_judged():
    body = {"query": "q", "instruction": "only Python 3", "documents": [{"title": "heapq", "text": "merge", "id": 7}]}
    request = RerankRequest.model_validate(body)
    assert request.texts() == ["heapq merge"]
    assert RerankRequest.model_validate(JINA | {"documents": [" a\n"]}).texts() == [" a\n"]
    assert (request.to_query().text, request.to_query().instruction) == ("q", "only Python 3")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"query": None}, "query", "string_type"),
        ({"query": " \n"}, "query", "empty_query"),
        ({"query": "\ud800"}, "query", "invalid_unicode"),
        ({"documents": []}, "documents", "empty_documents"),
        ({"documents": "one"}, "documents", "list_type"),
        ({"documents": ["a", 3]}, "documents.1", "model_type"),
        ({"documents": ["a", {"image": "x"}]}, "documents.1.text", "missing"),
        ({"documents": ["a"] * (MAX_DOCUMENTS + 1)}, "documents", "too_many_documents"),
        ({"top_n": 0}, "top_n", "greater_than"),
        ({"top_n": "many"}, "top_n", "int_parsing"),
        ({"return_documents": "perhaps"}, "return_documents", "bool_parsing"),
    ],
)
def test_a_fault_names_its_field(change, param, code):
    assert fault(RerankRequest, JINA | change) == (param, code)


def test_a_missing_field_is_named_and_no_value_repeated():
    assert fault(RerankRequest, {"documents": ["a"]}) == ("query", "missing")
    with pytest.raises(ValidationError) as caught:
        RerankRequest.model_validate(JINA | {"top_n": "a secret"})
    body = invalid_request(caught.value.errors()).body()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert "secret" not in body["error"]["message"]


def test_the_limit_itself_is_taken():
    assert len(RerankRequest.model_validate(JINA | {"documents": ["a"] * MAX_DOCUMENTS}).texts()) == MAX_DOCUMENTS


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


def test_score_takes_one_text_or_several():
    assert ScoreRequest.model_validate({"text_1": "q", "text_2": "a"}).text_2 == ["a"]
    assert ScoreRequest.model_validate({"text_1": "q", "text_2": ["a", "b"]}).text_2 == ["a", "b"]
    assert fault(ScoreRequest, {"text_1": ["q"], "text_2": "a"}) == ("text_1", "string_type")
    assert fault(ScoreRequest, {"text_1": "q", "text_2": []}) == ("text_2", "empty_documents")
    assert fault(ScoreRequest, {"text_1": "q", "text_2": ["a", None]}) == ("text_2.1", "string_type")


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
    plan = job.plan(ServeJob(run_dir="r", serving={"host": "0.0.0.0", "port": 9000}, scoring={"mode": "budget"}))
    assert plan["url"] == "http://127.0.0.1:9000"
    assert plan["scoring"] == {"mode": "budget", "max_think_tokens": 256}


def test_scoring_mode_none_is_refused():
    with pytest.raises(UserError, match="scoring.mode none"):
        job.plan(ServeJob(run_dir="r", scoring={"mode": "none"}))
