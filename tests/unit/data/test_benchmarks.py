"""Queries that are documents of their own corpus, and queries without a candidate."""

import json

import pytest

from limrank import cli
from limrank.config import DataConfig, FirstStageConfig, RerankJob, TrainJob
from limrank.data import benchmarks
from limrank.data.benchmarks import is_same_text
from limrank.errors import UserError
from limrank.records import Benchmark, Document, Query
from limrank.reranking import job
from limrank.reranking.source import open_source
from limrank.training.prepare import choose

ARGUMENT = "Zoos should be closed, since animals suffer in cages that are far too small for them."


def beir(folder, corpus, queries, qrels):
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps({"_id": each, "title": "", "text": text}) for each, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def recipe(folder, **first_stage):
    return RerankJob(
        run_dir=str(folder.parent / "run"),
        data={"format": "beir", "path": str(folder)},
        first_stage=first_stage,
        scoring={"mode": "none"},
    )


@pytest.fixture
def argument(tmp_path):
    """As ArguAna: the query is a document, and what answers it is another."""
    corpus = {
        "zoos": ARGUMENT,
        "against": "Zoos keep animals that suffer in the wild, and cages are larger than they look.",
        "other": "Buses should be free.",
    }
    return beir(tmp_path / "arguana", corpus, {"zoos": ARGUMENT}, [("zoos", "against", 1)])


def test_a_query_is_no_candidate_of_its_own(argument, capsys):
    config = recipe(argument)
    ((_, found),) = open_source(config).queries()
    assert [each.doc_id for each in found] == ["against", "other"]
    message = "1 queries are in the corpus themselves, by id and text: they are no candidates of their own"
    assert message in job.plan(config)["warnings"]
    path = argument.parent / "recipe.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    assert cli.main(["rerank", str(path)]) == 0
    evaluate = argument.parent / "evaluate.yaml"
    evaluate.write_text(f"job: evaluate\nrun_dir: {config.run_dir}\n")
    assert cli.main(["evaluate", str(evaluate)]) == 0
    metrics = json.loads((argument.parent / "run" / "metrics.json").read_text())
    assert "1.0" in json.dumps(metrics)


def test_a_given_run_that_holds_the_query_itself_is_measured_without_it(argument):
    run = argument.parent / "given.trec"
    run.write_text("zoos Q0 zoos 1 9.0 x\nzoos Q0 against 2 1.0 x\n")
    ((_, found),) = open_source(recipe(argument, kind="run", path=str(run))).queries()
    assert [(each.doc_id, each.rank) for each in found] == [("against", 1)]
    evaluate = argument.parent / "evaluate.yaml"
    given = {"evaluation": {"run": str(run)}, "data": {"format": "beir", "path": str(argument)}}
    evaluate.write_text(json.dumps({"job": "evaluate", "run_dir": str(argument.parent / "out"), **given}))
    assert cli.main(["evaluate", str(evaluate)]) == 0
    assert "1.0" in (argument.parent / "out" / "metrics.json").read_text()


@pytest.mark.parametrize(
    ("document", "same"),
    [
        (ARGUMENT, True),
        (ARGUMENT.upper().replace(" ", "  \n"), True),
        ("Zoos " + ARGUMENT, True),  # a title in front
        (ARGUMENT.replace("cages", "enclosures"), True),
        (ARGUMENT.removesuffix("for them."), True),  # cut
        (ARGUMENT + " " + ARGUMENT, False),
        ("Zoos are old. " + ARGUMENT + " " + "Nothing else would be right, and everybody who looks sees that.", False),
        ("Buses should be free.", False),
        ("", False),
    ],
)
def test_a_text_is_the_same_as_far_as_its_words_are(document, same):
    assert is_same_text(ARGUMENT, document) is same


@pytest.mark.parametrize(
    ("title", "text", "own"),
    [
        ("society, animals: this house would close all zoos", "Close zoos.", True),  # a title longer than the text
        ("Close zoos", "An abstract that says a lot more than its title, as SCIDOCS has it.", True),
        ("Zoos", "An abstract that says that zoos should close.", False),
    ],
)
def test_the_query_may_be_the_title_or_the_text(title, text, own):
    benchmark = Benchmark("b", [Document("q", text, title)], [Query("q", "close zoos")], {"q": {"other": 1}})
    (query,) = benchmarks.without_themselves(benchmark).queries
    assert query.excluded == (frozenset("q") if own else frozenset())


