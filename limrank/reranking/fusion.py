"""The fusion weight of a rerank job: given, or chosen on a finished rerank run of other queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from limrank.batch.manifest import read_manifest
from limrank.config import RerankJob
from limrank.data import beir, trec
from limrank.errors import StorageError, UserError
from limrank.evaluation.metrics import evaluate
from limrank.files import AnyPath, kind_of, path_of
from limrank.parsing import brief, parse_yaml
from limrank.records import Qrels, Query, Run
from limrank.reranking.runs import FUSED_COLUMNS, Rows, fused, rankings
from limrank.reranking.source import Source
from limrank.scoring.fusion import choose_weight
from limrank.storage import Storage

Value = TypeVar("Value")

KEY = "scoring.fuse.first_stage"
MEASURE, _CUTOFF = "nDCG@10", 10

_SAME = ("model.id", "scoring.mode", "first_stage.kind")
"""Keys in which a weight's two runs should not differ."""


@dataclass(frozen=True)
class Fusion:
    """The weight of the first stage.

    Attributes:
        dev_run: the run directory that the weight was chosen on; None: the recipe gives the weight.
        dev_queries: the number of its judged queries.
        dev_ndcg: mean nDCG@10 over them, by weight.
        warnings: sentences for the user.
    """

    weight: float
    dev_run: str | None = None
    dev_queries: int = 0
    dev_ndcg: dict[float, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What the manifest says, with nDCG@10 at weight 0, at the chosen weight and at 1."""
        if self.dev_run is None:
            return {"weight": self.weight}
        measured = {f"{weight:g}": self.dev_ndcg[weight] for weight in sorted({0.0, self.weight, 1.0})}
        return {
            "weight": self.weight,
            "dev_run": self.dev_run,
            "dev_queries": self.dev_queries,
            "dev_ndcg": measured,
        }

    def sentence(self) -> str:
        """For the command line."""
        said = f"fused: {self.weight:g} of the first stage"
        if self.dev_run is None:
            return said
        measured = ", ".join(f"{value:.4f} at {weight}" for weight, value in self.facts()["dev_ndcg"].items())
        return f"{said}, chosen on {self.dev_queries} queries of {self.dev_run}: {MEASURE} {measured}"


def open_fusion(config: RerankJob, source: Source) -> Fusion | None:
    """The fusion of a job; None where its recipe has none. Nothing is written.

    Raises:
        UserError: the dev run is no finished rerank run with scores and judgements, or has queries of the job.
    """
    if config.scoring.fuse is None:
        return None
    given = config.scoring.fuse.first_stage
    if not isinstance(given, str):
        return Fusion(given)
    dev = _DevRun(given)
    dev.check_other_queries(source)
    weight, ndcg = choose_weight(dev.ndcg)
    return Fusion(weight, given, len(dev.qrels), ndcg, dev.differences(config))


class _DevRun:
    """A finished rerank run in memory: its queries, judgements and scored rows."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._storage = Storage(path)
        self._check_finished()
        self.queries: list[Query] = self._read("queries.jsonl", beir.read_queries)
        judged: Qrels = self._read("qrels.tsv", trec.read_qrels)
        asked = {query.query_id for query in self.queries}
        self.qrels = {query_id: grades for query_id, grades in judged.items() if query_id in asked}
        if not self.qrels:
            raise self._fault("none of its queries is judged, and a weight is chosen by judgements")
        self._rows = {query_id: rows for query_id, rows in self._rankings() if query_id in self.qrels}
        if not all(isinstance(row["doc_id"], str) for rows in self._rows.values() for row in rows):
            raise self._fault("its rows/ are damaged")
        if all(row["score"] is None for rows in self._rows.values() for row in rows):
            raise self._fault("its rows have no scores to choose a weight by")

    def check_other_queries(self, source: Source) -> None:
        """Raises UserError: the job has some of these queries, by their text and instruction."""
        questions = {query.question for query in self.queries}
        shared = [query.text for query, _ in source.queries() if query.question in questions]
        if shared:
            raise self._fault(
                f"has {len(shared)} of this job's own queries, such as {brief(shared[0])}: a weight that is chosen on "
                "the queries it is used for proves nothing"
            )

    def ndcg(self, weight: float) -> float:
        """Mean nDCG@10 of the fused order over the judged queries."""
        run: Run = {}
        for query_id, rows in self._rows.items():
            try:
                order = fused(rows, weight, self._storage)
            except StorageError as error:
                raise UserError(f"{KEY}: {error}") from None
            run[query_id] = {row["doc_id"]: -float(rank) for rank, row in enumerate(order[:_CUTOFF], start=1)}
        return evaluate(self.qrels, run, [MEASURE]).mean[MEASURE]

    def differences(self, config: RerankJob) -> list[str]:
        """A warning about a dev run by another reranker, or over another first stage."""
        recipe = self._recipe()
        found = []
        for key in _SAME:
            section, name = key.split(".")
            known = recipe.get(section)
            there = known.get(name) if isinstance(known, dict) else None
            here = getattr(getattr(config, section), name)
            if there is not None and there != here:
                found.append(f"{key} {brief(there)}, here {brief(here)}")
        if not found:
            return []
        return [f"{KEY}: {self._path} has {'; '.join(found)}: its weight may not suit this job"]

    def _check_finished(self) -> None:
        try:
            manifest = read_manifest(self._storage)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from None
        if manifest is None:
            raise self._fault(
                "no run there (no manifest.json); give a weight from 0 to 1, or the run_dir of a finished rerank job"
            )
        if manifest.job != "rerank":
            raise self._fault(f"a run of the job {brief(manifest.job)}, not of rerank")
        if manifest.status != "done":
            raise self._fault(
                f"not finished: it is {manifest.status or 'without a status'}; the same `limrank rerank` command resumes it"
            )

    def _read(self, name: str, read: Callable[[AnyPath], Value]) -> Value:
        """A file of the run."""
        path = path_of(self._path) / name
        try:
            if kind_of(path) != "missing":
                return read(path)
        except UserError as error:
            raise UserError(f"{KEY}: {error}") from None
        raise self._without(name)

    def _rankings(self) -> Iterator[tuple[str, Rows]]:
        try:
            yield from rankings(self._storage, FUSED_COLUMNS)
        except StorageError as error:
            raise UserError(f"{KEY}: {error}") from None
        except TypeError:  # rows of somebody's own, with other types
            raise self._fault("its rows/ are damaged") from None

    def _recipe(self) -> dict[str, Any]:
        """Its ``config.yaml``; empty where there is none."""
        try:
            values = parse_yaml(self._storage.read_bytes("config.yaml"), f"{self._path}/config.yaml")
        except FileNotFoundError:
            return {}
        except (UserError, StorageError) as error:
            raise UserError(f"{KEY}: {error}") from None
        return values if isinstance(values, dict) else {}

    def _without(self, name: str) -> UserError:
        return self._fault(f"there is no {name} in it, which a run over judged queries has; pairs are not judged")

    def _fault(self, what: str) -> UserError:
        return UserError(f"{KEY}: {self._path}: {what}")
