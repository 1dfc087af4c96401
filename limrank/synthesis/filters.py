"""Which examples of one seed are kept, and why the others are rejected: pure functions of records.
What needs the rows of all seeds is in ``pool.py``."""

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
"""A run of this many words is no coincidence: taken from the seed's passage it gives the answer
away. A shorter passage counts as copied if all of its words are, and they are at least five. None of
1,743 MS MARCO queries shares a run of eight words with its passage; 18 of 4,309 relevant pairs of
SciFact, Cranfield and BRIGHT do."""

_COPIED_TEXT = 13
"""The run of words by which one passage repeats another, as in checks of training texts against
benchmarks (Brown et al., 2020, arXiv 2005.14165, C)."""

_NEARLY = 0.8
"""Two passages are the same if the longer one has this share of the shorter one's runs of three
words; for a query and a persona it is the Jaccard similarity. Of 8,170 pairs of
passages that BM25 ranks near the top for one DL 2019 query, 219 are the same by this rule or by how few words differ.
Eight of these were read, and all eight are copies with more or less text around them."""

_OWN = 0.5
"""A text is repetitive if less than this share of its runs of three words are distinct, as in
filters of web text (Rae et al., 2021, arXiv 2112.11446, A1.1). That holds for 81 of 23,397 real
passages and four of 5,213 real queries, which quote logs."""

_OF_A_VERDICT = frozenset(["the", "so", "my", "final", "answer", "verdict", "is", "true", "false"])
"""A chain of only these words ("The answer is: True") gives no reason."""

_PLACEHOLDER = re.compile(r"{{.*?}}|{%.*?%}", re.DOTALL)
"""The template syntax of a prompt."""

_HARDLY = 0.05
"""A text is not in a language whose probability is lower."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on a pair.

    ``relevant`` is None if the judge wrote no verdict, or if its request ``failed``. ``score`` is
    p(true), if there is one. ``truncated``: the judge did not see the end of the passage.
    """

    relevant: bool | None
    score: float | None = None
    reasoning: str | None = None
    failed: bool = False
    truncated: bool = False


def query_fault(
    query: str,
    instruction: str | None,
    seed: Seed,
    prompt: str,
    persona: str,
    *,
    shortest: int = MIN_QUERY_WORDS,
    examples: Sequence[Seed] = (),
) -> str | None:
    """The reason to reject a query before passages are written for it; None if there is none.

    ==================  ====================================================================
    ``copies_seed``     the query is the seed's or an example's, but for few words or with few
                        around it; the query or its instruction has eight words in a row of an
                        example's passage
    ``leaks``           the query speaks of its task or gives its answer; the query or its
                        instruction has eight words in a row of the seed's passage, or all
                        words of a shorter passage
    ``copies_prompt``   the query is the persona; the query or its instruction has eight words
                        in a row of the prompt's own text
    ``copies_query``    the instruction repeats the query, and so narrows nothing
    ``length``          the query has less than ``shortest`` words, or its instruction less than four
    ``repetitive``      the query or its instruction repeats itself
    ``language``        the query or its instruction is not in the seed's language
    ==================  ====================================================================

    Args:
        prompt: the writer's prompt, before its placeholders are filled.
        persona: the description of the person who asks.
        examples: those that the prompt shows.
    """
    asked = words(query)
    if _same_query(asked, words(seed.query)) or any(_copies(query, instruction, each) for each in examples):
        return "copies_seed"
    if speaks_of_task(query) or gives_answer(query):
        return "leaks"
    asking = words(persona)
    if _within(asked, asking) or similarity(asked, asking) >= _NEARLY:
        return "copies_prompt"
    if instruction is not None:
        narrowed = words(instruction)
        if _within(asked, narrowed) or _within(narrowed, asked):
            return "copies_query"
        if fault := _text_fault(instruction, narrowed, seed, prompt, MIN_QUERY_WORDS):
            return fault
    return _text_fault(query, asked, seed, prompt, shortest)


def rejected_before_judging(examples: Sequence[SynthesisExample], seed: Seed, prompt: str) -> list[SynthesisExample]:
    """The examples of one query, with a reason on those that need no judge. Mined passages pass.

    ==================  ====================================================================
    ``length``          the passage has less than twelve words
    ``copies_seed``     it is nearly the seed's, or has thirteen words in a row of it
    ``copies_prompt``   it has eight words in a row of the prompt's own text
    ``leaks``           it repeats the query or speaks of its task; a positive has eight words
                        in a row of the query, so that no reasoning is needed to find it
    ``repetitive``      it repeats itself
    ``same_passages``   it is nearly one of the passages before it, or a mined one
    ``language``        it is not in the seed's language
    ==================  ====================================================================

    Args:
        prompt: the writer's prompt for passages, before its placeholders are filled.
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
    """The same examples with the judge's chain, verdict and score; ``kept`` if the judge agrees.

    A pair is ``judge_failed`` if the request failed, ``unparsable`` if the judge wrote no verdict, and
    ``length`` if the judge did not see all of it.

    Args:
        verdicts: by example id; an example without one is already rejected.
        settings: ``agreement=verdict``: the verdict has to be the intended label, else
            ``judge_disagrees``; a p(true) nearer to one half than ``judge_margin`` is ``judge_unsure``.
            ``agreement=ranking``: a negative has to score below its query's positive, and the positive
            above one of the negatives, else ``judge_disagrees``; ``unpaired`` if there is nothing left
            to compare with.
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
    """The same examples; those whose chain is not worth training on are rejected as ``bad_chain``.

    Such a chain is missing, has less than four words besides its verdict, repeats itself, or is surely
    neither in the seed's language nor in that of the judge's prompt.

    Args:
        examples: the result of :func:`judged`; rejected examples keep their reason.
        prompt: the judge's prompt. Most judges think in its language, whatever they judge.
    """
    return [
        replace(example, kept=False, reject_reason="bad_chain")
        if example.kept and _bad_chain(example.reasoning or "", seed, prompt)
        else example
        for example in examples
    ]


