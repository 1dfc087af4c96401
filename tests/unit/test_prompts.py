"""Prompts are data: they have placeholders and conditions, and nothing in them runs or loops for ever."""

import time

import pytest

from limrank import prompts
from limrank.cli import main
from limrank.errors import UserError


def test_placeholders_conditions_and_filters_of_text():
    text = "{{ who | upper }}{% if kind == 'a' and not more %} one{% elif more %} two{% else %} three{% endif %}"
    assert prompts.render(text, who="ada", kind="a", more="") == "ADA one"
    assert prompts.render(text, who="ada", kind="b", more="x") == "ADA two"
    assert prompts.render(text, who="ada", kind="b", more="") == "ADA three"
    assert (
        prompts.render("{{ a | trim }}{{ b | default('-') }}{# no #}{% raw %}{{ c }}{% endraw %}", a=" x ")
        == "x-{{ c }}"
    )


@pytest.mark.parametrize(
    "held", ["{{ query }}", "{{ cycler.__init__ }}", "{% for a in b %}", "{# gone #}", "{% raw %}"]
)
def test_what_fills_a_placeholder_stays_text(held):
    assert prompts.render("Q: {{ query }}{% if query %}.{% endif %}", query=held) == f"Q: {held}."


@pytest.mark.parametrize(
    "text",
    [
        "{{ cycler.__init__.__globals__.os.popen('touch RAN').read() }}",
        "{{ query.__class__.__mro__ }}",
        "{{ query['__class__'] }}",
        "{{ query | attr('__class__') }}",
        "{{ ['a'] | map(attribute='__class__') | list }}",
        "{{ query.format(query) }}",
        "{{ self.__init__ }}",
        "{{ namespace(a=1) }}",
        "{{ lipsum(n=10000000) }}",
        "{{ query }}{% for i in range(10**9) %}a{% endfor %}",
        '{{ "a" * 10**9 }}',
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ query | center(1000000000) }}",
        "{{ query | indent(1000000000) }}",
        "{{ query | replace('', query) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ query ~ query }}",
        "{{ query }}{% include 'relevance.txt' %}",
        "{{ query }}{% import 'relevance.txt' as a %}",
        "{{ query }}{% extends 'relevance.txt' %}",
        "{{ query }}{% set query = query %}",
        "{{ query }}{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ query }}{% block a %}{{ self.a() }}{% endblock %}",
        "{{ query }}{% with a = query %}{% endwith %}",
        "{{ query is callable }}",
        "{{ query }}{% if %}",
        "{{ query",
        "{{ no_such_place }}",
        "{{ query" + ")" * 3,
        "{{" + "(" * 100_000 + "query" + ")" * 100_000 + "}}",
        "{{" + "not " * 100_000 + "query }}",
        "{{ query }}" + "{% if query %}" * 3000 + "{% endif %}" * 3000,
        "{{ query }}" * 100_000,
        "{{ query }}" + "a" * (2 << 20),
        "{{ " + "9" * 5000 + " }}",
        "{{ query }}\\x00{% ",
    ],
    ids=lambda text: text[:40],
)
def test_nothing_of_a_prompt_runs_or_goes_on(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with pytest.raises(UserError, match="^prompt ") as raised:
        prompts.render(text, query="a query", passage="a passage")
    assert time.monotonic() - began < 10
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="^prompt "):
        prompts.check_placeholders(text, {"query", "passage"})


def test_a_prompt_that_grows_with_its_fields_has_an_end(monkeypatch):
    monkeypatch.setattr(prompts, "LONGEST_FILLED", 1000)
    assert len(prompts.render("{{ a }}" * 10, a="b" * 100)) == 1000
    with pytest.raises(UserError, match="becomes longer than 1000 characters"):
        prompts.render("{{ a }}" * 11, a="b" * 100)


@pytest.mark.parametrize("step", ["query", "chain", "describe", "passage", "judge"])
def test_a_recipes_prompt_runs_no_command_even_dry(step, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    ran = tmp_path / "RAN"
    text = f"{{{{ cycler.__init__.__globals__.os.popen('touch {ran}').read() }}}}"
    recipe.write_text(
        f"job: synthesize\nrun_dir: {tmp_path}/run\nengine: {{kind: fake}}\nscoring: {{mode: direct}}\n"
        f'synthesis:\n  seeds: pydocs\n  judge_by: answer\n  prompts:\n    {step}: "{text}"\n'
    )
    assert main(["synthesize", str(recipe), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "a call (a()) is not for prompts" in error
    assert not ran.exists()
