import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.rundirs import rows
from helpers.units import silent
from limrank.batch.plan import read_plan
from limrank.config import RerankJob
from limrank.data import pairs as pairs_module
from limrank.data.pairs import open_pairs
from limrank.data.tables import BATCH_ROWS
from limrank.errors import UserError
from limrank.reranking import job
from limrank.reranking.source import open_source
from limrank.storage import Storage

ROWS = [
    ("q2", "dog park", "d2", "a quick dog"),
    ("q2", "dog park", "d3", "the cat and the dog"),
    ("q1", "cat roof", "d1", "the lazy cat"),
]
NAMES = ("query_id", "query", "doc_id", "text")


def table(lines=ROWS, **more):
    columns = dict(zip(NAMES, map(list, zip(*lines, strict=True)), strict=True)) if lines else dict.fromkeys(NAMES, [])
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()} | more)


def write(path, lines=ROWS, **more):
    pq.write_table(table(lines, **more), path)
    return path


def read(path, max_queries=None, **options):
    """``{query_id: [doc_ids, best first]}``, in the order of the units."""
    found = open_pairs(str(path), **options).queries(max_queries)
    return {query.query_id: [candidate.doc_id for candidate in candidates] for query, candidates in found}


def many(count, docs=3):
    return [(f"q{q}", f"need {q}", f"d{d}", f"text {d}") for q in range(count) for d in range(docs)]


# ---- reading -------------------------------------------------------------------------


def test_rows_of_a_query_are_its_candidates_in_their_order(tmp_path):
    found = list(open_pairs(str(write(tmp_path / "p.parquet"))).queries())
    assert [(query.query_id, query.text, query.instruction) for query, _ in found] == [
        ("q2", "dog park", ""),
        ("q1", "cat roof", ""),
    ]
    assert [(c.doc_id, c.text, c.rank, c.score) for c in found[0][1]] == [
        ("d2", "a quick dog", 1, None),
        ("d3", "the cat and the dog", 2, None),
    ]


def test_a_score_orders_and_ties_keep_the_order_of_the_rows(tmp_path):
    lines = [("q", "need", f"d{n}", "text") for n in range(4)]
    path = write(tmp_path / "p.parquet", lines, score=pa.array([1, 5, 1, 7], pa.int32()))
    ((_, found),) = open_pairs(str(path)).queries()
    assert [(c.doc_id, c.rank, c.score) for c in found] == [
        ("d3", 1, 7.0),
        ("d1", 2, 5.0),
        ("d0", 3, 1.0),
        ("d2", 4, 1.0),
    ]


def test_an_instruction_may_be_null(tmp_path):
    path = write(tmp_path / "p.parquet", instruction=pa.array(["only dogs", "only dogs", None]))
    assert [query.instruction for query, _ in open_pairs(str(path)).queries()] == ["only dogs", ""]


def test_whole_numbers_become_strings_and_are_reported(tmp_path):
    columns = {"query_id": [7, 7], "query": ["a", "a"], "doc_id": [1, 2], "text": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet") == {"7": ["1", "2"]}
    assert open_pairs(str(tmp_path / "p.parquet")).warnings == [
        f"{tmp_path}/p.parquet: query_id holds whole numbers (int64); they are taken as strings",
        f"{tmp_path}/p.parquet: doc_id holds whole numbers (int64); they are taken as strings",
    ]


def test_other_encodings_of_text(tmp_path):
    given = table()
    coded = pa.table(
        {
            "query_id": given["query_id"].dictionary_encode(),
            "query": given["query"].cast(pa.large_string()),
            "doc_id": given["doc_id"].cast(pa.large_string()),
            "text": given["text"].dictionary_encode(),
        }
    )
    pq.write_table(coded, tmp_path / "p.parquet")
    assert read(tmp_path / "p.parquet") == {"q2": ["d2", "d3"], "q1": ["d1"]}


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path):
    # q2 goes on from one file into the next; hidden files and others are not looked at.
    write(tmp_path / "b.parquet", ROWS[1:])
    write(tmp_path / "a.parquet", ROWS[:1])
    (tmp_path / ".c.parquet").write_text("half written")
    (tmp_path / "README.md").write_text("pairs")
    assert read(tmp_path) == {"q2": ["d2", "d3"], "q1": ["d1"]}


def test_queries_that_span_batches_are_whole(tmp_path):
    docs = BATCH_ROWS // 4 * 3
    path = tmp_path / "p.parquet"
    pq.write_table(table(many(5, docs)), path, row_group_size=1000)
    assert {query_id: len(found) for query_id, found in read(path).items()} == {f"q{n}": docs for n in range(5)}


def test_max_queries_takes_the_first_and_reads_no_further(tmp_path):
    path = write(tmp_path / "p.parquet", [*many(3), ("q0", "need 0", "d9", "text")])
    assert list(read(path, max_queries=2)) == ["q0", "q1"]
    assert list(read(path, max_queries=3)) == ["q0", "q1", "q2"]


