import asyncio
import threading
import time

import pytest

import limrank
from helpers.units import fake_engine
from limrank.config import RERANKER, EngineConfig, ModelConfig, ScoringConfig
from limrank.errors import EngineError, UserError
from limrank.records import Document, ScoreStatus
from limrank.reranking import Reranker
from limrank.reranking import reranker as reranker_module
from limrank.scoring import score_pair

FAKE = EngineConfig(kind="fake")
TEXTS = ["the cat", "the dog", "the train", "the roof"]


@pytest.fixture(scope="module")
def reranker():
    with Reranker("any-name", engine=FAKE) as opened:
        yield opened


def test_it_is_the_public_name():
    assert limrank.Reranker is Reranker
    with pytest.raises(AttributeError, match="module 'limrank' has no attribute 'Rerank'"):
        limrank.Rerank  # noqa: B018


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ({}, ModelConfig(id=RERANKER)),
        ({"model": ModelConfig(dtype="float32")}, ModelConfig(id=RERANKER, dtype="float32")),
        ({"model": ModelConfig(id="other", dtype="float32")}, ModelConfig(id="other", dtype="float32")),
        ({"model": "other"}, ModelConfig(id="other")),
    ],
)
def test_a_model_that_is_not_named_is_the_default_one(monkeypatch, given, opened):
    models = []

    def open_engine(model, engine):
        models.append(model)
        return fake_engine()

    monkeypatch.setattr(reranker_module, "open_engine", open_engine)
    with Reranker(**given, engine=FAKE):
        assert models == [opened]


def test_documents_by_relevance(reranker):
    hits = reranker.rank("cat", TEXTS)
    assert sorted(hit.index for hit in hits) == [0, 1, 2, 3]
    assert [hit.document for hit in hits] == [TEXTS[hit.index] for hit in hits]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert {(hit.status, hit.reasoning, hit.error) for hit in hits} == {(ScoreStatus.DIRECT, None, None)}


def test_the_same_question_has_the_same_answer_and_top_n_is_its_beginning(reranker):
    hits = reranker.rank("cat", TEXTS)
    assert reranker.rank("cat", TEXTS) == hits
    assert reranker.rank("cat", TEXTS, top_n=2) == hits[:2]
    assert reranker.rank("cat", []) == []


def test_an_instruction_is_part_of_the_question(reranker):
    plain = {hit.index: hit.score for hit in reranker.rank("cat", TEXTS)}
    assert {hit.index: hit.score for hit in reranker.rank("cat", TEXTS, instruction="not on roofs")} != plain
    assert {hit.index: hit.score for hit in reranker.rank("cat not on roofs", TEXTS)} == {
        hit.index: hit.score for hit in reranker.rank("cat", TEXTS, instruction="not on roofs")
    }


def test_ties_keep_the_order_they_were_given_in(reranker):
    assert [hit.index for hit in reranker.rank("cat", ["same", "same", "same"])] == [0, 1, 2]


def test_a_document_s_title_is_read_with_its_text(reranker):
    (titled,) = reranker.rank("cat", [Document("d", "sleeps", title="the cat")])
    (plain,) = reranker.rank("cat", ["the cat sleeps"])
    assert titled.score == plain.score
    assert titled.document == Document("d", "sleeps", title="the cat")


def test_ids_stay_with_their_documents(reranker):
    hits = reranker.rank("cat", TEXTS, doc_ids=["a", "b", "c", "d"])
    assert [hit.doc_id for hit in hits] == ["abcd"[hit.index] for hit in hits]
    (own,) = reranker.rank("cat", [Document("d7", "the cat")])
    assert own.doc_id == "d7"
    (given,) = reranker.rank("cat", [Document("d7", "the cat")], doc_ids=["other"])
    assert given.doc_id == "other"
    assert [hit.doc_id for hit in reranker.rank("cat", TEXTS)] == [None] * 4


def test_many_queries_are_ranked_as_one_by_one(reranker):
    queries, documents = ["cat", "dog", "cat"], [TEXTS, TEXTS[:2], []]
    expected = [reranker.rank(query, texts, top_n=3) for query, texts in zip(queries, documents, strict=True)]
    assert reranker.rank_many(queries, documents, top_n=3) == expected
    assert reranker.rank_many([], []) == []
    ids = [["a", "b", "c", "d"], ["e", "f"], []]
    hits = reranker.rank_many(queries, documents, doc_ids=ids)
    assert [sorted(hit.doc_id for hit in each) for each in hits] == ids


