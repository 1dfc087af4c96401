import gzip
import io

import pytest

from limrank.data.trec import read_qrels, read_run, write_qrels, write_run_trec
from limrank.errors import UserError


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_run_is_ordered_by_score_and_ties_stay_in_the_order_given(tmp_path):
    path = put(tmp_path / "run.trec", "q1 Q0 low 1 0.5 x\nq1 Q0 b 2 2 x\n\nq1 Q0 a 3 2 x\nq2 Q0 a 1 -1e3 x\n")
    run = read_run(path)
    assert list(run["q1"].items()) == [("b", 2.0), ("a", 2.0), ("low", 0.5)]
    assert run["q2"] == {"a": -1000.0}


def test_ids_may_hold_spaces_where_the_line_has_tabs(tmp_path):
    path = put(tmp_path / "run.trec", "0\tQ0\tPony/a file.txt\t1\t10\tmy tag\n1 Q0 plain 1 3 tag\n")
    assert read_run(path) == {"0": {"Pony/a file.txt": 10.0}, "1": {"plain": 3.0}}


def test_gzip_and_byte_order_mark(tmp_path):
    path = tmp_path / "run.trec.gz"
    path.write_bytes(gzip.compress("\ufeffq Q0 d 1 1 t\r\n".encode()))
    assert read_run(path) == {"q": {"d": 1.0}}


def test_json_run(tmp_path):
    path = put(tmp_path / "run.json", '{"q": {"a": 1, "b": 2.5}}')
    assert list(read_run(path)["q"].items()) == [("b", 2.5), ("a", 1.0)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.trec", "q Q0 d 1 1 t\nq Q0 d\n", "r.trec:2: 3 columns; a TREC run has 6"),
        ("r.trec", "q Q0 d 1 high t\n", "r.trec:1: the score 'high' is not a finite number"),
        ("r.trec", "q Q0 d 1 nan t\n", "r.trec:1: the score 'nan' is not a finite number"),
        (
            "r.trec",
            "q Q0 d 1 2 t\nq Q0 e 2 1 t\nq Q0 d 3 0 t\n",
            "r.trec:3: document 'd' is ranked twice for query 'q'",
        ),
        ("r.json", '{"q":\n {"d": 1}', "r.json:2: not JSON"),
        ("r.json", "[1]", "r.json: a JSON run is an object"),
        ("r.json", '{"q": 3}', "r.json: query 'q': should be an object"),
        ("r.json", '{"q": {"d": null}}', "query 'q', document 'd': the score None is not a finite number"),
        ("r.json", '{"q": {}, "q": {}}', "the key 'q' is there twice"),
    ],
)
def test_bad_runs_name_the_line(tmp_path, name, text, message):
    with pytest.raises(UserError) as error:
        read_run(put(tmp_path / name, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_document_ranked_twice_names_both_lines(tmp_path):
    path = put(tmp_path / "r.trec", "q Q0 d 1 2 t\nq Q0 d 2 1 t\n")
    with pytest.raises(UserError, match=r"r\.trec:2: .* see line 1"):
        read_run(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none\.trec: no such file"):
        read_run(tmp_path / "none.trec")
    (tmp_path / "latin.trec").write_bytes(b"q Q0 d 1 1 t\nq Q0 caf\xe9 2 0 t\n")
    with pytest.raises(UserError, match=r"latin\.trec:2: not UTF-8"):
        read_run(tmp_path / "latin.trec")
    put(tmp_path / "plain.trec.gz", "q Q0 d 1 1 t\n")
    with pytest.raises(UserError, match=r"plain\.trec\.gz: cannot be read"):
        read_run(tmp_path / "plain.trec.gz")


def test_qrels_of_beir_and_of_trec(tmp_path):
    beir = put(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore\nq 1\ta doc\t2\nq 1\tb\t0\n")
    trec = put(tmp_path / "qrels.txt", "19335 Q0 1017759 0\n19335 0 d2 -1\n")
    assert read_qrels(beir) == {"q 1": {"a doc": 2, "b": 0}}
    assert read_qrels(trec) == {"19335": {"1017759": 0, "d2": -1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q d\n", "q.tsv:1: 2 columns; judgements have 3"),
        ("query-id\tcorpus-id\tscore\nq\td\tyes\n", "q.tsv:2: the grade 'yes' is not a whole number"),
        ("q\td\t1\nq\te\t1\nq\td\t2\n", "q.tsv:3: document 'd' of query 'q' has another grade on line 1"),
    ],
)
def test_bad_qrels_name_the_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read_qrels(put(tmp_path / "q.tsv", text))
    assert message in str(error.value)


def test_a_judgement_said_twice_alike_is_no_fault(tmp_path):
    assert read_qrels(put(tmp_path / "q.tsv", "q\td\t1\nq\td\t1\n")) == {"q": {"d": 1}}


def test_written_runs_read_back(tmp_path):
    plain = io.StringIO()
    write_run_trec(plain, {"q": {"b": 0.1, "a": 3.0}}, tag="me")
    assert plain.getvalue() == "q Q0 a 1 3.0 me\nq Q0 b 2 0.1 me\n"
    run = {"q": {"a doc": -1.0, "b": -2.0}}
    write_run_trec(tmp_path / "run.trec", run)
    assert (tmp_path / "run.trec").read_text() == "q\tQ0\ta doc\t1\t-1.0\tlimrank\nq\tQ0\tb\t2\t-2.0\tlimrank\n"
    assert read_run(tmp_path / "run.trec") == run


def test_written_qrels_read_back(tmp_path):
    qrels = {"q 1": {"a doc": 2, "b": 0}}
    write_qrels(tmp_path / "qrels.tsv", qrels)
    assert (tmp_path / "qrels.tsv").read_text() == "query-id\tcorpus-id\tscore\nq 1\ta doc\t2\nq 1\tb\t0\n"
    assert read_qrels(tmp_path / "qrels.tsv") == qrels


def test_ids_that_no_file_can_carry_are_refused():
    with pytest.raises(UserError, match="holds a tab"):
        write_run_trec(io.StringIO(), {"q": {"a\tb": 1.0}})