def test_a_saved_dataset(tmp_path):
    from datasets import Dataset, DatasetDict

    columns = table().to_pydict() | {"label": [1, 0, 1]}
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert read(tmp_path / "one") == {"q2": ["d2", "d3"], "q1": ["d1"]}
    DatasetDict({"dev": Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "two"))
    assert read(tmp_path / "two", split="dev") == {"q2": ["d2", "d3"], "q1": ["d1"]}
    with pytest.raises(UserError, match=r"two: data\.split: it has no split 'test'; there are: dev"):
        open_pairs(str(tmp_path / "two"))
    assert len(open_pairs(str(tmp_path / "one")).fingerprints) == 2
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"nonsense")
    with pytest.raises(UserError, match="one: not a dataset that can be loaded"):
        open_pairs(str(tmp_path / "one"))


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [*ROWS, ROWS[0]],
            r"row 4: query_id 'q2' has rows after other queries; they begin in .*p\.parquet: row 1 .*sort",
        ),
        ([*ROWS, ROWS[2]], r"row 4: doc_id 'd1' is there twice for query_id 'q1', which begins in .*row 3"),
        ([*ROWS, ("q1", "dog roof", "d9", "x")], r"row 4: query_id 'q1' has another query than in .*row 3"),
        ([*ROWS, (None, "x", "d9", "x")], r"row 4: query_id is null"),
        ([*ROWS, ("q9", "x", "d9", None)], r"row 4: text is null"),
        ([*ROWS, ("q9", None, "d9", "x")], r"row 4: query is null"),
        ([*ROWS, ("q9", "x", " ", "x")], r"row 4: doc_id ' ' is empty or holds a tab or a line end"),
        ([*ROWS, ("q\t9", "x", "d", "x")], r"row 4: query_id 'q\\t9' is empty or holds a tab or a line end"),
        ([], r"p\.parquet: there are no pairs in it"),
    ],
)
def test_a_bad_row_is_named(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "p.parquet", lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["doc_id"]), r"p\.parquet: the column doc_id is missing; pairs have query_id, query"),
        (lambda t: t.append_column("text", t["text"]), r"there are two columns text"),
        (
            lambda t: t.set_column(0, "query_id", pa.array([1.5, 1.5, 2.0])),
            r"the column query_id is of type double; it should hold strings or whole numbers",
        ),
        (
            lambda t: t.set_column(3, "text", pa.array([b"x"] * 3)),
            r"the column text is of type binary; it should hold strings",
        ),
        (
            lambda t: t.append_column("score", pa.array(["1", "2", "3"])),
            r"the column score is of type string; it should hold numbers",
        ),
        (
            lambda t: t.set_column(1, "query", pa.array([datetime.date(2026, 1, 1)] * 3)),
            r"the column query is of type date32\[day\]; it should hold strings",
        ),
    ],
)
def test_a_bad_column_is_named_before_a_row_is_read(tmp_path, change, message):
    pq.write_table(change(table()), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=message):
        open_pairs(str(tmp_path / "p.parquet"))


@pytest.mark.parametrize(("score", "message"), [(None, "score is null"), (float("nan"), "the score nan is not a")])
def test_a_score_is_a_finite_number(tmp_path, score, message):
    with pytest.raises(UserError, match=f"row 2: {message}"):
        read(write(tmp_path / "p.parquet", score=pa.array([1.0, score, 2.0])))


def test_a_query_with_rows_in_two_runs_is_found_over_files_and_among_many(tmp_path):
    write(tmp_path / "a.parquet", many(5000, 1))
    write(tmp_path / "b.parquet", [("q4321", "need 4321", "d7", "text")])
    with pytest.raises(
        UserError, match=r"b\.parquet: row 1: query_id 'q4321' has rows after other queries.*a\.parquet: row 4322"
    ):
        read(tmp_path)


def test_two_ids_of_one_hash_are_two_queries(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "_hash", lambda query_id: len(query_id))
    assert list(read(write(tmp_path / "p.parquet", many(3)))) == ["q0", "q1", "q2"]


def test_files_that_do_not_fit_together(tmp_path):
    write(tmp_path / "a.parquet", ROWS[:2])
    write(tmp_path / "b.parquet", ROWS[2:], score=pa.array([1.0]))
    with pytest.raises(UserError, match=r"a\.parquet: has no column score, and .*b\.parquet has one"):
        open_pairs(str(tmp_path))