def test_many_queries_are_in_the_engine_together():
    with Reranker("any", engine=EngineConfig(kind="fake", latency_ms=200)) as reranker:
        reranker.rank("cat", ["warm"])
        began = time.monotonic()
        reranker.rank_many(["cat", "dog"] * 10, [TEXTS] * 20)
        # One after the other they take 20 × 0.2 s.
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda reranker: reranker.rank("cat", TEXTS, doc_ids=["a"]),
            "doc_ids: should have one for each of the 4 documents (got 1)",
        ),
        (lambda reranker: reranker.rank("cat", "the cat"), "documents: should be a list of texts, not one text"),
        (
            lambda reranker: reranker.rank_many(["cat"], [TEXTS, TEXTS]),
            "documents: should have one for each of the 1 queries (got 2)",
        ),
        (
            lambda reranker: reranker.rank_many(["cat", "dog"], [TEXTS, TEXTS], doc_ids=[["a"]]),
            "doc_ids: should have one for each of the 2 queries (got 1)",
        ),
        (
            lambda reranker: reranker.rank_many(["cat"], [TEXTS], doc_ids=[["a"]]),
            "doc_ids: should have one for each of the 4 documents (got 1)",
        ),
        (lambda reranker: reranker.rank_many("c", [TEXTS]), "queries: should be a list of texts, not one text"),
    ],
)
def test_wrong_lengths_are_a_mistake_in_one_line(reranker, call, message):
    with pytest.raises(UserError) as raised:
        call(reranker)
    assert str(raised.value) == message


def test_a_dead_engine_ends_many_queries_with_its_error():
    engine = EngineConfig(kind="fake", poison="poison")
    with Reranker("any", engine=engine) as reranker, pytest.raises(EngineError, match="the fake engine was poisoned"):
        reranker.rank_many(["cat", "dog"], [TEXTS, ["poison"]])


def test_a_coroutine_ranks_on_any_loop_and_beside_others(reranker):
    expected = reranker.rank("cat", TEXTS, doc_ids=["a", "b", "c", "d"])

    async def two():
        one = reranker.arank("cat", TEXTS, doc_ids=["a", "b", "c", "d"])
        return await asyncio.gather(one, reranker.arank("dog", TEXTS, top_n=1))

    assert asyncio.run(two()) == [expected, reranker.rank("dog", TEXTS, top_n=1)]
    assert asyncio.run(two())[0] == expected  # of another loop


def test_a_cancelled_coroutine_leaves_the_engine_free():
    with Reranker("any", engine=EngineConfig(kind="fake", latency_ms=60_000)) as reranker:

        async def impatient():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reranker.arank("cat", TEXTS), 0.2)
            await asyncio.sleep(0.1)

        asyncio.run(impatient())
        assert reranker._engine.limiter.requests == 0


def test_chains_are_returned():
    with Reranker("any", mode="budget", max_think_tokens=5, engine=FAKE) as reranker:
        (hit,) = reranker.rank("cat", ["the cat"])
    # The fake engine writes as many words as it may, which is no end of its own.
    assert hit.status is ScoreStatus.FORCED
    assert len(hit.reasoning.split()) == 5


def test_what_cannot_be_scored_comes_last_without_a_score():
    with Reranker("any", engine=EngineConfig(kind="fake", fail_rate=0.5)) as reranker:
        hits = reranker.rank("cat", [f"document {number}" for number in range(20)])
    failed = [hit for hit in hits if hit.status is ScoreStatus.FAILED]
    assert 0 < len(failed) < 20
    assert hits[-len(failed) :] == failed
    assert [hit.index for hit in failed] == sorted(hit.index for hit in failed)
    assert {(hit.score, hit.error) for hit in failed} == {
        (None, "the fake engine failed this request (engine.fault.fail_rate)")
    }


