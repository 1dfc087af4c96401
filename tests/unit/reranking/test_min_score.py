"""``min_score``: pairs below it stay rows, and leave the run, a ranking and an answer."""

import asyncio
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from helpers.units import fake_engine
from limrank.config import ScoringConfig
from limrank.engines import Usage
from limrank.errors import RowError, UserError
from limrank.records import Judgment, ScoreStatus, rerank_row_schema
from limrank.reranking import runs
from limrank.reranking.reranker import Reranker
from limrank.serving.requests import RerankRequest
from limrank.serving.responses import rerank_response
from limrank.storage import Storage

DOCUMENTS = ["the cat", "a dog", "some salt", "dry flour"]
BODY = {"query": "q", "documents": ["a", "b", "c"]}


@pytest.fixture
def scored(tmp_path):
    """Rows of a rerank job: q2 has nothing above one half, and of q3 nothing was scored."""
    storage = Storage(str(tmp_path))
    scores = {"q1": [("d1", 0.9), ("d2", 0.5), ("d3", 0.4)], "q2": [("d1", 0.1)], "q3": [("d1", None)]}
    rows = [
        {"query_id": query_id, "doc_id": doc_id, "rank": rank, "score": score}
        for query_id, pairs in scores.items()
        for rank, (doc_id, score) in enumerate(pairs, start=1)
    ]
    storage.write_table("rows/chunk-000000.parquet", pa.Table.from_pylist(rows, schema=rerank_row_schema()))
    return storage


def test_a_run_has_the_pairs_that_reach_it(scored):
    runs.write_runs(scored, min_score=0.5)
    assert scored.read_text("run.trec").splitlines() == ["q1 Q0 d1 1 -1 limrank", "q1 Q0 d2 2 -2 limrank"]
    assert json.loads(scored.read_text("run.json")) == {"q1": {"d1": -1.0, "d2": -2.0}, "q2": {}, "q3": {}}
    assert runs.reaching(scored, 0.5) == (2, 1)
    runs.write_runs(scored, min_score=0.0)
    assert len(scored.read_text("run.trec").splitlines()) == 4  # without the pair that has no score
    runs.write_runs(scored)
    assert len(scored.read_text("run.trec").splitlines()) == 5


def test_another_threshold_keeps_the_rows():
    assert ScoringConfig(min_score=0.5).hashed(set()) == ScoringConfig().hashed(set())


# ---- a ranking -----------------------------------------------------------------------


def test_a_ranking_is_without_documents_below_it():
    with Reranker(engine=fake_engine()) as reranker:
        whole = reranker.rank("cat", DOCUMENTS)
        least = whole[1].score
        assert reranker.rank("cat", DOCUMENTS, min_score=least) == whole[:2]
        assert reranker.rank("cat", DOCUMENTS, min_score=least, top_n=1) == whole[:1]
        assert reranker.rank("cat", DOCUMENTS, min_score=1) == []
        assert reranker.rank("cat", DOCUMENTS, min_score=np.float32(0)) == whole
        assert reranker.rank_many(["cat"], [DOCUMENTS], min_score=least) == [whole[:2]]
        assert asyncio.run(reranker.arank("cat", DOCUMENTS, min_score=least)) == whole[:2]
    with Reranker(engine=fake_engine(), scoring=ScoringConfig(min_score=least)) as reranker:
        assert reranker.rank("cat", DOCUMENTS) == whole[:2]
        assert reranker.rank("cat", DOCUMENTS, min_score=0) == whole


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, "0.5", [], 10**400], ids=lambda v: repr(v)[:9])
def test_a_threshold_is_a_number_from_0_to_1(value):
    with Reranker(engine=fake_engine()) as reranker:
        for call in (reranker.rank, lambda *args, **keys: asyncio.run(reranker.arank(*args, **keys))):
            with pytest.raises(UserError, match="min_score: should be a number from 0 to 1"):
                call("cat", DOCUMENTS, min_score=value)


# ---- an answer -----------------------------------------------------------------------


def judged(*scores):
    return [
        Judgment("", score, ScoreStatus.DIRECT)
        if score is not None
        else Judgment("", None, ScoreStatus.FAILED, error=RowError("too long"))
        for score in scores
    ]


def answered(judgments, min_score=None, default=0.0, **body):
    request = RerankRequest.model_validate(BODY | body | ({} if min_score is None else {"min_score": min_score}))
    response = rerank_response(request, judgments, Usage(), model="m", return_documents=False, min_score=default)
    return [result["index"] for result in response["results"]]


def test_an_answer_leaves_out_what_is_below_the_request_s_or_the_server_s():
    judgments = judged(0.2, 0.8, 0.5)
    assert answered(judgments) == [1, 2, 0]
    assert answered(judgments, 0.5) == [1, 2]
    assert answered(judgments, 0.5, top_n=1) == [1]
    assert answered(judgments, default=0.6) == [1]
    assert answered(judgments, 0, default=0.6) == [1, 2, 0]
    assert answered(judgments, 0.9) == []


def test_a_pair_that_failed_stays_with_its_error():
    assert answered(judged(0.2, 0.8, None), 0.5) == [1, 2]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "much", [], {}])
def test_a_request_s_threshold_is_checked(value):
    with pytest.raises(ValidationError, match="min_score"):
        RerankRequest.model_validate(BODY | {"min_score": value})
