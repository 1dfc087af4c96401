"""Which examples are kept, and why the others are not, as far as one seed's rows tell:
pure functions of records. What only the whole pool tells is in ``pool.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from limrank.config import SynthesisConfig
from limrank.records import PassageRole, Seed, SynthesisExample
from limrank.synthesis.task_leakage import gives_answer, speaks_of_task
from limrank.text.languages import CERTAIN, MIN_LETTERS, languages, letters
from limrank.text.overlap import same_but_for_few
from limrank.text.words import count, runs, similarity, words

MIN_QUERY_WORDS, MIN_PASSAGE_WORDS, MIN_CHAIN_WORDS = 4, 12, 4

_COPIED, _ALL_COPIED = 8, 5
"""Words in a row that are no chance: of the seed's passage they give its answer away, and so
do all of a passage's words where they are fewer, but not fewer than five. Of 1,743 MS MARCO
queries none has eight in a row of its passage, of 4,309 relevant pairs of SciFact, Cranfield
and BRIGHT 18 do."""

_COPIED_TEXT = 13
"""Words in a row by which a passage repeats another, as benchmarks are told in training texts
(Brown et al., 2020, arXiv 2005.14165, C)."""

_NEARLY = 0.8
"""From this share of the shorter one's runs of three words in the other two passages are one;
of a query and a persona it is their Jaccard similarity. Of 8,170 pairs of passages that BM25
has near the top for one DL 2019 query 219 are one by this or by the words that differ, and
the eight looked at are copies with more or less around them."""

_OWN = 0.5
"""Share of different runs of three words below which a text goes round in circles, as filters of
web text have it (Rae et al., 2021, arXiv 2112.11446, A1.1). Of 23,397 real passages 81 are
below, and of 5,213 real queries four, which quote logs."""

_OF_A_VERDICT = frozenset(["the", "so", "my", "final", "answer", "verdict", "is", "true", "false"])
"""A chain of these words alone ("The answer is: True") gives no reason."""

_PLACE = re.compile(r"{{.*?}}|{%.*?%}", re.DOTALL)
"""In a prompt, what is filled in."""

_HARDLY = 0.05
"""Probability below which a text is not in a language."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of a pair. ``relevant`` is None where it could not be read in what
    the judge wrote, and with ``failed`` where the judge could not be asked. ``score`` is
    p(true), where there is one. ``truncated`` where it did not see the passage's end."""

    relevant: bool | None
    score: float | None = None
    reasoning: str | None = None
    failed: bool = False
    truncated: bool = False


def query_fault(query: str, instruction: str | None, seed: Seed, prompt: str, persona: str) -> str | None:
    """Why no passage need be written for a query; None where one may.

    ``copies_seed``: it is the seed's query, but for few words or with few around it.
    ``copies_query``: its instruction repeats it, and so narrows nothing. Of either, ``length``:
    less than four words. ``copies_prompt``: it has eight words in a row of the prompt's own
    text, or the query is the persona. ``leaks``: it has as many of the passage that answers
    the seed, or all of a shorter one, or the query tells its answer or speaks of its task.
    ``repetitive``: it goes round in circles. ``language``: not the seed's.

    Args:
        prompt: the text that the writer of the query was given, before its places are filled.
        persona: what it was told of the person who asks.
    """
    asked = words(query)
    if _same_query(asked, words(seed.query)):
        return "copies_seed"
    if speaks_of_task(query, _source(seed)) or gives_answer(query):
        return "leaks"
    asking = words(persona)
    if _within(asked, asking) or similarity(asked, asking) >= _NEARLY:
        return "copies_prompt"
    if instruction is not None:
        narrowed = words(instruction)
        if _within(asked, narrowed) or _within(narrowed, asked):
            return "copies_query"
        if fault := _text_fault(instruction, narrowed, seed, prompt):
            return fault
    return _text_fault(query, asked, seed, prompt)


