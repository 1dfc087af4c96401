import asyncio
import json
import random
import re
from dataclasses import asdict

import pyarrow as pa
import pytest

from helpers.units import Page, fake_engine, words
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.records import Difficulty, Persona, QueryBrief, QueryKind, Seed, synthesis_row_schema
from limrank.synthesis import card
from limrank.synthesis.report import CHARACTERS, render
from limrank.synthesis.select import Selection, select
from limrank.synthesis.stats import tally
from limrank.synthesis.synthesizer import SynthesisInputs, synthesize_seed

RUN = {
    "seeds": 3,
    "queries": 6,
    "failed": 1,
    "writer": "a/writer",
    "judge": "a/judge",
    "agreement": "verdict",
    "tokens": {"prompt": 12345, "generated": 678},
    "steps": {
        "query": {"prompt": 10000, "cached_prompt": 4000, "generated": 600},
        "judge": {"prompt": 2345, "cached_prompt": 0, "generated": 78},
    },
}


def row(name, label=True, score=0.9, reason=None, **fields):
    """An example of the query ``s1/daily``: kept, unless there is a reason."""
    return {
        "example_id": name,
        "seed_id": "s1",
        "persona_id": "p1",
        "query_kind": "daily",
        "domain": "health",
        "difficulty": "direct",
        "query": "a query of five words",
        "instruction": None,
        "passage": "word " * 30,
        "passage_role": "positive" if label else "hard_negative",
        "label": label,
        "reasoning": None if score is None else "a chain",
        "judge_score": score,
        "verdict": None if score is None else score > 0.5,
        "kept": reason is None,
        "reject_reason": reason,
    } | fields


def unread(name):
    """A query that could not be read."""
    nothing = dict.fromkeys(("domain", "difficulty", "query", "passage", "passage_role", "label"))
    return row(name, score=None, reason="unparsable", **nothing)


ROWS = [
    row("a"),
    row("b", label=False, score=0.05, domain=" Health", passage="word " * 300),
    row("c", query_kind="expert", query="word " * 45, score=1.0, difficulty="multi_hop", domain="tax law"),
    row("d", score=0.3, reason="judge_disagrees"),
    row("e", label=False, score=0.6, reason="judge_disagrees"),
    row("f", label=False, score=None, reason="length", passage="too short"),
    row("g", score=None, reason="judge_failed"),
    unread("h"),
]


def page(rows, selection=None, **changed):
    return render("A <run>", RUN | tally(rows, selection) | changed, rows)


# ---- counts --------------------------------------------------------------------------


def test_what_is_counted():
    assert tally(ROWS) == {
        "examples": 8,
        "judged": 5,
        "kept": 3,
        "kept_positive": 2,
        "kept_queries": 2,
        "kept_queries_with_both": 1,
        "contaminated_seeds": 0,
        "rejected": {"judge_disagrees": 2, "length": 1, "judge_failed": 1, "unparsable": 1},
        "judge_score": {
            "true": dict(zip(SCORE_BINS, [0, 0, 0, 1, 0, 0, 0, 0, 0, 2], strict=True)),
            "false": dict(zip(SCORE_BINS, [1, 0, 0, 0, 0, 0, 1, 0, 0, 0], strict=True)),
        },
        "query_kind": {"daily": 2, "expert": 1},
        "difficulty": {"direct": 2, "multi_hop": 1},
        "passage_role": {"positive": 2, "hard_negative": 1},
        "domains": {"health": 2, "tax law": 1},
        "query_words": {
            "min": 5,
            "median": 5,
            "max": 45,
            "bins": {"0–9": 2, "10–19": 0, "20–29": 0, "30–39": 0, "40–49": 1},
        },
        "passage_words": {
            "min": 30,
            "median": 30,
            "max": 300,
            "bins": {"25–49": 2} | {f"{start}–{start + 24}": 0 for start in range(50, 250, 25)} | {"250+": 1},
        },
        "selected": None,
    }


SCORE_BINS = [
    "0.0–0.1",
    "0.1–0.2",
    "0.2–0.3",
    "0.3–0.4",
    "0.4–0.5",
    "0.5–0.6",
    "0.6–0.7",
    "0.7–0.8",
    "0.8–0.9",
    "0.9–1.0",
]


