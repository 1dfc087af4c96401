"""A few seeds, step by step."""

import asyncio
import json
import re

import pytest

from helpers.synthesis import (
    synthesize,
    with_fault,
    with_settings,
    write_benchmark,
)
from helpers.units import fake_engine
from limrank.errors import EngineError
from limrank.synthesis import job
from limrank.synthesis.plan import (
    read_brief,
    read_inputs,
    units,
)
from limrank.synthesis.preview import Traced
from limrank.synthesis.synthesizer import SynthesisInputs


def previewed(config, count=1):
    shown = []
    job.preview(config, count, shown.append)
    return "\n".join(shown)


def test_a_preview_shows_every_step_and_writes_nothing(config, tmp_path):
    text = previewed(config)
    for part in ("# seed s1", "query: merge sorted lists", "## query", "## describe", "## judge", "→ p(true) 0."):
        assert part in text
    assert text.count("## passage") == 4
    assert "s1/daily/" in text and "s1/expert/" in text and "# seed s2" not in text
    assert text.count("Duplicate queries") == 1
    assert text.endswith("Duplicate queries are found, and rejected, only in a whole run.")
    assert not (tmp_path / "run").exists()


def test_a_preview_reports_a_contaminated_seed_and_takes_the_next(config, tmp_path):
    decontaminate = (write_benchmark(tmp_path / "bench", "Merge sorted lists!"),)
    text = previewed(with_settings(config, decontaminate=decontaminate))
    first, second = text.index("# seed s1"), text.index("# seed s2")
    assert text[first:second].endswith("\n\ncontaminated: bench, query 7: 100% of its words\n\n")
    assert text[second:].count("## query") == 2


@pytest.mark.parametrize("repeated", ["query", "passage"])
def test_a_preview_keeps_nothing_that_repeats_a_benchmark(config, tmp_path, repeated):
    config = with_settings(config, agreement="ranking")
    unit = next(units(config, read_inputs(config)))
    inputs = SynthesisInputs(config.synthesis, job.judging(config), config.seed)
    examples = synthesize(briefs=list(map(read_brief, unit["briefs"])), inputs=inputs).examples
    kept = next(each for each in examples if each.kept)
    message = f"{kept.example_id}: rejected: contaminated (bench, "
    assert f"{kept.example_id}: kept" in previewed(config)
    benchmark = (
        write_benchmark(tmp_path / "bench", kept.query)
        if repeated == "query"
        else write_benchmark(tmp_path / "bench", "unlike anything", document=kept.passage)
    )
    text = previewed(with_settings(config, decontaminate=(benchmark,)))
    assert message + ("query 7: 100%" if repeated == "query" else "document d: 100%") in text
    assert f"{kept.example_id}: kept" not in text


def test_a_preview_says_which_benchmarks_it_cannot_check(config, tmp_path):
    folder = write_benchmark(tmp_path / "bench", "unlike anything in these seeds")
    (tmp_path / "bench" / "corpus.jsonl").unlink()
    (warning,) = read_inputs(with_settings(config, decontaminate=(folder,))).benchmarks.warnings
    assert f"\nwarning: {warning}\n" in previewed(with_settings(config, decontaminate=(folder,)))


def test_a_preview_shows_the_prompt_of_a_request_that_failed(config):
    text = previewed(with_fault(config, fail_rate=1.0))
    asked = text[text.index("## query") : text.index("failed: ")]
    assert "Somebody searched for: merge sorted lists" in asked
    error = "the fake engine failed this request (engine.fault.fail_rate)"
    assert f"\n\nfailed: RowError: {error}\n" in text
    assert re.search(rf"\nfailed: s1/daily/\S+: write: {re.escape(error)}\n", text)


def test_a_preview_shows_the_request_that_crashed_an_engine(config):
    shown = []
    with pytest.raises(EngineError, match="poisoned"):
        job.preview(with_fault(config, poison="merge sorted lists"), 1, shown.append)
    assert shown[-1].startswith("## query\n\n") and "merge sorted lists" in shown[-1]
    assert shown[-1].endswith("\n\nfailed: EngineError: the fake engine was poisoned\n")


def test_what_is_asked_is_kept_whether_or_not_it_is_answered():
    def asked(engine):
        traced = Traced(engine)

        async def ask():
            requests = (
                traced.generate([{"role": "user", "content": "write"}], max_tokens=4),
                traced.label_logprobs("judge", (" true", " false")),
            )
            await asyncio.gather(*requests, return_exceptions=True)

        asyncio.run(ask())
        return [(each.prompt, each.failed) for each in traced.requests], traced.requests[1].outcome

    answered, outcome = asked(fake_engine())
    assert answered == [("write", False), ("judge", False)]
    assert re.fullmatch(r"p\(true\) 0\.\d+, p\(false\) 0\.\d+", outcome)
    failed, outcome = asked(fake_engine(fail_rate=1.0))
    assert failed == [("write", True), ("judge", True)]
    assert outcome == "RowError: the fake engine failed this request (engine.fault.fail_rate)"


@pytest.mark.parametrize("fail_rate", [0.0, 1.0])
def test_a_preview_spells_out_control_characters_wherever_they_are(config, fail_rate):
    with open(config.synthesis.seeds, "w") as file:
        file.write(json.dumps({"id": "s\x1b[31m1", "query": "merge \x07lists", "passage": "a \x9b passage"}) + "\n")
    text = previewed(with_fault(config, fail_rate=fail_rate))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert "# seed s⟨U+001B⟩[31m1" in text
    assert re.search(r"\n(failed: )?s⟨U\+001B⟩\[31m1/daily/\S+: (kept|rejected|write)", text)
