"""Every recipe in the repository is one that works."""

import pytest
import yaml

from helpers import REPOSITORY
from limrank.cli import main
from limrank.config.recipe import load_config

RECIPES = sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_loads(path):
    config = load_config(path)
    assert config.job == yaml.safe_load(path.read_text())["job"]
    assert (REPOSITORY / "jobs" / f"{config.job}.py").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_dry_runs_without_gpu_or_hub(path, capsys, offline, tmp_path):
    job = yaml.safe_load(path.read_text())["job"]
    assert main([job, str(path), "--dry-run", "-s", f"run_dir={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    assert f"job: {job}\n" in printed and "# plan\n#   " in printed
    assert not (tmp_path / "run").exists()


PAPERS = [path for path in RECIPES if path.name.startswith("paper-")]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.name)
def test_a_papers_recipe_says_what_is_the_papers_and_what_stands_in(path, capsys, offline):
    first, second = load_config(path).notes
    assert first.startswith(("The paper's", "The ablation")) and second.startswith("Stands in: ")
    assert main([yaml.safe_load(path.read_text())["job"], str(path), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.replace("''", "'").split())
    assert all(" ".join(note.split()) in printed for note in (first, second))


SYNTHESES = sorted((REPOSITORY / "jobs" / "recipes").glob("paper-synthesize*.yaml")) + sorted(
    (REPOSITORY / "jobs" / "recipes").glob("paper-ablation-*.yaml")
)


@pytest.mark.parametrize("path", SYNTHESES, ids=lambda path: path.name)
def test_a_papers_synthesis_dry_runs_on_seeds_that_are_here(path, capsys, offline, tmp_path):
    """Without network, keys or GPU; the built-in personas stand in for Persona Hub."""
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"query": "what slows dough", "passage": "Salt slows it."}\n')
    changes = [f"run_dir={tmp_path / 'run'}", f"synthesis.seeds={seeds}", "synthesis.personas=null"]
    assert main(["synthesize", str(path), "--dry-run", *(part for each in changes for part in ("-s", each))]) == 0
    printed = capsys.readouterr().out
    kinds = load_config(path).synthesis.kinds
    assert f"#   units: at most 1 seeds, {len(kinds)} queries, {2 * len(kinds)} pairs to judge, " in printed
    assert "#   ends: when 30000 examples are kept" in printed
    prompt = printed.partition("# first prompt\n")[2]
    assert "Somebody searched for: what slows dough\nA passage that answered: Salt slows it." in prompt
    assert ("of their daily life" in prompt) == (kinds[0] == "daily")


def test_the_papers_synthesizer():
    own = load_config(REPOSITORY / "jobs/recipes/paper-synthesize-openai.yaml")
    roles = own.roles()
    assert (roles["writer"].model.id, roles["judge"].model.id) == ("gpt-4o", "deepseek-reasoner")
    assert {role.engine.kind for role in roles.values()} == {"openai"}
    assert roles["judge"].engine.api_key_env == "DEEPSEEK_API_KEY"
    stand_in = load_config(REPOSITORY / "jobs/recipes/paper-synthesize.yaml")
    for recipe in (own, stand_in):
        assert recipe.synthesis.judge_by == "answer" and recipe.scoring.think_tokens == 8192
        assert (recipe.synthesis.size, recipe.synthesis.kinds) == (20000, ("daily", "expert"))
    assert stand_in.synthesis == own.synthesis
    # One that reasons before it answers, asked by its chat template.
    assert "R1" in stand_in.roles()["judge"].model.id


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("no-daily", "kinds", ("expert",)), ("no-expert", "kinds", ("daily",)), ("no-chains", "chains", False)],
)
def test_an_ablation_changes_one_key(name, key, value):
    whole = load_config(REPOSITORY / "jobs/recipes/paper-synthesize.yaml")
    ablated = load_config(REPOSITORY / f"jobs/recipes/paper-ablation-{name}.yaml")
    synthesis = whole.synthesis.model_copy(update={key: value})
    own = {"run_dir": ablated.run_dir, "notes": ablated.notes, "synthesis": synthesis}
    assert ablated == whole.model_copy(update=own) and ablated.notes[1] == whole.notes[1]
    assert ablated.run_dir != whole.run_dir


def test_the_papers_settings():
    train = load_config(REPOSITORY / "jobs/recipes/paper-train.yaml")
    settings = train.training
    assert train.model.id == "Qwen/Qwen2.5-7B" and train.seed == 12345
    assert (settings.lora_rank, settings.lora_alpha, settings.epochs) == (32, 64, 7)
    assert (settings.learning_rate, settings.warmup_ratio, settings.cutoff_tokens) == (3e-5, 0.03, 2500)
    assert (settings.batch_size, settings.gradient_accumulation, settings.save_steps) == (4, 8, 250)
    assert (settings.method, settings.target, settings.objective) == ("lora", "think", "label")
    assert (settings.lora_targets, settings.lora_embeddings) == ((), "all")
    assert (train.model.dtype, settings.validation_share, settings.gradient_checkpointing) == ("bfloat16", 0.01, True)
    for depth in (10, 100):
        rerank = load_config(REPOSITORY / f"jobs/recipes/paper-rerank-depth{depth}.yaml")
        assert rerank.first_stage.depth == depth
        assert (rerank.scoring.mode, rerank.scoring.think_tokens, rerank.model.max_model_len) == ("think", 8192, 16000)


@pytest.mark.parametrize(
    ("recipe", "benchmark", "queries", "first_stage"),
    [
        ("depth10", "bright/biology", "gpt4_reason", ("bm25", 10)),
        ("depth100", "bright/biology", "gpt4_reason", ("bm25", 100)),
        ("followir", "followir/core17", None, ("published", 100)),
        ("litsearch", "litsearch", None, ("bm25", 100)),
    ],
)
def test_the_papers_first_stages(recipe, benchmark, queries, first_stage):
    config = load_config(REPOSITORY / f"jobs/recipes/paper-rerank-{recipe}.yaml")
    assert (config.data.name, config.data.revision, config.data.first_stage_queries) == (benchmark, "mteb", queries)
    assert (config.first_stage.kind, config.first_stage.depth) == first_stage
    assert config.first_stage.query_weights == ("bm25" if queries else "count")