def rejected_before_judging(examples: Sequence[SynthesisExample], seed: Seed, prompt: str) -> list[SynthesisExample]:
    """The examples of one query, with a reason on those that need no judge.

    Of a written passage: ``length``: less than twelve words. ``copies_seed``: it is nearly
    the seed's, or has thirteen words in a row of it. ``copies_prompt``: it has eight words in
    a row of the prompt's own text. ``leaks``: it repeats the query, speaks of its task or, a
    positive, has eight words in a row of the query, so that no reasoning is needed to find
    it. ``repetitive``: it goes round in circles. ``same_passages``: it is nearly one of the
    passages before it, or a mined one. ``language``: not the seed's.

    Args:
        prompt: as of :func:`query_fault`, the text that the writer of the passages was given.
    """
    before = [words(each.passage) for each in examples if each.passage_role is PassageRole.MINED_NEGATIVE]
    checked = []
    for example in examples:
        reason = None
        if example.passage_role is not PassageRole.MINED_NEGATIVE:
            reason = _passage_fault(example, seed, before, prompt)
            before.append(words(example.passage or ""))
        checked.append(replace(example, reject_reason=reason))
    return checked


def judged(
    examples: Sequence[SynthesisExample], verdicts: Mapping[str, Verdict], settings: SynthesisConfig
) -> list[SynthesisExample]:
    """The same examples with the judge's chain, verdict and score, and kept where it agrees.

    Args:
        verdicts: by example id; an example without one was rejected before.
        settings: ``agreement`` by verdict: the intended label, else ``judge_disagrees``; with
            a p(true) nearer to one half than ``judge_margin``, ``judge_unsure``.
            By ranking: the positive above each negative of its query; a negative that is
            not below it is rejected, and the positive too unless it beats one of them.
            What has nothing left to be compared with is ``unpaired``.

    A pair that the judge could not be asked about is ``judge_failed``, one of which it wrote
    no verdict ``unparsable``, one that it did not see all of ``length``.
    """
    scored = [_with_verdict(example, verdicts.get(example.example_id)) for example in examples]
    open_ones = [example for example in scored if example.reject_reason is None]
    positives = [example.judge_score for example in open_ones if example.label]
    negatives = [example.judge_score for example in open_ones if not example.label]
    result = []
    for example in scored:
        reason = example.reject_reason
        if reason is None and settings.agreement == "verdict":
            reason = _verdict_fault(example, settings.judge_margin)
        elif reason is None:
            if example.label:
                others = [example.judge_score > other for other in negatives]
            else:
                others = [example.judge_score < other for other in positives]
            reason = None if any(others) else "judge_disagrees" if others else "unpaired"
        result.append(replace(example, kept=reason is None, reject_reason=reason))
    return result


def chains_checked(examples: Sequence[SynthesisExample], seed: Seed, prompt: str) -> list[SynthesisExample]:
    """The same examples, without those whose chain is nothing to be trained on: ``bad_chain``.
    It is missing, has less than four words beside its verdict, goes round in circles, or is
    surely neither in the seed's language nor in that of the judge's prompt.

    Args:
        examples: as :func:`judged` left them; what it rejected keeps its reason.
        prompt: what the judge was asked in. Of one in English most judges think in English,
            whatever they judge.
    """
    return [
        replace(example, kept=False, reject_reason="bad_chain")
        if example.kept and _bad_chain(example.reasoning or "", seed, prompt)
        else example
        for example in examples
    ]


def _bad_chain(chain: str, seed: Seed, prompt: str) -> bool:
    said = words(chain)
    if count([word for word in said if word not in _OF_A_VERDICT]) < MIN_CHAIN_WORDS or _circles(said):
        return True
    return _foreign(chain, _source(seed)) and _foreign(chain, prompt)


def _text_fault(text: str, said: list[str], seed: Seed, prompt: str) -> str | None:
    """Of a query or an instruction; ``said`` are its words."""
    if count(said) < MIN_QUERY_WORDS:
        return "length"
    copied = runs(said, _COPIED)
    if copied & _prompt_runs(prompt):
        return "copies_prompt"
    answer = words(seed.passage)
    if copied & runs(answer, _COPIED) or (len(answer) >= _ALL_COPIED and _within(answer, said)):
        return "leaks"
    if _circles(said):
        return "repetitive"
    return "language" if _foreign(text, _source(seed)) else None