def test_what_is_selected_is_counted_beside_it():
    selected = tally(ROWS, Selection(["a", "b"], 5, 1))["selected"]
    assert (selected["examples"], selected["asked"]) == (2, 5)
    assert selected["shortfall"].startswith("2 examples and not 5")
    assert selected["passage_role"] == {"positive": 1, "hard_negative": 1}
    assert tally(ROWS, Selection([], 5, 0))["selected"]["query_words"] is None


@pytest.mark.parametrize("number", range(10))
def test_counts_add_up(number):
    chance = random.Random(number)
    rows = [{**chance.choice(ROWS), "example_id": str(place)} for place in range(200)]
    kept = [each["example_id"] for each in rows if each["kept"]]
    stats = tally(rows, Selection(kept[:20], 20, 10))
    assert json.loads(json.dumps(stats)) == stats
    assert stats["kept"] + sum(stats["rejected"].values()) == stats["examples"] == 200
    assert stats["judged"] == sum(sum(bins.values()) for bins in stats["judge_score"].values())
    for makeup, count in ((stats, len(kept)), (stats["selected"], 20)):
        for name in ("query_kind", "difficulty", "passage_role", "domains"):
            assert sum(makeup[name].values()) == count
        for name in ("query_words", "passage_words"):
            assert sum(makeup[name]["bins"].values()) == count


# ---- the page ------------------------------------------------------------------------


def test_the_page():
    html = page(ROWS)
    text = words(html)
    assert Page(html).loaded == []
    assert "url(" not in html and "@import" not in html
    assert text.startswith("A <run> A <run> 3 of 8 examples were kept, 2 of them relevant. From seeds to examples ")
    assert (
        "seeds 3 queries planned 6 2.0 a seed examples 8 1.3 a planned query judged 5 62 % of the examples "
        "kept 3 60 % of the judged Why" in text
    )
    assert "selected" not in text
    assert re.search(r"judge_disagrees 2 a query of five words (positive|hard_negative), judge 0\.[36]00: word", text)
    assert "length 1 a query of five words hard_negative: too short f" in text
    assert "unparsable 1 no query could be read h" in text
    assert "Query kind daily 2 expert 1 Difficulty direct 2 multi_hop 1" in text
    assert "Words of the query, median 5 0–9 2 10–19 0" in text
    assert "0.9–1.0 2 0" in text
    assert (
        "judge a/judge, agreement by verdict tokens 12,345 in prompts, 678 generated requests that could not run 1"
        in text
    )


def priced(**costs):
    return {name: step | ({"cost": costs[name]} if name in costs else {}) for name, step in RUN["steps"].items()}


def test_tokens_and_cost_by_step():
    table = "query 10,000 4,000 600 judge 2,345 0 78 total 12,345 4,000 678 What was run"
    assert f"Tokens by step Step In prompts of them cached Generated {table}" in words(page(ROWS))
    assert (
        "Tokens by step Costs are in the currency of the recipe's prices. "
        "Step In prompts of them cached Generated Cost query 10,000 4,000 600 1,234.5000 judge 2,345 0 78 0.0001 "
        "total 12,345 4,000 678 1,234.5001 What was run"
    ) in words(page(ROWS, steps=priced(query=1234.5, judge=0.0001)))
    partly = words(page(ROWS, steps=priced(query=0.5)))
    assert "The total leaves out steps without a price. Step" in partly
    assert "600 0.5000 judge 2,345 0 78 – total 12,345 4,000 678 0.5000 What" in partly
    mined = words(page(ROWS, steps={"mine": RUN["steps"]["judge"]}))
    assert "Tokens by step In mine the reranker picks passages of the corpus" in mined and "Costs" not in mined
    assert "Tokens by step" not in words(page(ROWS, steps={}))


def test_the_card_lists_tokens_and_cost_by_step():
    facts = {"seed_source": "seeds.jsonl", "license": None, "prompts": {}}

    def shown(steps):
        return card.render(RUN | tally(ROWS) | facts | {"steps": steps}, [])

    assert (
        "\n## Tokens by step\n\n"
        "- query: 10,000 in prompts (4,000 of them cached), 600 generated\n"
        "- judge: 2,345 in prompts (0 of them cached), 78 generated, cost 0.2500\n"
        "- total: 12,345 in prompts (4,000 of them cached), 678 generated, cost 0.2500\n\n"
        "Costs are in the currency of the recipe's prices. The total leaves out steps without a price.\n\n"
        "## Prompts\n"
    ) in shown(priced(judge=0.25))
    assert "678 generated\n\n## Prompts\n" in shown(RUN["steps"])
    assert "Tokens by step" not in shown({})


