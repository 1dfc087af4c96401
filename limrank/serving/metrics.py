"""The server's metrics in Prometheus' text form.

Names follow vLLM's (``vllm:num_requests_running``, ``vllm:prefix_cache_hits``) and TEI's (``te_request_duration``,
``te_queue_size``). Labels have a bounded set of values: no text of a request is one.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric

from limrank.engines.base import Usage
from limrank.records import Judgment
from limrank.serving import request_records
from limrank.serving.protocol import MAX_DOCUMENTS, Served
from limrank.serving.replica_states import ReplicaStates
from limrank.serving.request_records import RequestRecord
from limrank.version import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_PAIRS = (1, 2, 5, 10, 20, 50, 100, 200, 500, MAX_DOCUMENTS)
_STATES = ("running", "starting", "stopping")
"""The states that are reported even if no replica has them."""


class Metrics:
    """The numbers of one HTTP replica. It is an observer of :class:`~limrank.serving.request_records.Recorder`.

    Args:
        served: the model's card.
        requests_per_replica: requests that an engine replica takes at a time; None: any number.
        ask_replicas: engine replicas by state, see :class:`ReplicaStates`; None: the engine is in this process.
        replica: the name of this HTTP replica, a label of every number; None: no such label.
    """

    def __init__(
        self,
        served: Served,
        *,
        requests_per_replica: int | None = None,
        ask_replicas: Callable[[], Mapping[str, int]] | None = None,
        replica: str | None = None,
    ) -> None:
        self._registry = registry = _Registry({"replica": replica} if replica else {})
        self._requests_per_replica = requests_per_replica
        self._replicas = ReplicaStates(ask_replicas) if ask_replicas else None
        self._in_progress = 0

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"limrank_{name}", documentation, labels, registry=registry)

        def gauge(name: str, documentation: str, *labels: str) -> Gauge:
            return Gauge(f"limrank_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"limrank_{name}", documentation, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Answered requests.", "route", "status", "mode")
        self._errors = counter("request_errors", "Requests that ended with an error, by its code.", "route", "code")
        self._durations = histogram(
            "request_duration_seconds",
            "Time from a request to the end of its answer, of requests without an error.",
            _SECONDS,
            "route",
            "mode",
        )
        self._sizes = histogram("request_pairs", "Pairs of a request that reached the engines.", _PAIRS, "mode")
        self._pairs = counter("pairs", "Judged pairs, by the status of the judgment.", "mode", "status")
        self._tokens = counter(
            "tokens",
            "Tokens: computed_prompt, cached_prompt (read from the prefix cache) and generated.",
            "mode",
            "kind",
        )
        self._cache_queries = counter("prefix_cache_queries", "Prompt tokens that the prefix cache was asked for.")
        self._cache_hits = counter("prefix_cache_hits", "Prompt tokens that the prefix cache answered.")
        self._running = gauge("num_requests_running", "Requests that the engines work on.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for a free engine.")
        self._queue = gauge("queue_size_pairs", "Pairs of the requests that run or wait.")
        self._states = gauge("replicas", "Engine replicas by state.", "state")
        gauge("build_info", "1, with the version and what is served.", "version", "model", "mode").labels(
            __version__, served.model, served.mode
        ).set(1)
        ProcessCollector(registry=registry)

    @contextmanager
    def scoring(self, mode: str, pairs: int, usage: Usage) -> Iterator[Callable[[Sequence[Judgment]], None]]:
        """Counts the pairs inside it as queued, and what they cost when it ends. It gives the function that
        takes their judgments.

        Args:
            usage: is filled while the pairs are scored.
        """
        record = request_records.current()
        if record is not None:
            record.mode, record.pairs, record.usage = mode, pairs, usage
        self._in_progress += 1
        self._queue.inc(pairs)
        self._sizes.labels(mode).observe(pairs)

        def judged(judgments: Sequence[Judgment]) -> None:
            for status, count in Count(judgment.status for judgment in judgments).items():
                self._pairs.labels(mode, status.value).inc(count)

        try:
            yield judged
        finally:
            self._in_progress -= 1
            self._queue.dec(pairs)
            self._tokens.labels(mode, "computed_prompt").inc(usage.prompt - usage.cached_prompt)
            self._tokens.labels(mode, "cached_prompt").inc(usage.cached_prompt)
            self._tokens.labels(mode, "generated").inc(usage.generated)
            self._cache_queries.inc(usage.prompt)
            self._cache_hits.inc(usage.cached_prompt)

    def __call__(self, record: RequestRecord) -> None:
        self._requests.labels(record.route, str(record.status), record.mode).inc()
        if record.error is not None:
            self._errors.labels(record.route, record.error).inc()
        elif record.status < 400:
            self._durations.labels(record.route, record.mode).observe(record.seconds)

    async def text(self) -> bytes:
        """All metrics, for Prometheus. The replicas' states are some seconds old."""
        running = 1
        if self._replicas is not None:
            states = await self._replicas.refreshed()
            running = states.get("running", 0)
            self._states.clear()
            for state in {*_STATES, *states} if states else ():
                self._states.labels(state).set(states.get(state, 0))
        in_progress, per_replica = self._in_progress, self._requests_per_replica
        at_work = in_progress if per_replica is None else min(in_progress, per_replica * max(running, 1))
        self._running.set(at_work)
        self._waiting.set(in_progress - at_work)
        return generate_latest(self._registry)


class _Registry(CollectorRegistry):
    """A registry with labels on every sample, and without the creation times of counters."""

    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__()
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, **self._labels})
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ]
            yield metric
