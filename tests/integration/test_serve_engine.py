"""A rerank job whose scorer is a served reranker: real Ray Serve, the fake engine behind it."""

import json
import threading
import time

import pytest

from helpers.beir import write_rare_words
from helpers.jobs import rerank, rerank_config
from helpers.rundirs import rows_of
from helpers.runs import chunk_units
from limrank.config import ServeJob
from limrank.config.recipe import with_values
from limrank.errors import UserError
from limrank.serving.job import serving
from limrank.serving.protocol import APP, SCORER
from limrank.storage import Storage

CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake", "latency_ms": 50, "max_in_flight": 4},
    scoring={"mode": "budget", "max_think_tokens": 8},
    serving={"port": 0},
)
SCORING = {"scoring.mode": "budget", "scoring.max_think_tokens": 8}


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    return write_rare_words(tmp_path_factory.mktemp("data") / "beir")


@pytest.fixture(scope="module")
def server(local_ray):
    with serving(CONFIG) as url:
        yield url


@pytest.fixture(scope="module")
def directly(local_ray, beir, tmp_path_factory):
    """Rows and manifest counts of the same recipe on an engine of its own."""
    run_dir = tmp_path_factory.mktemp("direct") / "run"
    rerank(with_values(rerank_config(beir, run_dir), SCORING))
    return ordered(run_dir), manifest(run_dir)


def config(beir, run_dir, base_url=None, **values):
    return with_values(
        rerank_config(beir, run_dir), {"engine.kind": "serve", "engine.base_url": base_url} | SCORING | values
    )


def ordered(run_dir):
    return sorted(rows_of(run_dir), key=lambda row: (row["query_id"], row["doc_id"]))


def manifest(run_dir):
    whole = json.loads((run_dir / "manifest.json").read_text())
    return whole["counts"], whole["tokens"]


def test_without_a_server_on_the_cluster_it_is_refused(local_ray, beir, tmp_path):
    with pytest.raises(UserError, match="engine.base_url null: .* no `limrank serve` with an engine up"):
        rerank(config(beir, tmp_path / "run"))


@pytest.mark.parametrize("by", ["handle", "http"])
def test_rows_and_costs_are_those_of_an_engine_of_its_own(server, directly, beir, tmp_path, by):
    result, _ = rerank(config(beir, tmp_path / "run", server if by == "http" else None))
    assert result.failed == 0
    assert (ordered(tmp_path / "run"), manifest(tmp_path / "run")) == directly


@pytest.mark.parametrize("by", ["handle", "http"])
def test_a_server_that_scores_otherwise_is_refused(server, beir, tmp_path, by):
    wrong = config(beir, tmp_path / "run", server if by == "http" else None, **{"scoring.mode": "direct"})
    with pytest.raises(UserError, match="its scoring.mode is budget, the recipe's direct"):
        rerank(wrong)


@pytest.mark.parametrize("by", ["handle", "http"])
def test_a_replica_that_is_killed_loses_no_pair(local_ray, server, directly, beir, tmp_path, by):
    killed = []

    def kill():
        # 120 pairs, 2 requests of 50 ms each, 4 at a time: 3 s of work.
        while not list((tmp_path / "run").glob("attempts/*/*")):
            time.sleep(0.02)
        time.sleep(1)
        killed.append((_kill_scorer(local_ray), len(list((tmp_path / "run").glob("rows/*")))))

    killer = threading.Thread(target=kill)
    killer.start()
    result, _ = rerank(config(beir, tmp_path / "run", server if by == "http" else None))
    killer.join()
    ((replicas, committed),) = killed
    assert replicas == 1 and committed < len(chunk_units(tmp_path / "run"))
    assert result.failed == 0
    assert Storage(str(tmp_path / "run")).names("failures") == []
    assert ordered(tmp_path / "run") == directly[0]


def _kill_scorer(ray):
    """Kills every engine replica's process; how many there were."""
    named = ray.util.list_named_actors(all_namespaces=True)
    replicas = [actor for actor in named if f"{APP}#{SCORER}#" in actor["name"]]
    for replica in replicas:
        ray.kill(ray.get_actor(**replica))
    return len(replicas)