def test_little_is_not_shown_as_nothing():
    assert "kept 1 < 1 % of the judged" in words(page([row("a")], judged=201))
    assert "kept 1 1 % of the judged" in words(page([row("a")], judged=199))
    facts = RUN | tally([]) | {"seed_source": "seeds.jsonl", "license": None, "prompts": {}}
    text = card.render(facts | {"examples": 201, "kept": 1, "rejected": {"leaks": 200, "length": 0}}, [])
    assert "1 of 201 examples were kept (< 1%), " in text
    assert "- leaks: 200 (100%)\n- length: 0 (0%)\n" in text


def test_the_card_tells_names_with_a_comma_apart():
    facts = {"seed_source": "seeds.jsonl", "license": None, "prompts": {}}
    rows = [row("a", domain="tax, law,"), row("b", domain="tax, law,"), row("c", domain="work")]
    assert "\n    domains: tax, law, (2), work (1)\n" in card.render(RUN | tally(rows) | facts, [])


def test_a_rejected_example_to_read_in_full_has_a_passage_where_any_has():
    def read(rows):
        return words(page(rows)).partition("Rejected, to read in full")[2]

    queries = [row(f"q{number}", reason="leaks", score=None, passage=None) for number in range(50)]
    assert read(queries) == ""
    for rows in ([*queries, row("p", reason="leaks")], [row("p", reason="leaks"), *queries]):
        assert "rejected: leaks p word word" in read(rows)
    assert "rejected: leaks p word word" in read([row("p", reason="leaks")])


def test_how_a_ranking_judge_agrees_is_said_beside_its_scores():
    assert "Kept by ranking" not in words(page(ROWS))
    assert "that was intended. Kept by ranking, whatever the score: a positive" in words(
        page(ROWS, agreement="ranking")
    )


def test_what_a_rejected_text_repeats_is_reported_beside_it():
    detail = "bench, query 7: 100% of its words"
    text = words(page([row("a", reason="contaminated", reject_detail=detail, passage="of a benchmark")]))
    assert (
        f"contaminated 1 a query of five words positive, judge 0.900: of a benchmark contaminated: {detail} a" in text
    )
    assert f"rejected: contaminated ( {detail} ) a of a benchmark" in text
    without = words(page([row("a", reason="contaminated", reject_detail=None)]))
    assert "None" not in without and "contaminated:" not in without


def test_what_is_selected_is_shown_beside_what_is_kept():
    html = page(ROWS, Selection(["a", "b"], 2, 1))
    text = words(html)
    assert "2 of them relevant. Selected for training: 2 examples." in text
    assert "selected 2 67 % of the kept" in text
    assert "daily 2 2 expert 1 0" in text
    # Of the longest bar's width, and the selected part of a bar of its own.
    assert html.count('<span style="width: 50.0%"><span style="width: 0.0%"></span></span>') >= 2
    short = words(page(ROWS, Selection(["a", "b"], 5, 1)))
    assert (
        "Selected for training: 2 examples and not 5: no other query has a kept positive and a kept negative." in short
    )


def test_page_and_card_say_by_what_the_selected_are_far_apart():
    facts = RUN | tally(ROWS, Selection(["a", "b"], 2, 1)) | {"seed_source": "s", "license": None, "prompts": {}}
    for embedding in ("by words", "owner/minilm"):
        shown = card.render(facts | {"embedding": embedding}, [])
        assert f"\n- embedding of the queries, which were chosen far apart: {embedding}\n" in shown
        assert f" embedding of the queries {embedding} " in words(page(ROWS, embedding=embedding))
    assert "embedding" not in card.render(facts, []) + page(ROWS)
    assert "without a chain of thought before them" in card.render(facts | {"chains": False}, [])
    assert "chain of thought before" not in card.render(facts, [])


def test_a_kept_query_is_shown_with_all_its_passages_in_full():
    text = words(page(ROWS))
    kept = text[text.index("Kept, to read in full") : text.index("Rejected, to read in full")]
    assert kept.count("a query of five words") == 1
    assert re.search(
        r"daily · direct · health a query of five words positive, judge 0\.900 a (word ){30}What the", kept
    )
    assert re.search(r"hard_negative, judge 0\.050 b (word ){300}What the judge thought a chain", kept)
    rejected = text[text.index("Rejected, to read in full") :]
    assert "rejected: judge_disagrees" in rejected and "rejected: length f too short" in rejected
    assert "unparsable" not in rejected


