"""Requests as clients send them; no Ray, no HTTP."""

import pytest
from pydantic import ValidationError

from limrank.serving.errors import invalid_request
from limrank.serving.options import ScoreOptions
from limrank.serving.protocol import MAX_DOCUMENTS
from limrank.serving.requests import RerankRequest, ScoreRequest

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


def fault(model, body):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    error = invalid_request(caught.value.errors())
    assert error.status == (422 if error.code == "too_many_documents" else 400)
    return error.param, error.code


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


def test_score_takes_one_text_or_several():
    assert ScoreRequest.model_validate({"text_1": "q", "text_2": "a"}).text_2 == ["a"]
    assert ScoreRequest.model_validate({"text_1": "q", "text_2": ["a", "b"]}).text_2 == ["a", "b"]
    assert fault(ScoreRequest, {"text_1": ["q"], "text_2": "a"}) == ("text_1", "string_type")
    assert fault(ScoreRequest, {"text_1": "q", "text_2": []}) == ("text_2", "empty_documents")
    assert fault(ScoreRequest, {"text_1": "q", "text_2": ["a", None]}) == ("text_2.1", "string_type")


# ---- documents -----------------------------------------------------------------------


def passages(documents, **fields):
    return RerankRequest.model_validate({"query": "q", "documents": documents} | fields).texts()


PAGE = {"title": "heapq", "body": "merge sorted inputs", "year": 1999, "text": "a heap", "note": None, "empty": ""}


@pytest.mark.parametrize(
    ("fields", "passage"),
    [
        (None, "heapq a heap"),
        ([], "heapq a heap"),
        (["title", "text"], "heapq a heap"),
        (["text", "title"], "a heap heapq"),
        (["body", "lacking", "title"], "merge sorted inputs heapq"),
        (["empty", "body", "note"], "merge sorted inputs"),
        (["empty"], ""),
        (["body", "body"], "merge sorted inputs"),
    ],
)
def test_the_passage_is_the_rank_fields_in_their_order(fields, passage):
    assert passages([PAGE, "plain"], rank_fields=fields) == [passage, "plain"]


@pytest.mark.parametrize(
    ("documents", "fields", "param", "code"),
    [
        (["a", {"text": "b"}], ["title"], "documents.1", "missing_rank_fields"),
        (["a", {"note": None}], ["note"], "documents.1", "missing_rank_fields"),
        # Attributes of the model are no fields of the document.
        (["a", {"text": "b"}], ["model_extra", "passage"], "documents.1", "missing_rank_fields"),
        (["a", PAGE], ["year"], "documents.1.year", "string_type"),
        (["a", {"text": "b", "id": 7}], ["id"], "documents.1.id", "string_type"),
        (["a", {"title": "b"}], None, "documents.1.text", "missing"),
        (["a", {"text": None}], None, "documents.1.text", "missing"),
        (["a", {"text": 1}], None, "documents.1.text", "string_type"),
        (["a", {}], None, "documents.1.text", "missing"),
        (["a", None], None, "documents.1", "model_type"),
        (["a", ["b"]], None, "documents.1", "model_type"),
        (["a", "\ud800"], None, "documents.1", "invalid_unicode"),
        (["a", {"text": "b", "x": "\ud800"}], None, "documents.1", "invalid_field"),
        (["a", {"text": "b", "\ud800": 1}], None, "documents.1", "string_unicode"),
        (["a", {"text": "b", "x": {"\ud800": 1}}], None, "documents.1", "invalid_field"),
        (["a", {"text": "b", "x": [float("nan")]}], None, "documents.1", "invalid_field"),
        (["a", {"text": "b", "id": float("inf")}], None, "documents.1", "invalid_field"),
        ([{"text": "a"}], "text", "rank_fields", "list_type"),
        ([{"text": "a"}], [1], "rank_fields.0", "string_type"),
        ([{"text": "a"}], ["x"] * 101, "rank_fields", "too_long"),
    ],
)
def test_a_document_without_a_passage_is_named(documents, fields, param, code):
    assert fault(RerankRequest, {"query": "q", "documents": documents, "rank_fields": fields}) == (param, code)


def test_a_field_nested_beyond_reason_is_refused():
    nested = []
    for _ in range(900):
        nested = [nested]
    assert fault(RerankRequest, {"query": "q", "documents": [{"text": "a", "x": nested}]})[1] == "invalid_field"


# ---- options -------------------------------------------------------------------------


def test_a_requests_own_scoring():
    body = {"query": "q", "documents": ["a"], "mode": "think", "max_think_tokens": 9, "max_tokens_per_doc": 5}
    options = RerankRequest.model_validate(body | {"deadline_ms": 1500}).options()
    assert options == ScoreOptions("think", 9, 5, 1.5)
    assert RerankRequest.model_validate(JINA).options() == ScoreOptions()
    assert ScoreRequest.model_validate({"text_1": "q", "text_2": "a", "mode": "direct"}).options().mode == "direct"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"mode": "none"}, "mode", "literal_error"),
        ({"mode": ["direct"]}, "mode", "literal_error"),
        ({"max_think_tokens": 0}, "max_think_tokens", "greater_than"),
        ({"max_think_tokens": 1.5}, "max_think_tokens", "int_from_float"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "greater_than"),
        ({"max_tokens_per_doc": float("nan")}, "max_tokens_per_doc", "finite_number"),
        ({"deadline_ms": 0}, "deadline_ms", "greater_than_equal"),
        ({"deadline_ms": -1}, "deadline_ms", "greater_than_equal"),
        ({"deadline_ms": float("inf")}, "deadline_ms", "finite_number"),
        ({"deadline_ms": 10**30}, "deadline_ms", "less_than_equal"),
        ({"min_score": float("nan")}, "min_score", "less_than_equal"),
        ({"model": "m" * 1025}, "model", "string_too_long"),
        ({"instruction": "\ud800"}, "instruction", "invalid_unicode"),
    ],
)
def test_an_option_that_is_none(change, param, code):
    assert fault(RerankRequest, JINA | change) == (param, code)