def test_it_works_inside_a_running_loop_and_from_threads(reranker):
    expected = reranker.rank("cat", TEXTS)

    async def in_a_notebook():
        return reranker.rank("cat", TEXTS)

    assert asyncio.run(in_a_notebook()) == expected
    found = []
    threads = [threading.Thread(target=lambda: found.append(reranker.rank("cat", TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [expected] * 4


class Watched:
    """A fake engine that tells whether it was closed."""

    def __init__(self, tokenizer=None):
        self._engine = fake_engine()
        self.tokenizer = tokenizer or self._engine.tokenizer
        self.limits = self._engine.limits
        self.label_logprobs = self._engine.label_logprobs
        self.closed = 0

    async def aclose(self):
        self.closed += 1


def test_an_engine_that_was_given_stays_open():
    engine = Watched()
    with Reranker(engine=engine) as reranker:
        reranker.rank("cat", TEXTS)
    assert engine.closed == 0


def test_its_own_engine_is_closed_once_however_often_it_is_asked(monkeypatch):
    engine = Watched()
    monkeypatch.setattr("limrank.reranking.reranker.open_engine", lambda model, settings: engine)
    reranker = Reranker("any", engine=FAKE)
    reranker.close()
    reranker.close()
    assert engine.closed == 1


def test_a_model_without_label_tokens_leaves_nothing_behind(monkeypatch):
    class Letters:
        def encode(self, text, *, add_special_tokens=True):
            return list(text.encode())

    engine = Watched(Letters())
    monkeypatch.setattr("limrank.reranking.reranker.open_engine", lambda model, settings: engine)
    before = threading.active_count()
    with pytest.raises(UserError, match="label ' true' is 5 tokens"):
        Reranker("any", engine=FAKE)
    assert engine.closed == 1
    assert threading.active_count() == before


def test_an_engine_that_does_not_open_leaves_nothing_behind():
    before = threading.active_count()
    with pytest.raises(UserError, match="no-such-model"):
        Reranker("no-such-model")
    assert threading.active_count() == before


def test_it_scores_as_the_job_does(reranker):
    from limrank.config import ScoringConfig
    from limrank.records import Candidate, Query

    (hit,) = reranker.rank("cat", ["the cat"])
    judgment = asyncio.run(
        score_pair(Query("q", "cat"), Candidate("d", "the cat", 1, 0.0), fake_engine(), ScoringConfig())
    )
    assert hit.score == judgment.score


def test_all_scoring_keys_instead_of_a_mode():
    scoring = ScoringConfig(mode="budget", max_think_tokens=30, compatibility="rank1")
    with Reranker("any-name", scoring=scoring, engine=FAKE) as opened:
        hits = opened.rank("cat", TEXTS)
    with Reranker("any-name", mode="budget", max_think_tokens=30, engine=FAKE) as opened:
        ours = opened.rank("cat", TEXTS)
    assert {hit.status for hit in hits} == {ScoreStatus.COMPLETE} and hits == ours


@pytest.mark.parametrize(
    "more", [{"mode": "think"}, {"max_think_tokens": 5}, {"scoring": ScoringConfig(mode="none")}], ids=str
)
def test_scoring_keys_exclude_a_mode(more):
    with pytest.raises(UserError, match="scoring"):
        Reranker("any-name", engine=FAKE, **({"scoring": ScoringConfig(mode="budget")} | more))


# ---- fusion --------------------------------------------------------------------------

SCORES = [1.0, 9.0, 4.0, 2.0]


def test_documents_are_ordered_by_fusion(reranker):
    pure = reranker.rank("cat", TEXTS)
    with Reranker("any-name", engine=FAKE, fuse=1) as fusing:
        hits = fusing.rank("cat", TEXTS, first_stage_scores=SCORES)
        assert [hit.index for hit in hits] == [1, 2, 3, 0]
        # The scores stay the model's.
        assert {hit.index: hit.score for hit in hits} == {hit.index: hit.score for hit in pure}
        assert sum(hit.fused_score for hit in hits) == pytest.approx(0)
        assert fusing.rank("cat", TEXTS, first_stage_scores=SCORES, top_n=2) == hits[:2]
        assert fusing.rank_many(["cat", "cat"], [TEXTS, []], first_stage_scores=[SCORES, []]) == [hits, []]
        assert asyncio.run(fusing.arank("cat", TEXTS, first_stage_scores=SCORES)) == hits
    with Reranker("any-name", engine=FAKE, scoring=ScoringConfig(fuse={"first_stage": 0})) as fusing:
        assert [hit.index for hit in fusing.rank("cat", TEXTS, first_stage_scores=SCORES)] == [
            hit.index for hit in pure
        ]
    assert {hit.fused_score for hit in pure} == {None}


def test_the_fused_score_is_the_weighted_sum_of_z_scores():
    import numpy as np

    with Reranker("any-name", engine=FAKE, fuse=0.25) as fusing:
        hits = fusing.rank("cat", TEXTS, first_stage_scores=np.array(SCORES, dtype=np.float32))
    scores = np.array([hit.score for hit in sorted(hits, key=lambda hit: hit.index)])
    odds, theirs = np.log(scores / (1 - scores)), np.array(SCORES)
    expected = 0.75 * (odds - odds.mean()) / odds.std() + 0.25 * (theirs - theirs.mean()) / theirs.std()
    assert [hit.fused_score for hit in sorted(hits, key=lambda hit: hit.index)] == pytest.approx(expected)
    assert [hit.index for hit in hits] == np.argsort(-expected).tolist()


def test_what_cannot_be_scored_comes_last_with_fusion_too():
    with Reranker("any", engine=EngineConfig(kind="fake", fail_rate=0.5), fuse=0.5) as fusing:
        hits = fusing.rank("cat", [f"document {number}" for number in range(20)], first_stage_scores=list(range(20)))
    failed = [hit for hit in hits if hit.status is ScoreStatus.FAILED]
    assert 0 < len(failed) < 20
    assert hits[-len(failed) :] == failed
    assert [hit.index for hit in failed] == sorted(hit.index for hit in failed)
    assert {hit.fused_score for hit in failed} == {None}


@pytest.mark.parametrize("fuse", [-0.1, 1.1, float("nan"), float("inf"), True, "0.3", [], 10**400])
def test_what_is_no_weight_is_refused(fuse):
    with pytest.raises(UserError, match="fuse: should be a weight from 0 to 1"):
        Reranker("any", engine=FAKE, fuse=fuse)


def test_a_weight_is_in_scoring_or_beside_it_and_no_run():
    with pytest.raises(UserError, match="scoring has the mode, max_think_tokens and fuse: give only scoring"):
        Reranker("any", engine=FAKE, fuse=0.3, scoring=ScoringConfig())
    with pytest.raises(UserError, match="only a rerank job chooses it by a run"):
        Reranker("any", engine=FAKE, scoring=ScoringConfig(fuse={"first_stage": "runs/dev"}))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "first_stage_scores: are needed, as fuse is set"),
        ([1.0], "first_stage_scores: should have one for each of the 4 documents (got 1)"),
        (5, "first_stage_scores: should be a list with one for each of the 4 documents (got 5)"),
        ([1.0, 2.0, 3.0, float("nan")], "first_stage_scores: should be finite numbers (got nan)"),
        ([1.0, 2.0, 3.0, float("inf")], "first_stage_scores: should be finite numbers (got inf)"),
        ([1.0, 2.0, 3.0, None], "first_stage_scores: should be finite numbers (got None)"),
        ([1.0, 2.0, 3.0, "4"], "first_stage_scores: should be finite numbers (got '4')"),
        ([1.0, 2.0, 3.0, True], "first_stage_scores: should be finite numbers (got True)"),
        ([1, 2, 3, 10**400], "first_stage_scores: should be finite numbers (got a number of very many digits)"),
    ],
)
def test_scores_of_the_first_stage_are_checked(scores, message):
    with Reranker("any", engine=FAKE, fuse=0.5) as fusing:
        for call in (
            lambda: fusing.rank("cat", TEXTS, first_stage_scores=scores),
            lambda: asyncio.run(fusing.arank("cat", TEXTS, first_stage_scores=scores)),
            lambda: fusing.rank_many(["cat"], [TEXTS], first_stage_scores=None if scores is None else [scores]),
        ):
            with pytest.raises(UserError) as raised:
                call()
            assert str(raised.value) == message
        with pytest.raises(UserError, match="first_stage_scores: should have one for each of the 1 queries"):
            fusing.rank_many(["cat"], [TEXTS], first_stage_scores=[SCORES, SCORES])


def test_scores_that_would_have_no_effect_are_refused(reranker):
    with pytest.raises(UserError, match="first_stage_scores: have no effect without fuse"):
        reranker.rank("cat", TEXTS, first_stage_scores=SCORES)
