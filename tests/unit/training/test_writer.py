"""What a writer learns: which pairs, and their token ids."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limrank.data.seeds import load_seeds
from limrank.engines.fake import ByteTokenizer
from limrank.errors import UserError
from limrank.training import writer
from limrank.training.writer import Pair, draw, encode_pairs, read_pairs

PAIR = {"query": "q", "passage": "p"}
HEAD, TAIL = "Passage: ", "\nSearch query:"


class Tokenizer(ByteTokenizer):
    """A byte a token, and an end."""

    eos_token_id = 300


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def beir(folder, grades):
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", {"_id": "d1", "text": "Red."}, {"_id": "d2", "text": "Blue."})
    write(folder / "queries.jsonl", {"_id": "q1", "text": "which red"}, {"_id": "q2", "text": "which blue"})
    rows = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in grades)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return str(folder)


def refusal(source):
    with pytest.raises(UserError) as error:
        read_pairs(source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pairs_are_those_whose_label_is_true_or_absent(tmp_path):
    labels = (True, False, None, "true", 0, 1)
    records = [PAIR | {"label": label} for label in labels] + [PAIR]
    pairs, (warning,) = read_pairs(write(tmp_path / "pairs.jsonl", *records))
    assert [pair.line for pair in pairs] == [1, 3, 4, 6, 7]
    assert pairs[0] == Pair(1, "p", "q")
    assert warning.endswith("pairs.jsonl: 2 pairs are left out: their label is false")


def test_a_writer_learns_from_what_synthesis_starts_from(tmp_path):
    folder = beir(tmp_path / "beir", [("q1", "d1", 1), ("q1", "d2", 0), ("q2", "d2", 2)])
    assert read_pairs(folder) == ([Pair(1, "Red.", "which red"), Pair(2, "Blue.", "which blue")], [])
    seeds = write(tmp_path / "seeds.jsonl", {"seed_id": "s", "query": "which red", "passage": "Red."})
    assert read_pairs(seeds) == ([Pair(1, "Red.", "which red")], [])
    pairs, _ = read_pairs("pydocs")
    assert [(pair.text, pair.passage) for pair in pairs] == [(s.query, s.passage) for s in load_seeds("pydocs")]


def test_pairs_of_parquet_and_of_a_selection(tmp_path):
    rows = [PAIR | {"selected": True}, {"query": None, "passage": None, "selected": False}]
    for target in (tmp_path / "t.parquet", tmp_path / "folder" / "a.parquet"):
        target.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), target)
    for source in (tmp_path / "t.parquet", tmp_path / "folder"):
        assert read_pairs(str(source))[0] == [Pair(1, "p", "q")]
    assert "each label or selected is false" in refusal(write(tmp_path / "none.jsonl", rows[1]))


def test_contents_have_a_fingerprint(tmp_path):
    one = beir(tmp_path / "one", [("q1", "d1", 1)])
    same, other = beir(tmp_path / "same", [("q1", "d1", 1)]), beir(tmp_path / "other", [("q2", "d2", 1)])
    assert writer.fingerprint(one) == writer.fingerprint(same) != writer.fingerprint(other)
    file = write(tmp_path / "pairs.jsonl", PAIR)
    assert writer.fingerprint(file) != writer.fingerprint(write(tmp_path / "others.jsonl", PAIR, PAIR))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (PAIR | {"label": "maybe"}, "label is 'maybe': it should be true or false"),
        (PAIR | {"label": float("nan")}, ""),
        (PAIR | {"query": " "}, "query is empty"),
        (PAIR | {"query": None}, "query is null"),
        (PAIR | {"passage": 3}, "passage is of type int"),
        ({"query": "q"}, "passage is missing"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, record, message):
    path = write(tmp_path / "pairs.jsonl", PAIR, record)
    assert refusal(path).startswith(f"{path}:2: {message}")


def test_sources_that_hold_no_pairs(tmp_path):
    path = write(tmp_path / "train.jsonl", {"prompt": "p", "completion": "</think> true"})
    assert (
        refusal(path)
        == f"{path}:1: keys prompt, completion: a writer learns from query and passage (training.task=writer)"
    )
    lists = write(tmp_path / "lists.jsonl", {"query": "q", "passages": ["a"], "scores": [1]})
    assert "keys query, passages, scores: a writer learns from query and passage" in refusal(lists)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert "columns a: a writer learns from query and passage" in refusal(str(tmp_path / "t.parquet"))
    assert "holds no examples" in refusal(write(tmp_path / "empty.jsonl"))
    assert "each label or kept is false" in refusal(write(tmp_path / "false.jsonl", PAIR | {"label": False}))
    assert "no such file or folder" in refusal(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder").mkdir()
    assert "corpus.jsonl" in refusal(str(tmp_path / "folder"))


def encoded(pair, cutoff=200):
    return encode_pairs([pair], Tokenizer(), cutoff, "pairs.jsonl")[0]


def text(ids):
    return bytes(each for each in ids.tolist() if each < 256).decode()


def test_loss_is_on_the_query_and_the_end():
    one = encoded(Pair(4, "It is <think> red.", "which\n red "))
    assert text(one.ids[: one.prompt_tokens]) == f"{HEAD}It is <think> red.{TAIL}"
    assert text(one.ids[one.prompt_tokens :]) == " which red" and one.ids[-1] == Tokenizer.eos_token_id
    assert (one.line, one.label, one.score, one.truncated) == (4, None, None, False)


def test_a_long_passage_loses_its_end():
    whole = encoded(Pair(1, "abcdefgh", "why"))
    for less in range(9):
        one = encoded(Pair(1, "abcdefgh", "why"), cutoff=len(whole.ids) - less)
        assert text(one.ids) == f"{HEAD}{'abcdefgh'[: 8 - less]}{TAIL} why"
        assert (len(one.ids), one.truncated) == (len(whole.ids) - less, less > 0)
    for pair, cutoff in (
        (Pair(7, "abcdefgh", "why"), len(whole.ids) - 9),
        (Pair(7, "a", "why " * 10**6), 200),
        (Pair(7, "a", "b"), 1),
    ):
        with pytest.raises(UserError, match=r"^pairs.jsonl:7: prompt and query do not fit in training.cutoff_tokens="):
            encoded(pair, cutoff)


def test_a_sample_is_seeded_and_keeps_the_order():
    pairs = [Pair(line, "p", "q") for line in range(1, 21)]
    lines = [pair.line for pair in draw(pairs, 5, seed=1)]
    assert len(lines) == 5 and lines == sorted(lines) == [pair.line for pair in draw(pairs, 5, seed=1)]
    assert lines != [pair.line for pair in draw(pairs, 5, seed=2)]
    assert draw(pairs, None, seed=1) == draw(pairs, 99, seed=1) == pairs
