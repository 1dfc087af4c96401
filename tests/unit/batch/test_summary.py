from dataclasses import replace

import pytest

from helpers.units import RECEIPT, WORK
from limrank.batch.summary import Summary, _covered, manifest_sections, summarize


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 5)], 4),
        ([(1, 9), (2, 3), (4, 5)], 8),
        ([(6, 7), (1, 2)], 2),
        ([(1, 2), (2, 3)], 2),
        ([(1, 2), (1, 2)], 1),
    ],
)
def test_time_that_spans_share_counts_once(spans, covered):
    assert _covered(spans) == covered


def test_a_summary_of_two_chunks_that_overlap():
    # 100 … 104 and 102 … 108: eight seconds of work for 40 pairs.
    later = replace(WORK, worker="two", began=102.0, ended=108.0, ready=100.0, startup_seconds=5.0, busy_seconds=6.0)
    summary = summarize([RECEIPT, replace(RECEIPT, chunk=1, failed=0, work=(later,))], 40)
    assert summary == Summary(
        units=4,
        rows=40,
        failed=1,
        prompt_tokens=200,
        cached_prompt_tokens=80,
        generated_tokens=20,
        seconds=8.0,
        startup_seconds=5.0,
        busy_seconds=9.5,
        idle_seconds=3.5,  # 99 … 104 and 100 … 108, less what they were busy
        rate=5.0,
    )
    assert summary.tokens == 220
    assert manifest_sections(summary, "pairs") == {
        "counts": {"units": 4, "rows": 40, "failed": 1},
        "seconds": {"engine_startup": 5.0, "work": 8.0, "engine_busy": 9.5, "engine_idle": 3.5},
        "tokens": {"prompt": 200, "cached_prompt": 80, "generated": 20},
        "rates": {"pairs_per_second": 5.0, "tokens_per_second": 27.5},
        "dtype": {},
    }


def test_what_models_computed_with_is_reported_by_role():
    first = replace(WORK, dtypes={"writer": "bfloat16", "judge": "float32"})
    other = replace(WORK, worker="two", dtypes={"writer": "float32"})
    summary = summarize([replace(RECEIPT, work=(first,)), replace(RECEIPT, chunk=1, work=(other,))], 40)
    assert manifest_sections(summary, "pairs")["dtype"] == {"judge": "float32", "writer": "bfloat16, float32"}


def test_a_worker_s_last_word_says_how_busy_it_was():
    # Both chunks are of one worker with two engines: up from 99 to 110, 22 engine-seconds.
    later = replace(WORK, began=104.0, ended=110.0, engines=2, busy_seconds=20.0)
    summary = summarize([replace(RECEIPT, chunk=1, work=(later,)), RECEIPT], 40)
    assert (summary.busy_seconds, summary.idle_seconds) == (20.0, 2.0)


def test_a_second_try_counts_its_own_time_too():
    retry = replace(WORK, session="later", worker="three", began=900.0, ended=902.0, ready=899.0, busy_seconds=1.0)
    summary = summarize([replace(RECEIPT, work=(WORK, retry))], 20)
    assert (summary.seconds, summary.busy_seconds, summary.idle_seconds) == (6.0, 4.5, 3.5)


def test_a_pause_between_two_sessions_is_no_work():
    tomorrow = replace(WORK, worker="two", began=90_000.0, ended=90_004.0, ready=90_000.0)
    assert summarize([RECEIPT, replace(RECEIPT, chunk=1, work=(tomorrow,))], 40).seconds == 8.0


def test_nothing_done_has_no_rate():
    assert summarize([], 0).rate is None