def test_files_that_are_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet: no such file or folder"):
        open_pairs(str(tmp_path / "none.parquet"))
    with pytest.raises(UserError, match=r"no \*\.parquet in this folder"):
        open_pairs(str(tmp_path))
    (tmp_path / "text.parquet").write_text("query_id,query\n")
    with pytest.raises(UserError, match=r"text\.parquet: cannot be read as Parquet"):
        open_pairs(str(tmp_path / "text.parquet"))
    with pytest.raises(UserError, match=r"nfs://there/p: cannot be read as Parquet"):
        open_pairs("nfs://there/p")


def test_a_file_that_is_damaged_inside(tmp_path):
    path = write(tmp_path / "p.parquet", many(2000))
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)  # the first pages; the footer is whole
    path.write_bytes(content)
    pairs = open_pairs(str(path))
    with pytest.raises(UserError, match=r"p\.parquet: cannot be read as Parquet") as raised:
        list(pairs.queries())
    assert "\n" not in str(raised.value)


def test_text_that_is_not_utf_8(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(table().set_column(3, "text", broken), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet: rows 1 to 3: text is not UTF-8 text"):
        read(tmp_path / "p.parquet")


# ---- the job -------------------------------------------------------------------------


def config(path, tmp_path, **sections):
    data = {"format": "pairs", "path": str(path)} | sections.pop("data", {})
    values = {"run_dir": str(tmp_path / "run"), "data": data, "engine": {"kind": "fake"}, "scoring": {"mode": "none"}}
    return RerankJob(**(values | sections))


def run(settings):
    return job.run(settings, address="local", progress=silent())


def test_the_job_keeps_the_given_order_and_writes_no_judgements(tmp_path):
    path = write(tmp_path / "p.parquet", score=pa.array([0.5, 0.75, 0.25]))
    result = run(config(path, tmp_path))
    storage = Storage(str(tmp_path / "run"))
    assert sorted(storage.read_text("run.trec").splitlines()) == [
        "q1 Q0 d1 1 -1 limrank",
        "q2 Q0 d2 2 -2 limrank",
        "q2 Q0 d3 1 -1 limrank",
    ]
    assert {(row["doc_id"], row["first_stage_rank"], row["first_stage_score"]) for row in rows(storage)} == {
        ("d1", 1, 0.25),
        ("d2", 2, 0.5),
        ("d3", 1, 0.75),
    }
    assert result.messages[0] == "2 queries, 3 pairs, 0 failed"
    assert result.warnings == []
    assert not storage.exists("qrels.tsv") and not storage.exists("queries.jsonl")


def test_the_first_stage_has_no_say(tmp_path):
    path = write(tmp_path / "p.parquet")
    result = run(config(path, tmp_path, first_stage={"depth": 1}))
    assert result.messages[0] == "2 queries, 3 pairs, 0 failed"
    assert result.warnings == [
        "first_stage: has no effect on data.format=pairs: every given pair is scored",
    ]


def test_a_fault_in_the_last_row_leaves_no_run_directory(tmp_path):
    path = write(tmp_path / "p.parquet", [*many(50), ("q0", "need 0", "d9", "text")])
    with pytest.raises(UserError, match="sort the pairs by query_id"):
        run(config(path, tmp_path))
    assert not (tmp_path / "run").exists()
    write(path, many(50))
    assert run(config(path, tmp_path)).messages[0] == "50 queries, 150 pairs, 0 failed"
    assert read_plan(Storage(str(tmp_path / "run"))).size == 150


def test_a_dry_run_counts_and_shows_the_first_prompt(tmp_path):
    path = write(tmp_path / "p.parquet")
    plan = job.plan(config(path, tmp_path, scoring={"mode": "direct"}))
    assert plan["units"] == "2 queries, 3 pairs"
    # Characters of query and passage, four a token: 8 + 11, 8 + 19, 8 + 12.
    assert plan["tokens"] == "about 15 to read and write"
    assert "Query: dog park\nPassage: a quick dog\n" in plan["first_prompt"]
    assert not (tmp_path / "run").exists()


def hashed(settings):
    return job.rows_hash(settings, open_source(settings))


def test_the_hash_covers_contents_and_selection_and_no_place_and_no_first_stage(tmp_path):
    path, moved = write(tmp_path / "p.parquet"), write(tmp_path / "moved.parquet")
    base = hashed(config(path, tmp_path))
    assert hashed(config(moved, tmp_path)) == base
    assert hashed(config(path, tmp_path, first_stage={"depth": 1})) == base
    assert hashed(config(path, tmp_path, data={"max_queries": 1})) != base
    write(moved, ROWS[:2])
    assert hashed(config(moved, tmp_path)) != base


def test_max_queries_of_the_job(tmp_path):
    path = write(tmp_path / "p.parquet")
    assert run(config(path, tmp_path, data={"max_queries": 1})).messages[0] == "1 queries, 2 pairs, 0 failed"
    lines = json.loads(Storage(str(tmp_path / "run")).read_text("run.json"))
    assert lines == {"q2": {"d2": -1.0, "d3": -2.0}}