def test_examples_do_not_depend_on_the_order_of_the_rows():
    rows = [
        row(f"{number}/{label}", label, seed_id=f"s{number}", reason=number % 3 == 0 and "judge_disagrees" or None)
        for number in range(40)
        for label in (True, False)
    ]
    html = page(rows)
    assert page(random.Random(1).sample(rows, len(rows))) == html
    assert html.count('<p class="meta">daily') == 3 + 1


def test_generated_text_is_shown_as_text():
    hostile = """<script>alert('x')</script><img src=x onerror="y"></p>&amp; {{ 7 * 7 }} \x00\x1b[1m exe\u202ecod.txt"""
    shown = """<script>alert('x')</script><img src=x onerror="y"></p>&amp; {{ 7 * 7 }} ⟨U+0000⟩⟨U+001B⟩[1m exe⟨U+202E⟩cod.txt"""
    names = ("query", "passage", "reasoning", "domain", "instruction", "example_id", "reject_detail")
    fields = dict.fromkeys(names, hostile)
    html = page([row("a", **fields), row("b", reason="judge_disagrees", **fields)], writer="<b>a writer</b>")
    parsed = Page(html)
    assert parsed.loaded == []
    assert not re.search(r"<(script|img|b>)", html)
    assert all(character not in html for character in "\x00\x1b\u202e")
    # The domain and a short example are cut.
    assert words(html).count(shown) >= 10


def test_right_to_left_text_keeps_to_itself():
    html = page([row("a", passage="שלום עולם")])
    assert '<p class="said" dir="auto">שלום עולם</p>' in html


def test_long_texts_are_cut_with_a_mark():
    html = page([row("a", passage="x" * (CHARACTERS + 1234)), row("b", reason="length", passage="y" * 500)])
    text = words(html)
    assert "x" * (CHARACTERS - 1) + "… 1,234 more characters are in the run's rows." in text
    assert "x" * CHARACTERS not in text
    assert "y" * 159 + "… b" in text
    assert "y" * 500 + " " in text


def test_only_the_most_frequent_domains_have_a_bar():
    rows = [
        row(f"{number}/{each}", domain=f"domain {number:02}") for number in range(20) for each in range(21 - number)
    ]
    text = words(page(rows))
    assert "domain 14 7 5 more 20 Words" in text
    assert len(rows) == sum(range(2, 22))


def test_nothing_at_all():
    text = words(page([], seeds=0, queries=0, steps={}))
    assert "There are no examples: nothing was written." in text
    assert "seeds 0 queries planned 0 examples 0 judged 0 kept 0 What was run" in text


def test_nothing_kept():
    text = words(page(ROWS[3:]))
    assert "Nothing was kept: all 5 examples were rejected, for the reasons below." in text
    assert "kept 0 0 % of the judged" in text
    assert "What was kept" not in text and "Kept, to" not in text
    assert "Rejected, to read in full" in text
    assert "The judge's scores" in text
    assert "The judge's scores" not in words(page(ROWS[5:]))


def test_nothing_selected():
    text = words(page(ROWS[:1], Selection([], 10, 0)))
    assert "They all have one label" in text
    assert "Selected for training: 0 examples and not 10: no query has a kept positive and a kept negative." in text


def test_the_rows_of_a_run():
    nurse = Persona("p1", "a nurse on night shift")
    briefs = [QueryBrief(kind, nurse, Difficulty.DIRECT) for kind in QueryKind]
    inputs = SynthesisInputs(SynthesisConfig(agreement="ranking"), ScoringConfig(mode="direct"), seed=7)

    async def synthesize():
        engines = dict.fromkeys(("writer", "judge"), fake_engine())
        seeds = [Seed(f"s{number}", f"query {number}", f"passage {number}") for number in range(10)]
        return await asyncio.gather(*(synthesize_seed(seed, briefs, (), engines, inputs) for seed in seeds))

    rows = [asdict(example) for outcome in asyncio.run(synthesize()) for example in outcome.examples]
    read = pa.Table.from_pylist(rows, schema=synthesis_row_schema()).to_pylist()
    selection = select(read, 6, seed=7)
    assert selection.shortfall is None
    assert select(rows, 6, seed=7) == selection
    assert tally(rows, selection) == tally(read, selection)
    html = page(read, selection)
    assert page(rows, selection) == html
    assert "Selected for training: 6 examples." in words(html)
