"""The sentence that a reranker finds a query in: BRIGHT's task sentences, and a person's own."""

import pyarrow as pa
import pytest
import yaml

from helpers import REPOSITORY
from helpers.beir import write_beir
from helpers.units import repository, silent
from limrank import cli
from limrank.config import DataConfig, RerankJob
from limrank.data import benchmarks, hub_benchmarks
from limrank.data.beir import read_queries
from limrank.errors import UserError
from limrank.reranking import job
from limrank.reranking.source import open_source, units

pytestmark = pytest.mark.usefixtures("private_cache")

RECIPES = REPOSITORY / "jobs" / "recipes"

ASK = "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"

DEFAULT = (
    "Query: Can you find background information about the concepts used to answer the question:\n"
    "\n"
    " Why? \n"
    "\n"
    "A passage is relevant if it contains background information about a **sub-concept** that someone might cite/link to "
    "when answering the above question.\n"
)
THEOREM = "Query: Find a passage which uses the same mathematical process as this one:  Why? \n"
TASKS = {
    "biology": DEFAULT,
    "earth_science": DEFAULT,
    "economics": DEFAULT,
    "psychology": DEFAULT,
    "robotics": DEFAULT,
    "stackoverflow": DEFAULT,
    "sustainable_living": DEFAULT,
    "leetcode": (
        "Query: I am looking to find different problems that share similar data structures (of any kind) or algorithms "
        "(e.g. DFS, DP, sorting, traversals, etc.). I am looking for problems that share one or both of these "
        "similarities to this:\n"
        "    \n"
        " Why? \n"
        "\n"
        "Does this passage share any similarities? e.g. if there was a textbook on leetcode problems, this would be in "
        "the same book even though it could be in a different chapter. \n"
        "\n"
        "\n"
        "\n"
    ),
    "pony": (
        "Query: I will use the programming language pony. Problem:  Why? \n"
        "\n"
        "But to solve the problem above, I need to know things about pony. A passage is relevant if it contains docs "
        "that match **any** part (even basic parts) of the code I will have to write for the above program.\n"
    ),
    "aops": (
        "Query: Find different but similar math problems to  Why? \n"
        "\n"
        "A document is relevant if it uses the same class of functions and shares **any** overlapping techniques.\n"
    ),
    "theoremqa_questions": THEOREM,
    "theoremqa_theorems": THEOREM,
}
"""The query part of each prompt, for the query `` Why? ``, as rank1's prompts.py has it."""


@pytest.fixture
def folder(tmp_path):
    return write_beir(tmp_path / "data")


def bright(folder, subset):
    row = {
        "query": " Why? ",
        "reasoning": "",
        "id": "0",
        "excluded_ids": ["N/A"],
        "gold_ids_long": [],
        "gold_ids": ["x"],
    }
    documents = [{"id": "x", "content": " Why yeast. "}, {"id": "y", "content": "passage similar find problems query"}]
    rewritten = [{"id": "0", "query": "yeast"}]
    configs = {"examples": [row], "documents": documents, "gpt4_reason": rewritten}
    return repository(folder, {config: {subset: rows} for config, rows in configs.items()})


def planned(data, **sections):
    config = RerankJob(run_dir="unused", data=data, engine={"kind": "fake"}, **sections)
    source = open_source(config)
    source.check()
    return config, [unit for unit, _ in units(source, config.scoring)]


def prompt_of(config):
    return job.plan(config)["first_prompt"]


def test_there_is_a_task_for_each_subset():
    assert TASKS.keys() == set(hub_benchmarks.BRIGHT_SUBSETS)


@pytest.mark.parametrize("subset", hub_benchmarks.BRIGHT_SUBSETS)
def test_the_full_prompt_of_each_of_bright_s_subsets(tmp_path, subset):
    data = {"format": "hub", "name": f"bright/{subset}", "path": bright(tmp_path, subset)}
    config, (unit,) = planned(data)
    assert prompt_of(config) == f"{ASK}{TASKS[subset]}Passage:  Why yeast. \n<think>"
    # BM25 was asked the query alone: the second document shares words with the task only.
    assert [each["doc_id"] for each in unit["candidates"]] == ["x"]


@pytest.mark.parametrize("name", ["litsearch", "followir/core17", "followir/robust04", "followir/news21"])
def test_the_other_benchmarks_have_no_task(name):
    assert benchmarks.query_template(DataConfig(format="hub", name=name)) == ""


def test_a_task_can_be_left_out_or_replaced(tmp_path):
    data = {"format": "hub", "name": "bright/pony", "path": bright(tmp_path, "pony")}
    config, _ = planned(data | {"query_template": "{{ query }}"})
    assert f"Query:  Why? \n{'Passage'}" in prompt_of(config)
    config, _ = planned(data | {"query_template": "bright_aops"})
    assert "similar math problems to  Why? \n" in prompt_of(config)