def _bad_chain(chain: str, seed: Seed, prompt: str) -> bool:
    said = words(chain)
    if count([word for word in said if word not in _OF_A_VERDICT]) < MIN_CHAIN_WORDS or _repetitive(said):
        return True
    return _foreign(chain, _source(seed)) and _foreign(chain, prompt)


def _text_fault(text: str, said: list[str], seed: Seed, prompt: str, shortest: int) -> str | None:
    """The fault of a query or an instruction; ``said`` are its words."""
    if count(said) < shortest:
        return "length"
    copied = runs(said, _COPIED)
    if copied & _prompt_runs(prompt):
        return "copies_prompt"
    answer = words(seed.passage)
    if copied & runs(answer, _COPIED) or (len(answer) >= _ALL_COPIED and _within(answer, said)):
        return "leaks"
    if _repetitive(said):
        return "repetitive"
    return "language" if _foreign(text, _source(seed)) else None


def _passage_fault(example: SynthesisExample, seed: Seed, before: Sequence[list[str]], prompt: str) -> str | None:
    passage = words(example.passage or "")
    if count(passage) < MIN_PASSAGE_WORDS:
        return "length"
    source = words(seed.passage)
    if same_text(passage, source) or runs(passage, _COPIED_TEXT) & runs(source, _COPIED_TEXT):
        return "copies_seed"
    if runs(passage, _COPIED) & _prompt_runs(prompt):
        return "copies_prompt"
    asked = words(example.query)
    if _within(asked, passage) or speaks_of_task(example.passage):
        return "leaks"
    if example.passage_role is PassageRole.POSITIVE and runs(asked, _COPIED) & runs(passage, _COPIED):
        return "leaks"
    if _repetitive(passage):
        return "repetitive"
    if any(same_text(passage, other) for other in before):
        return "same_passages"
    return "language" if _foreign(example.passage, _source(seed)) else None


def _copies(query: str, instruction: str | None, example: Seed) -> bool:
    shown = runs(words(example.passage), _COPIED)
    if any(runs(words(text), _COPIED) & shown for text in (query, instruction or "")):
        return True
    return _same_query(words(query), words(example.query))


def _same_query(asked: list[str], source: list[str]) -> bool:
    """Whether a query is the seed's: few words differ, or one of the two, whole, makes up more than
    half of the other. A topic of three words may occur in a question of six. By this rule 118 of 1.5
    million pairs of MS MARCO queries are the same: short ones in one frame ("what does hispanic mean")."""
    if asked == source or (min(count(asked), count(source)) >= MIN_QUERY_WORDS and same_but_for_few(asked, source)):
        return True
    return _share_within(source, asked) > 0.5 or _share_within(asked, source) > 0.5


def _share_within(part: Sequence[str], whole: Sequence[str]) -> float:
    """The share of ``whole`` that its non-overlapping occurrences of ``part`` cover."""
    at = found = 0
    while part and at <= len(whole) - len(part):
        matches = list(whole[at : at + len(part)]) == list(part)
        found += matches
        at += len(part) if matches else 1
    return found * len(part) / len(whole) if whole else 0.0


def same_text(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two passages are nearly the same, or one nearly contains the other."""
    if min(len(one), len(other)) < _COPIED:  # many texts share "See also"
        return one == other
    left, right = runs(one, 3), runs(other, 3)
    return len(left & right) >= _NEARLY * min(len(left), len(right)) or bool(same_but_for_few(one, other))


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether ``whole`` has the words of ``part`` in a row."""
    return bool(part) and tuple(part) in runs(whole, len(part))


def _repetitive(said: Sequence[str]) -> bool:
    return len(said) >= MIN_PASSAGE_WORDS and len(runs(said, 3)) < _OWN * (len(said) - 2)


@lru_cache
def _prompt_runs(prompt: str) -> set[tuple[str, ...]]:
    return {run for piece in _PLACEHOLDER.split(prompt) for run in runs(words(piece), _COPIED)}


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
    """Whether a text is surely in a language other than its source's."""
    if min(letters(text), letters(source)) < MIN_LETTERS:
        return False
    (own, surely), *_ = languages(source)
    ranked = languages(text)
    return surely >= CERTAIN and ranked[0][1] >= CERTAIN and dict(ranked)[own] < _HARDLY