def test_a_shared_number_or_a_judgement_keeps_a_document(tmp_path):
    corpus = {"1": "flow past a wing", "2": "heat in a plate", "3": "heat in a plate"}
    queries = {"1": "heat in a plate", "2": "flow past a wing", "3": "heat in a plate"}
    folder = beir(tmp_path / "b", corpus, queries, [("1", "2", 1), ("2", "1", 1), ("3", "3", 1)])
    assert [each.excluded for each in benchmarks.load(DataConfig(format="beir", path=str(folder))).queries] == [
        frozenset()
    ] * 3


# ---- queries without a candidate ---------------------------------------------------------


def test_queries_without_a_candidate_are_counted_before_anything_runs(tmp_path):
    folder = beir(tmp_path / "b", {"d": "merge feeds"}, {"q": "feeds", "r": "zebra"}, [("q", "d", 1), ("r", "d", 1)])
    message = "1 of 2 queries have no candidate by BM25, such as 'r': they count 0 in evaluation"
    assert message in job.plan(recipe(folder))["warnings"]


def test_a_job_without_any_candidate_is_refused(tmp_path, capsys):
    folder = beir(tmp_path / "b", {"d": "merge feeds"}, {"q": "zebra"}, [("q", "d", 1)])
    with pytest.raises(UserError, match="BM25 has no candidate for any of the 1 queries: see first_stage.language"):
        job.plan(recipe(folder))
    run = tmp_path / "given.trec"
    run.write_text("other Q0 d 1 1.0 x\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(folder, kind="run", path=str(run)).model_dump(mode="json")))
    for flags in ([], ["--dry-run"]):
        assert cli.main(["rerank", str(path), *flags]) == 2
        assert "has no list for any of the 1 queries of b/test: its 1 query ids are such as" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_s_lists_for_strange_queries_are_counted_but_for_those_of_a_selection(tmp_path):
    folder = beir(
        tmp_path / "b", {"d": "merge feeds"}, {"q": "a", "r": "b", "s": "c"}, [(each, "d", 1) for each in "qrs"]
    )
    run = tmp_path / "given.trec"
    run.write_text("q Q0 d 1 1.0 x\nr Q0 d 1 1.0 x\nz Q0 d 1 1.0 x\n")
    config = recipe(folder, kind="run", path=str(run))
    strange = f"{run}: 1 of its 3 lists are for queries that b/test does not have, such as 'z': they are left out"
    without = f"1 of 3 queries have no candidate by the run {run}, such as 's': they count 0 in evaluation"
    assert job.plan(config)["warnings"] == [strange, without]
    one = config.model_copy(update={"data": config.data.model_copy(update={"max_queries": 1})})
    assert job.plan(one)["warnings"] == [strange]


def test_a_pipeline_is_refused_before_its_first_stage(tmp_path, capsys):
    folder = beir(tmp_path / "b", {"d": "merge feeds"}, {"q": "zebra"}, [("q", "d", 1)])
    path = tmp_path / "recipe.yaml"
    given = {"data": {"format": "beir", "path": str(folder)}, "engine": {"kind": "fake"}}
    path.write_text(json.dumps({"job": "pipeline", "run_dir": str(tmp_path / "run"), **given}))
    for flags in ([], ["--dry-run"]):
        assert cli.main(["pipeline", str(path), *flags]) == 2
        assert "no candidate for any of the 1 queries" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_training_tells_which_queries_of_its_dev_set_find_nothing(tmp_path):
    folder = beir(tmp_path / "b", {"d": "merge feeds"}, {"q": "feeds", "r": "zebra"}, [("q", "d", 1), ("r", "d", 1)])
    train_file = tmp_path / "train.jsonl"
    pair = {"query": "merge feeds", "passage": "heapq.merge", "label": True}
    train_file.write_text("".join(json.dumps(pair | {"query": f"merge {number}"}) + "\n" for number in range(8)))
    config = TrainJob(
        run_dir=str(tmp_path / "run"),
        dev={"data": {"format": "beir", "path": str(folder)}},
        training={"train_file": str(train_file), "target": "direct"},
    )
    assert "dev: 1 of 2 queries have no candidate: they count 0" in choose(config).warnings
    run = tmp_path / "given.trec"
    run.write_text("q Q0 d 1 1.0 x\nz Q0 d 1 1.0 x\n")
    given = config.dev.model_copy(update={"first_stage": FirstStageConfig(kind="run", path=str(run))})
    strange = f"dev: {run}: 1 of its 2 lists are for queries that b/test does not have, such as 'z': they are left out"
    assert strange in choose(config.model_copy(update={"dev": given})).warnings
