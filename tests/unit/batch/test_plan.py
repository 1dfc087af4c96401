import json

import pytest

from helpers.units import UNIT_SCHEMA, planned
from limrank.batch.plan import Chunk, Plan, read_chunk, read_plan, share_cost, write_plan
from limrank.storage import Storage


def write(tmp_path, costs, *, chunk_cost, weights=None):
    """A plan of units ``u0``, ``u1`` … of these costs, and the ids of each chunk."""
    storage = Storage(str(tmp_path))
    weights = weights or [1] * len(costs)
    units = [
        ({"unit_id": f"u{number}", "cost": cost}, weight)
        for number, (cost, weight) in enumerate(zip(costs, weights, strict=True))
    ]
    plan = write_plan(storage, units, UNIT_SCHEMA, chunk_cost=chunk_cost)
    return storage, plan, [[unit["unit_id"] for unit in read_chunk(storage, chunk.number)] for chunk in plan.chunks]


def test_a_chunk_has_at_most_64_units(tmp_path):
    _, plan, ids = write(tmp_path, [1] * 150, chunk_cost=10_000)
    assert [chunk.units for chunk in plan.chunks] == [64, 64, 22]
    assert plan.units == 150


def test_a_chunk_is_closed_before_its_cost_would_pass_the_limit(tmp_path):
    _, plan, ids = write(tmp_path, [6, 4, 5, 5, 1], chunk_cost=10)
    # By cost: u0 (6), u2 (5), u3 (5), u1 (4), u4 (1).
    assert ids == [["u0"], ["u2", "u3"], ["u1", "u4"]]
    assert [chunk.cost for chunk in plan.chunks] == [6, 10, 5]


def test_a_unit_above_the_limit_is_a_chunk_of_its_own(tmp_path):
    _, _, ids = write(tmp_path, [99, 1], chunk_cost=10)
    assert ids == [["u0"], ["u1"]]


def test_long_units_first_and_equal_ones_by_id(tmp_path):
    _, _, ids = write(tmp_path, [1, 3, 2, 3], chunk_cost=1000)
    assert ids == [["u1", "u3", "u2", "u0"]]


def test_every_unit_is_there_once_over_several_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("limrank.batch.plan._CHUNKS_PER_FILE", 2)
    monkeypatch.setattr("limrank.batch.plan._WINDOW_SIZE", 100)
    storage, plan, ids = write(tmp_path, list(range(200)), chunk_cost=1500)
    assert sorted(unit for chunk in ids for unit in chunk) == sorted(f"u{number}" for number in range(200))
    # Windows of 100 units: the first holds u0 … u99, and starts with its longest.
    assert ids[0][0] == "u99"
    assert len(storage.names("units")) == -(-len(plan.chunks) // 2)


def test_a_window_is_as_large_as_its_weight(tmp_path, monkeypatch):
    # However many candidates a query has: two units of weight 50 are a window, then two more.
    monkeypatch.setattr("limrank.batch.plan._WINDOW_SIZE", 100)
    _, _, ids = write(tmp_path, [1, 2, 3, 4], chunk_cost=1000, weights=[50, 50, 99, 1])
    assert ids == [["u1", "u0"], ["u3", "u2"]]


def test_weights_are_summed(tmp_path):
    _, plan, _ = write(tmp_path, [1, 1, 1], chunk_cost=2, weights=[10, 20, 5])
    assert [chunk.size for chunk in plan.chunks] == [30, 5]
    assert plan.size == 35


def test_a_plan_is_read_as_it_was_written(tmp_path):
    storage, plan, _ = write(tmp_path, [5, 4, 3], chunk_cost=7)
    assert read_plan(storage) == plan == Plan([Chunk(0, 1, 5, 1), Chunk(1, 2, 7, 2)])
    assert [chunk.name for chunk in plan.chunks] == ["chunk-000000", "chunk-000001"]
    assert json.loads(storage.read_text("plan.json")) == {"schema_version": 1, "chunks": [[1, 5, 1], [2, 7, 2]]}


def test_no_units_are_an_empty_plan(tmp_path):
    storage, plan = planned(tmp_path, [])
    assert plan.chunks == []
    assert read_plan(storage) == plan
    assert storage.names("units") == []


def test_planning_that_is_interrupted_leaves_no_plan(tmp_path):
    storage = Storage(str(tmp_path))

    def units():
        for number in range(100):
            yield {"unit_id": str(number), "cost": 1}, 1
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_plan(storage, units(), UNIT_SCHEMA, chunk_cost=1)
    assert read_plan(storage) is None
    _, plan = planned(tmp_path, ["a"])
    assert [unit["unit_id"] for unit in read_chunk(storage, 0)] == ["a"]
    assert read_plan(storage) == plan


def of_a_run(tmp_path, costs, engines, chunk_cost=600_000):
    """How many chunks a run is split into, and the largest one's share of its cost."""
    storage = Storage(str(tmp_path / "shared"))
    units = [({"unit_id": f"u{number}", "cost": cost}, 1) for number, cost in enumerate(costs)]
    plan = write_plan(storage, units, UNIT_SCHEMA, chunk_cost=chunk_cost, engines=engines)
    assert plan.units == len(costs)
    return len(plan.chunks), max(chunk.cost for chunk in plan.chunks) / sum(costs)


@pytest.mark.parametrize("costs", [[20] * 1024, [20 + n % 7 for n in range(1024)], [400] * 700, [9000] * 3000])
def test_a_chunk_is_less_than_a_hundredth_of_a_run(tmp_path, costs):
    # Whatever a unit costs, and however short the run is. Two chunks are then below 2 %.
    chunks, largest = of_a_run(tmp_path, costs, engines=1)
    assert largest < 0.01
    assert 128 <= chunks <= 200


def test_a_chunk_is_a_hundredth_of_an_engine_s_part(tmp_path):
    # Four engines have as many chunks in work: all of them are then below 2 % of the run.
    _, largest = of_a_run(tmp_path, [9000] * 6000, engines=4)
    assert largest < 0.01 / 4


def test_a_short_run_of_many_engines_is_not_split_further(tmp_path):
    # A chunk of it would take less time than the driver needs to hand it out.
    chunks, _ = of_a_run(tmp_path, [400] * 1280, engines=64)
    assert chunks == 128


def test_a_long_run_has_chunks_of_the_full_size(tmp_path):
    storage = Storage(str(tmp_path))
    units = (({"unit_id": f"u{number}", "cost": 9000}, 1) for number in range(40_000))
    plan = write_plan(storage, units, UNIT_SCHEMA, chunk_cost=600_000, engines=1)
    # 64 units of 9,000, from where the run is known to be long enough.
    assert plan.chunks[-2].cost == 576_000


def test_units_that_share_is_smaller_than_are_chunks_of_their_own(tmp_path):
    assert of_a_run(tmp_path, [500, 400, 300], engines=1)[0] == 3


def test_many_engines_get_chunks_that_one_driver_can_hand_out():
    # 600,000 is thirty seconds; a minute of each engine's time. Up to 200 engines a chunk takes two seconds.
    assert [share_cost(n * 1_200_000, 600_000, n) for n in (64, 200, 1000)] == [40_000, 40_000, 200_000]
    # A chunk is never more than thirty seconds.
    assert share_cost(10**12, 600_000, 1000) == 600_000