def _passage_fault(example: SynthesisExample, seed: Seed, before: Sequence[list[str]], prompt: str) -> str | None:
    passage = words(example.passage or "")
    if count(passage) < MIN_PASSAGE_WORDS:
        return "length"
    source = words(seed.passage)
    if _same_text(passage, source) or runs(passage, _COPIED_TEXT) & runs(source, _COPIED_TEXT):
        return "copies_seed"
    if runs(passage, _COPIED) & _prompt_runs(prompt):
        return "copies_prompt"
    asked = words(example.query)
    if _within(asked, passage) or speaks_of_task(example.passage, _source(seed)):
        return "leaks"
    if example.passage_role is PassageRole.POSITIVE and runs(asked, _COPIED) & runs(passage, _COPIED):
        return "leaks"
    if _circles(passage):
        return "repetitive"
    if any(_same_text(passage, other) for other in before):
        return "same_passages"
    return "language" if _foreign(example.passage, _source(seed)) else None


def _same_query(asked: list[str], source: list[str]) -> bool:
    """Whether a query is the seed's: but for few words, or more than half of it is the seed's,
    once or more often as it stands, or more than half of the seed's. A topic of three words
    can stand in a question of six. Of 1.5 million pairs of MS MARCO queries 118 are the same,
    short ones in one frame ("what does hispanic mean")."""
    if asked == source or (min(count(asked), count(source)) >= MIN_QUERY_WORDS and same_but_for_few(asked, source)):
        return True
    return _share_within(source, asked) > 0.5 or _share_within(asked, source) > 0.5


def _share_within(part: Sequence[str], whole: Sequence[str]) -> float:
    """The share of a text that is another one, as often as that stands in it."""
    at = found = 0
    while part and at <= len(whole) - len(part):
        stands = list(whole[at : at + len(part)]) == list(part)
        found += stands
        at += len(part) if stands else 1
    return found * len(part) / len(whole) if whole else 0.0


def _same_text(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two passages are nearly one, or one is nearly all in the other."""
    if min(len(one), len(other)) < _COPIED:  # "See also" is in many texts
        return one == other
    left, right = runs(one, 3), runs(other, 3)
    return len(left & right) >= _NEARLY * min(len(left), len(right)) or bool(same_but_for_few(one, other))


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether some words stand in a text, in a row."""
    return bool(part) and tuple(part) in runs(whole, len(part))


def _circles(said: Sequence[str]) -> bool:
    return len(said) >= MIN_PASSAGE_WORDS and len(runs(said, 3)) < _OWN * (len(said) - 2)


@lru_cache
def _prompt_runs(prompt: str) -> set[tuple[str, ...]]:
    return {run for piece in _PLACE.split(prompt) for run in runs(words(piece), _COPIED)}


def _verdict_fault(example: SynthesisExample, margin: float) -> str | None:
    if example.judge_score is not None and abs(example.judge_score - 0.5) < margin:
        return "judge_unsure"
    return None if example.verdict == example.label else "judge_disagrees"


def _with_verdict(example: SynthesisExample, verdict: Verdict | None) -> SynthesisExample:
    if verdict is None:
        return example
    if verdict.failed:
        return replace(example, reject_reason="judge_failed")
    said = replace(example, reasoning=verdict.reasoning, verdict=verdict.relevant, judge_score=verdict.score)
    if verdict.relevant is None:
        return replace(said, reject_reason="unparsable")
    return replace(said, reject_reason="length") if verdict.truncated else said


def _source(seed: Seed) -> str:
    return f"{seed.query} {seed.passage}"


def _foreign(text: str, source: str) -> bool:
    """Whether a text is surely in another language than its source."""
    if min(letters(text), letters(source)) < MIN_LETTERS:
        return False
    (own, surely), *_ = languages(source)
    ranked = languages(text)
    return surely >= CERTAIN and ranked[0][1] >= CERTAIN and dict(ranked)[own] < _HARDLY
