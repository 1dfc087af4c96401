"""Limits on requests and pairs, and the time that a refused client is told."""

import pytest

from limrank.serving.admission import Admission
from limrank.serving.errors import ApiError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def refused(admission, pairs=1):
    with pytest.raises(ApiError) as caught, admission.admitted(pairs):
        pass
    error = caught.value
    assert (error.status, error.code) == (429, "overloaded")
    return str(error), int(error.headers["Retry-After"])


def test_requests_and_pairs_count_until_they_are_answered():
    admission = Admission(2, 100)
    with admission.admitted(60):
        with admission.admitted(40):
            assert (admission.requests, admission.pairs) == (2, 100)
            assert refused(admission) == ("too many requests are waiting; try again later", 1)
        assert refused(admission, 41) == ("too many pairs are waiting; try again later", 1)
        with admission.admitted(40):
            pass
    assert (admission.requests, admission.pairs) == (0, 0)


def test_what_fails_or_leaves_is_counted_no_longer():
    admission = Admission(1, 1)
    for error in (ValueError, BaseException):
        with pytest.raises(error), admission.admitted(1):
            raise error
    assert (admission.requests, admission.pairs) == (0, 0)


def test_a_request_larger_than_the_limit_is_taken_alone():
    admission = Admission(None, 100)
    with admission.admitted(1000):
        assert refused(admission)[0].startswith("too many pairs")
    with admission.admitted(1):
        refused(admission, 1000)


def test_no_limits():
    admission = Admission(None, None)
    with admission.admitted(10**9), admission.admitted(10**9):
        assert admission.requests == 2


def test_the_time_to_wait_is_the_queue_over_the_rate():
    clock = Clock()
    admission = Admission(None, 100, clock)
    with admission.admitted(50):
        clock.now += 5
        admission.finished(50)
    # 50 pairs in 5 s, of which later seconds count more: 10 MEMORY_S (1 - exp(-0.5)) = 3.93 weighted seconds.
    assert admission.pairs_per_s == pytest.approx(50 / 3.93, rel=0.01)
    with admission.admitted(100):
        assert refused(admission)[1] == 8  # 100 / 12.7 = 7.9


def test_idle_time_is_not_slowness():
    clock = Clock()
    admission = Admission(None, 100, clock)
    with admission.admitted(50):
        clock.now += 5
        admission.finished(50)
    rate = admission.pairs_per_s
    clock.now += 3600
    assert admission.pairs_per_s == rate


def test_the_rate_follows_a_server_that_becomes_slower():
    clock = Clock()
    admission = Admission(None, 100, clock)
    for seconds in [1] * 50 + [10] * 10:
        with admission.admitted(10):
            clock.now += seconds
            admission.finished(10)
    # Ten pairs a second, then one.
    assert admission.pairs_per_s == pytest.approx(1.0, rel=0.6)


def test_before_the_first_pair_is_finished_the_time_to_wait_is_that_of_the_work_so_far():
    clock = Clock()
    admission = Admission(None, 100, clock)
    clock.now += 1000  # idle
    with admission.admitted(100):
        waits = []
        for _ in range(4):
            clock.now += 12.5
            waits.append(refused(admission)[1])
        assert waits == [13, 25, 38, 50]
        clock.now += 1000
        assert refused(admission)[1] == 60


def test_a_rate_that_has_become_nothing_is_the_longest_wait():
    clock = Clock()
    admission = Admission(None, 100, clock)
    with admission.admitted(100):
        clock.now += 1
        admission.finished(1)
        clock.now += 7090  # a float holds no quotient this large
        assert refused(admission)[1] == 60


def test_the_time_to_wait_has_bounds():
    clock = Clock()
    admission = Admission(None, 100, clock)
    with admission.admitted(100):
        assert refused(admission)[1] == 1  # nothing was measured
        clock.now += 0.001
        admission.finished(1000)
        assert refused(admission)[1] == 1
        clock.now += 1000
        admission.finished(1)
        assert refused(admission)[1] == 60