def test_any_recipe_can_have_one(folder, tmp_path):
    written = tmp_path / "task.txt"
    written.write_text("Find help for: {{query}}\n")
    for template in (str(written), "Find help for: {{query}}"):
        config, found = planned({"format": "beir", "path": str(folder), "query_template": template})
        plain, bare = planned({"format": "beir", "path": str(folder)})
        assert [unit["query"] for unit in found] == [f"Find help for: {unit['query']}" for unit in bare]
        # The first stage finds the same, and evaluation has the query as it is.
        assert [unit["candidates"] for unit in found] == [unit["candidates"] for unit in bare]
        assert prompt_of(config) == prompt_of(plain).replace("Query: ", "Query: Find help for: ")


def test_a_given_run_is_evaluated_without_one(folder, tmp_path):
    """What a reranker would be asked plays no part."""
    (tmp_path / "a.trec").write_text("q1 Q0 d1 1 9 tag\n")
    recipe = tmp_path / "evaluate.yaml"
    data = {"format": "beir", "path": str(folder), "query_template": "no such prompt"}
    evaluation = {"run": str(tmp_path / "a.trec")}
    values = {"job": "evaluate", "run_dir": str(tmp_path / "run"), "data": data, "evaluation": evaluation}
    recipe.write_text(yaml.safe_dump(values))
    assert cli.main(["evaluate", str(recipe)]) == 0


def test_the_run_directory_keeps_the_queries_as_they_are(folder, tmp_path):
    data = {"format": "beir", "path": str(folder), "query_template": "Find: {{ query }}"}
    config = RerankJob(run_dir=str(tmp_path / "run"), data=data, scoring={"mode": "none"})
    job.run(config, address="local", progress=silent())
    kept = {query.query_id: query.text for query in read_queries(tmp_path / "run" / "queries.jsonl")}
    assert kept == {query.query_id: query.text for query in benchmarks.load(config.data).queries}


def test_pairs_have_one_too(tmp_path):
    import pyarrow.parquet as pq

    row = {"query_id": "q", "query": "why", "instruction": "Say it.", "doc_id": "d", "text": "Because."}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    data = {"format": "pairs", "path": str(tmp_path / "pairs.parquet"), "query_template": "Find: {{ query }}!"}
    config, (unit,) = planned(data)
    assert (unit["query"], unit["instruction"]) == ("Find: why Say it.!", "")
    assert prompt_of(config) == f"{ASK}Query: Find: why Say it.!\nPassage: Because.\n<think>"


def test_the_hash_covers_it(folder):
    data = {"format": "beir", "path": str(folder)}

    def hashed(**more):
        config = RerankJob(run_dir="unused", data=data | more)
        return job.rows_hash(config, open_source(config))

    assert len({hashed(), hashed(query_template="A {{ query }}"), hashed(query_template="B {{ query }}")}) == 3


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no such prompt", "data.query_template: prompt no such prompt: no such file, and not one of"),
        ("{% if query %}{{ query }}{% endif %}", "data.query_template: has {% … %}"),
        ("{{ question }}", "has no {{ query }}"),
        ("{{ query }} {{ passage }}", "{{ passage }} is no placeholder of it"),
        ("{{ query.__class__ }}", "has no {{ query }}"),
    ],
)
def test_one_that_cannot_be_meant_is_refused(folder, tmp_path, capsys, template, message):
    recipe = tmp_path / "recipe.yaml"
    data = {"format": "beir", "path": str(folder), "query_template": template}
    recipe.write_text(yaml.safe_dump({"job": "rerank", "run_dir": str(tmp_path / "run"), "data": data}))
    assert cli.main(["rerank", str(recipe), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "Traceback" not in line
    with pytest.raises(UserError):
        benchmarks.query_template(DataConfig(**data))


# ---- the paper's recipes ---------------------------------------------------------------


def dry_run(capsys, recipe, *settings):
    options = [part for setting in settings for part in ("-s", setting)]
    assert cli.main(["rerank", str(recipe), *options, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("depth", [10, 100])
@pytest.mark.parametrize("subset", ["pony", "leetcode", "biology"])
def test_the_paper_s_recipe_prints_the_paper_s_prompt(tmp_path, capsys, depth, subset):
    local = [f"data.name=bright/{subset}", f"data.path={bright(tmp_path, subset)}", "data.revision=null"]
    printed = dry_run(capsys, RECIPES / f"paper-rerank-depth{depth}.yaml", *local)
    assert printed.endswith(f"# first prompt\n{ASK}{TASKS[subset]}Passage:  Why yeast. \n<think>\n")
    # What is the paper's, and what stands in.
    assert "notes:\n- 'The paper''s" in printed and "Stands in:" in printed


@pytest.mark.parametrize(
    ("recipe", "query"),
    [
        ("paper-rerank-depth10", DEFAULT.replace(" Why? ", "{{ query }}")),
        ("paper-rerank-followir", "Query: {{ query }}\n"),
        ("paper-rerank-litsearch", "Query: {{ query }}\n"),
    ],
)
def test_without_the_hub_the_prompt_s_form_is_printed(monkeypatch, capsys, recipe, query):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    printed = dry_run(capsys, RECIPES / f"{recipe}.yaml")
    assert printed.endswith(f"# first prompt\n{ASK}{query}Passage: {{{{ passage }}}}\n<think>\n")
    assert "not known on this machine" in printed
