"""Training files in every shape and kind: small ones that can be checked by eye."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.units import fake_engine, planned, runner
from limrank.batch.plan import write_plan
from limrank.batch.summary import summarize
from limrank.config import EngineConfig, ScoringConfig, SynthesisConfig, SynthesizeJob
from limrank.errors import UnavailableError, UserError
from limrank.records import Persona, Seed, synthesis_unit_schema
from limrank.storage import Storage
from limrank.synthesis.export import export
from limrank.synthesis.plan import Inputs, units
from limrank.synthesis.pool import dedupe_and_select
from limrank.synthesis.synthesizer import SynthesisInputs
from limrank.synthesis.task import SynthesisTask
from limrank.training import sources
from limrank.training.sources import Example, fingerprint, read_examples

TASK = "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
PAIRS = [
    {"query": "cat", "instruction": "No dogs.", "passage": "A cat sat.", "reasoning": "It is a cat.", "label": True},
    {"query": "cat", "instruction": "No dogs.", "passage": "A dog ran.", "reasoning": "Ein Hündchen.", "label": False},
    {"query": "dog", "instruction": None, "passage": "A dog\nran.", "reasoning": None, "label": True},
]
PROMPTS = [
    {
        "prompt": TASK + "Query: cat No dogs.\nPassage: A cat sat.\n<think>",
        "completion": "\nIt is a cat.\n</think> true",
    },
    {
        "prompt": TASK + "Query: cat No dogs.\nPassage: A dog ran.\n<think>",
        "completion": "\nEin Hündchen.\n</think> false",
    },
    {"prompt": TASK + "Query: dog\nPassage: A dog\nran.\n<think>", "completion": "\n</think> true"},
]
MARK_IN_INPUT = [
    {"instruction": TASK.strip(), "input": each["prompt"].removeprefix(TASK), "output": each["completion"]}
    for each in PROMPTS
]
MARK_IN_OUTPUT = [
    {
        "instruction": each["prompt"].removesuffix("\n<think>"),
        "input": "",
        "output": "<think>" + each["completion"],
    }
    for each in PROMPTS
]
NO_MARK = [{"instruction": each["prompt"].removesuffix("\n<think>"), "output": each["completion"]} for each in PROMPTS]
SHAPES = {
    "prompts": PROMPTS,
    "mark in input": MARK_IN_INPUT,
    "mark in output": MARK_IN_OUTPUT,
    "no mark": NO_MARK,
    "pairs": PAIRS,
}
READ = [
    (PROMPTS[0]["prompt"], "\nIt is a cat.\n", " true"),
    (PROMPTS[1]["prompt"], "\nEin Hündchen.\n", " false"),
    (PROMPTS[2]["prompt"], "\n", " true"),
]
GOOD = {"prompt": "p", "completion": "</think> true"}
GOOD_PAIR = {"query": "q", "passage": "p", "label": True}


def write(path, *lines):
    """A line each: of an object its JSON, a text as it is."""
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def write_parquet(path, records):
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def write_folder(path, records):
    path.mkdir()
    write_parquet(path / "b.parquet", records[1:])
    write_parquet(path / "a.parquet", records[:1])
    (path / "README.md").write_text("not read")
    return path


def write_dataset(path, records):
    from datasets import Dataset

    Dataset.from_list(records).save_to_disk(path)
    return path


def write_splits(path, records):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(records), test=Dataset.from_list(records[:1])).save_to_disk(path)
    return path


def write_gzip(path, records):
    path.write_bytes(gzip.compress("".join(json.dumps(each) + "\n" for each in records).encode()))
    return path


def write_array(path, records):
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


FILES = {
    "train.jsonl": lambda path, records: write(path, *records),
    "train.jsonl.gz": write_gzip,
    "lines.json": lambda path, records: write(path, *records),
    "array.json": write_array,
    "train.parquet": write_parquet,
    "folder": write_folder,
    "dataset": write_dataset,
    "splits": write_splits,
}


def texts(examples):
    return [(each.prompt, each.chain, each.label) for each in examples]


def refusal(path):
    with pytest.raises(UserError) as error:
        read_examples(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- shapes and files ----------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FILES)
def test_the_same_examples_in_every_shape_and_kind_of_file(tmp_path, name, shape):
    examples = read_examples(FILES[name](tmp_path / name, SHAPES[shape]))
    assert texts(examples) == READ
    assert [each.line for each in examples] == [1, 2, 3]
    assert examples[0].query == examples[1].query != examples[2].query


def test_reads_prompt_chain_and_label(tmp_path):
    path = write(
        tmp_path / "train.jsonl",
        {"prompt": "p1<think>", "completion": "\nchain\n</think> true", "more": 1},
        "\n",
        {"prompt": "p2\nPassage: p<think>", "completion": "\na </think> b\n</think> false\n"},
    )
    assert read_examples(path) == [
        Example(1, "p1<think>", "\nchain\n", " true", ("p1<think>",)),
        Example(3, "p2\nPassage: p<think>", "\na </think> b\n", " false", ("p2",)),
    ]


@pytest.mark.parametrize(
    ("record", "prompt", "chain"),
    [
        ({"instruction": "a", "input": "b", "output": "<think>c</think> true"}, "a\nb\n<think>", "c"),
        ({"instruction": "a\n", "input": None, "output": "\n<think>\nc</think> true"}, "a\n<think>", "\nc"),
        ({"instruction": "a <think>\n", "output": "c</think> true"}, "a <think>", "\nc"),
        ({"instruction": "a\n<think>", "output": "<think>\nc</think> true"}, "a\n<think>", "\nc"),
        ({"instruction": "a", "input": " ", "output": "c</think> true"}, "a\n<think>", "c"),
        ({"prompt": "a", "completion": "<think>c</think> true"}, "a\n<think>", "c"),
        ({"prompt": "a", "completion": "c</think> true"}, "a", "c"),
    ],
)
def test_the_mark_before_a_chain_is_the_prompt_s(tmp_path, record, prompt, chain):
    assert texts(read_examples(write(tmp_path / "train.jsonl", record))) == [(prompt, chain, " true")]


def test_the_first_record_tells_the_shape_and_prompts_go_before_pairs(tmp_path):
    both = GOOD_PAIR | {"instruction": "i", "output": "b</think> true"}
    (pair,) = read_examples(write(tmp_path / "pair.jsonl", GOOD_PAIR | {"instruction": "i"}))
    (alpaca,) = read_examples(write(tmp_path / "alpaca.jsonl", both))
    (prompt,) = read_examples(write(tmp_path / "prompt.jsonl", both | GOOD))
    assert (pair.prompt, alpaca.prompt, prompt.prompt) == (
        TASK + "Query: q i\nPassage: p\n<think>",
        "i\n<think>",
        "p",
    )


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, " true"), (1, " true"), ("True", " true"), (1.0, " true")]
    + [(False, " false"), (0, " false"), ("FALSE", " false")],
)
def test_labels_of_pairs(tmp_path, value, label):
    (one,) = read_examples(write(tmp_path / "train.jsonl", GOOD_PAIR | {"label": value}))
    assert (one.chain, one.label) == ("\n", label)


@pytest.mark.parametrize(("verdict", "chain"), [(True, "\nc\n"), (None, "\nc\n"), (False, "\n")])
def test_a_chain_that_ends_in_the_other_label_is_left_out(tmp_path, verdict, chain):
    path = write(tmp_path / "train.jsonl", GOOD_PAIR | {"reasoning": "c", "verdict": verdict})
    assert read_examples(path)[0].chain == chain


def test_what_was_selected_is_taken_else_what_was_kept(tmp_path):
    rows = [
        GOOD_PAIR | {"query": "1", "kept": True, "selected": True},
        GOOD_PAIR | {"query": "2", "kept": True, "selected": False},
        {"query": None, "passage": None, "label": None, "kept": False, "selected": False},
        GOOD_PAIR | {"query": "4", "kept": True, "selected": True},
    ]
    kept = [{key: value for key, value in row.items() if key != "selected"} for row in rows]
    for name, records, expected in (("selected", rows, [1, 4]), ("kept", kept, [1, 2, 4])):
        assert [one.line for one in read_examples(write_parquet(tmp_path / f"{name}.parquet", records))] == expected
        assert [one.line for one in read_examples(write(tmp_path / f"{name}.jsonl", *records))] == expected
    assert "holds no examples: there is none whose selected is true" in refusal(
        write(tmp_path / "none.jsonl", rows[1], rows[2])
    )


def test_the_passages_of_a_query_share_its_text(tmp_path):
    pairs = [GOOD_PAIR | {"query": query, "instruction": "i"} for query in ("a", "b", "a")]
    first, second, third = read_examples(write(tmp_path / "pairs.jsonl", *pairs))
    assert (first.query, second.query) == (("a", "i"), ("b", "i"))
    assert first.query is third.query


def test_rows_of_a_folder_are_numbered_through(tmp_path):
    path = write_folder(tmp_path / "folder", [*PAIRS[:2], PAIRS[2] | {"passage": " "}])
    assert f"{path}/b.parquet: row 2: passage is empty" in refusal(path)


@pytest.fixture
def synthesis(tmp_path):
    """A synthesize job, and where its run is."""
    run = tmp_path / "run"
    section = SynthesisConfig(judge_tokens=16)
    return SynthesizeJob(run_dir=str(run), engine=EngineConfig(kind="fake"), synthesis=section), run


def test_what_a_run_exports_gives_the_same_examples(synthesis):
    config, run = synthesis
    seeds = [Seed("s1", "merge lists", "heapq.merge merges"), Seed("s2", "count words", "Counter counts")]
    planned_units = units(config, Inputs(seeds, [Persona("p1", "a nurse")], 4))
    storage = Storage(str(run))
    plan = write_plan(storage, ((unit, 1) for unit in planned_units), synthesis_unit_schema(), chunk_cost=10**6)
    scoring = ScoringConfig(mode="budget", max_think_tokens=16)
    engine = fake_engine()
    task = SynthesisTask(SynthesisInputs(config.synthesis, scoring, config.seed))
    receipt = runner(storage, task, {"writer": engine, "judge": engine}).run(0, isolated=False)
    pool = dedupe_and_select(storage, config.synthesis, None, seed=1)
    counts = export(storage, config, summarize([receipt], plan.size), pool, queries_a_seed=2)

    examples = read_examples(run / "train.jsonl")
    assert 0 < len(examples) == counts["kept"] < counts["examples"]
    assert all(each.chain.strip() for each in examples)
    for name in ("alpaca.json", "examples.parquet"):
        assert texts(read_examples(run / name)) == texts(examples), name


def test_a_run_that_kept_nothing_holds_no_examples(synthesis):
    config, run = synthesis
    storage, _ = planned(run, [])
    export(
        storage, config, summarize([], 0), dedupe_and_select(storage, config.synthesis, None, seed=1), queries_a_seed=2
    )
    for name in ("train.jsonl", "alpaca.json", "examples.parquet"):
        assert refusal(run / name) == f"{run / name}: holds no examples"


def test_contents_have_a_fingerprint(tmp_path):
    one = write_folder(tmp_path / "one", PAIRS)
    same = write_folder(tmp_path / "same", PAIRS)
    other = write_folder(tmp_path / "other", PAIRS[:2])
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(write(tmp_path / "empty.jsonl")) == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
    )


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json\n", ":2: not JSON"),
        ("[1]\n", ":2: not a JSON object"),
        ({"prompt": "p"}, ":2: completion is missing"),
        ({"completion": "</think> true"}, ":2: prompt is missing"),
        ({"prompt": None, "completion": "</think> true"}, ":2: prompt is null: it should be a text"),
        ({"prompt": "p", "completion": " "}, ":2: completion is empty: it should be a text that is not empty"),
        ({"prompt": "p", "completion": 3}, ":2: completion is of type int: it should be a text"),
        ({"prompt": "p", "completion": "\nchain </think> maybe"}, ":2: completion should end in '</think> true'"),
        ({"prompt": "p", "completion": "true"}, ":2: completion should end in '</think> true'"),
        ({"prompt": "p", "completion": "<think>"}, ":2: completion should end in '</think> true'"),
        ('{"prompt": "\\ud83d", "completion": "</think> true"}\n', ":2: half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "train.jsonl", GOOD, line)
    assert f"{path}{message}" in refusal(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "q", "passage": "p"}, "label is missing"),
        (GOOD_PAIR | {"label": 2}, "label is 2: it should be true or false (1 or 0)"),
        (GOOD_PAIR | {"label": "yes"}, "label is 'yes': it should be true or false (1 or 0)"),
        (GOOD_PAIR | {"label": None}, "label is None: it should be true or false (1 or 0)"),
        (GOOD_PAIR | {"query": ""}, "query is empty: it should be a text that is not empty"),
        (GOOD_PAIR | {"passage": None}, "passage is null: it should be a text that is not empty"),
        (GOOD_PAIR | {"reasoning": ["c"]}, "reasoning is of type list: it should be a text"),
        (GOOD_PAIR | {"verdict": "perhaps"}, "verdict is 'perhaps': it should be true or false"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, record, message):
    path = write(tmp_path / "pairs.jsonl", GOOD_PAIR, record)
    assert refusal(path).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ": holds no examples"),
        ("[1]", ": element 1: not a JSON object, but '1'"),
        ("[", ": element 1: not a JSON object, but the end of the file"),
        ('[{"a": 1}', ": element 1: keys a are not known"),
        ("[GOOD", ": element 1: after it there should be , or the array's ], not the end of the file"),
        ("[GOOD GOOD]", ": element 1: after it there should be , or the array's ], not '{'"),
        ("[GOOD,]", ": element 2: not a JSON object, but ']'"),
        ('[GOOD, {"prompt": }]', ": element 2: not JSON: Expecting value"),
        ('[GOOD, {"prompt": "p', ": element 2: not JSON: Unterminated string"),
        ('[GOOD, {"prompt": "p"}]', ": element 2: completion is missing"),
        ('[GOOD, {"prompt": "\\ud83d", "completion": "</think> true"}]', ": element 2: prompt holds half a surrogate"),
        ("[GOOD] x", ": 'x' after the end of the array: one array is the whole file"),
    ],
)
def test_a_bad_element_of_an_array_is_named(tmp_path, text, message):
    path = write(tmp_path / "alpaca.json", text.replace("GOOD", json.dumps(GOOD)))
    assert f"{path}{message}" in refusal(path)


def test_unknown_keys_are_named_with_the_known_ones(tmp_path):
    known = "are not known: give prompt and completion, instruction and output, or query, passage and label"
    records = [{"a": "1", "b": "2"}]
    path = write(tmp_path / "a.jsonl", *records)
    assert refusal(path) == f"{path}:1: keys a, b {known}"
    path = write_parquet(tmp_path / "a.parquet", records)
    assert refusal(path) == f"{path}: columns a, b {known}"
    path = write_dataset(tmp_path / "a", records)
    assert refusal(path) == f"{path}: columns a, b {known}"
    path = write(tmp_path / "none.jsonl", {})
    assert refusal(path) == f"{path}:1: keys (none) {known}"


def test_a_file_that_is_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(UnavailableError, match=r"training\.train_file: .*none\.jsonl: no such file"):
        read_examples(tmp_path / "none.jsonl")
    assert "holds no examples" in refusal(write(tmp_path / "train.jsonl", "\n"))
    assert "not read from this kind of file: give .jsonl, .json" in refusal(write(tmp_path / "train.csv", "a,b\n"))
    (tmp_path / "folder").mkdir()
    assert "no *.parquet in this folder" in refusal(tmp_path / "folder")


def test_bytes_that_are_no_text(tmp_path):
    good, bad = json.dumps(GOOD).encode(), b'{"prompt": "caf\xe9", "completion": "</think> true"}'
    for name, content, place in (
        ("lines.jsonl", good + b"\n" + bad + b"\n", ":2"),
        ("array.json", b"[" + good + b",\n" + bad + b"]", ":2"),
    ):
        (tmp_path / name).write_bytes(content)
        assert refusal(tmp_path / name) == f"{tmp_path / name}{place}: not UTF-8 text"
    prompts = pa.array([b"p", b"caf\xe9"]).view(pa.string())
    completions = pa.array(["</think> true"] * 2)
    pq.write_table(pa.table({"prompt": prompts, "completion": completions}), tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == f"{tmp_path}/t.parquet: row 2: not UTF-8 text"


def test_an_array_after_many_blanks_and_one_that_is_too_large(tmp_path, monkeypatch):
    path = tmp_path / "array.json.gz"
    path.write_bytes(gzip.compress(b" \n" * 200_000 + json.dumps([GOOD]).encode()))
    assert len(list(read_examples(path))) == 1
    monkeypatch.setattr(sources, "LONGEST_ARRAY", 1 << 20)
    path.write_bytes(gzip.compress(b"[" + b" " * (1 << 20)))
    assert refusal(path) == f"{path}: an array of more than 1 MiB: give JSON Lines, which are read a line at a time"


def test_a_file_that_was_cut(tmp_path):
    whole = write_parquet(tmp_path / "train.parquet", PAIRS).read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[:-20])
    assert f"{tmp_path}/train.parquet: cannot be read as Parquet" in refusal(tmp_path / "train.parquet")
    for name, content in (("a.jsonl.gz", json.dumps(GOOD)), ("a.json.gz", json.dumps([GOOD]))):
        (tmp_path / name).write_bytes(gzip.compress(content.encode())[:-12])
        assert f"{tmp_path / name}: cannot be read" in refusal(tmp_path / name)
    dataset = write_dataset(tmp_path / "dataset", PAIRS)
    (arrow,) = dataset.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert f"{dataset}: not a dataset that can be loaded" in refusal(dataset)
    assert "training.train_file: it has no split 'train'; there are: test" in refusal(
        write_only_test_split(tmp_path / "splits")
    )


def write_only_test_split(path):
    from datasets import Dataset, DatasetDict

    DatasetDict(test=Dataset.from_list(PAIRS)).save_to_disk(path)
    return path


@pytest.mark.parametrize("key", ["system", "history"])
def test_what_comes_before_an_alpaca_instruction_is_not_lost_without_a_word(key, tmp_path):
    path = tmp_path / "train.jsonl"
    row = {"instruction": "Query: a\nPassage: b", "output": "\nYes.\n</think> true"}
    value = {"system": "You judge.", "history": [["asked", "said"]]}[key]
    path.write_text(json.dumps(row | {key: ""}) + "\n" + json.dumps(row | {key: value}) + "\n")
    with pytest.raises(
        UserError, match=rf"train.jsonl:2: {key}: a reranker is asked one thing.*put the text into instruction"
    ):
        read_examples(path)
    path.write_text(json.dumps(row | {"system": "", "history": []}) + "\n")
    assert len(read_examples(path)) == 1
