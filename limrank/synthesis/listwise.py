"""A listwise teacher: a language model behind an endpoint orders a query's passages (RankGPT, arXiv 2304.09542).

The model sees numbered passages and answers with a permutation, "[2] > [1] > [3]". A window of passages that slides
from the last passage to the first one moves the best passages to the front (§3.2 there).
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from limrank import loops, prompts
from limrank.config import ModelConfig, TeacherConfig
from limrank.engines import check_engine, open_engine
from limrank.engines.base import Engine
from limrank.errors import EndpointError, EngineError, RowError, UserError, first_line
from limrank.parsing import clipped
from limrank.records import Document, Query
from limrank.scoring import prompt_query
from limrank.synthesis.answers import split_reasoning
from limrank.synthesis.grades import Grade, Teacher
from limrank.text.words import count, words

_QUOTED = 80
"""Characters of an answer that a warning quotes."""

_CHARACTERS_A_WORD = 12
"""No passage is shown with more characters than this for each word: some texts have no words."""


class _UnreadError(Exception):
    """An answer that names no passage."""


@dataclass
class _Outcomes:
    """What became of the queries that were asked."""

    asked: int = 0
    failed: int = 0
    unread: int = 0
    first_failure: str = ""
    first_unread: str = ""


@dataclass(frozen=True)
class ListwiseTeacher(Teacher):
    """Grades by the model's order: the grade of a passage is minus its rank, from -1 for the first.

    A permutation says which passage is better, and not by how much, so neighbours are equally far apart. Reciprocal
    ranks would put the second passage farther below the first than the last below the second:
    ``synthesis.teacher.margin`` would then take the second passage, the likeliest false negative, as a negative.

    The model sees passages in an order that the seed draws, since models prefer what they see first. A query whose
    request fails, or whose answer names no passage, has no grades.
    """

    config: TeacherConfig
    seed: int
    outcomes: _Outcomes = field(default_factory=_Outcomes)

    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        """All queries are in flight together; the engine limits the requests.

        Raises:
            EndpointError: the endpoint is gone, or refuses the key or the model.
        """
        try:
            orders = loops.run(self._all_orders(queries, passages))
        except EngineError as error:
            raise EndpointError(f"synthesis.teacher: {error}") from None
        return [
            [None] * len(found) if order is None else _by_rank(order)
            for order, found in zip(orders, passages, strict=True)
        ]

    @property
    def warnings(self) -> list[str]:
        found = self.outcomes
        reasons = []
        if found.failed:
            reasons.append(f"the requests of {found.failed} failed ({found.first_failure})")
        if found.unread:
            reasons.append(f"the answers to {found.unread} name no passage ({found.first_unread!r})")
        if not reasons:
            return []
        ungraded = found.failed + found.unread
        return [
            f"synthesis.teacher: {ungraded} of {found.asked} queries are ungraded: {', and '.join(reasons)}; "
            "the same command asks them again"
        ]

    @property
    def refusal(self) -> str | None:
        if not self.outcomes.asked or self.outcomes.failed < self.outcomes.asked:
            return None
        return f"every request failed: {self.outcomes.first_failure}"

    async def _all_orders(
        self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]
    ) -> list[list[int] | None]:
        engine = open_engine(ModelConfig(id=self.config.model), self.config.engine)
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(self._order(engine, query, found))
                    for query, found in zip(queries, passages, strict=True)
                ]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            await engine.aclose()
        return [each.result() for each in asked]

    async def _order(self, engine: Engine, query: Query, passages: Sequence[Document]) -> list[int] | None:
        """The indexes of a query's passages, best first; None if they could not be ordered."""
        order = list(range(len(passages)))
        if len(order) < 2:
            return order
        random.Random(f"{self.seed}/listwise/{query.query_id}").shuffle(order)
        self.outcomes.asked += 1
        try:
            for start, end in windows(len(order), self.config.window):
                shown = order[start:end]
                texts = [passages[index].contents for index in shown]
                order[start:end] = reordered(shown, await self._ranking(engine, prompt_query(query), texts))
        except RowError as error:
            self.outcomes.failed += 1
            self.outcomes.first_failure = self.outcomes.first_failure or first_line(error)
            return None
        except _UnreadError as error:
            self.outcomes.unread += 1
            self.outcomes.first_unread = self.outcomes.first_unread or str(error)
            return None
        return order

    async def _ranking(self, engine: Engine, query: str, texts: Sequence[str]) -> list[int]:
        """The model's answer as numbers from 1, the best first. Raises _UnreadError if it has none."""
        prompt = listwise_prompt(self.config.prompt, query, texts, self.config.passage_words)
        messages = [{"role": "user", "content": prompt}]
        generation = await engine.generate(messages, max_tokens=self.config.answer_tokens)
        _, answer = split_reasoning(generation)
        if ranking := ranking_in(answer, len(texts)):
            return ranking
        raise _UnreadError(clipped(" ".join(answer[: 10 * _QUOTED].split()), _QUOTED))


def check_listwise_prompt(prompt: str) -> None:
    """Raises UserError for a prompt that cannot be filled, or that lacks the query or the passages."""
    listwise_prompt(prompt, "a query", ["a passage", "another"], 10)
    prompts.check_placeholders(prompt, {"query", "passages"})


def check_endpoint(config: TeacherConfig) -> None:
    """Raises UserError if the teacher's endpoint cannot be reached, refuses the key, or lacks the model."""
    try:
        check_engine(ModelConfig(id=config.model), config.engine)
    except UserError as error:
        raise UserError(f"synthesis.teacher.{error}") from None


def listwise_prompt(prompt: str, query: str, texts: Sequence[str], most_words: int) -> str:
    """The prompt that asks for the order of numbered passages, each of at most ``most_words`` words."""
    numbered = (f"[{number}] {_shown(text, most_words)}" for number, text in enumerate(texts, 1))
    return prompts.render(prompt, query=query, passages="\n".join(numbered), count=len(texts))


_NUMBER_OF_ITS_OWN = re.compile(r"\[(\d+)\]")


def _shown(text: str, most_words: int) -> str:
    """The first words of a passage on one line. Its own "[3]", a reference, becomes "(3)": it is no passage's number."""
    shown, left = [], most_words
    for each in text[: most_words * _CHARACTERS_A_WORD].split():
        length = max(1, count(words(each)))
        # A script without spaces has many words between two of them, each of two characters.
        shown.append(each if length <= left else each[: 2 * left])
        left -= length
        if left <= 0:
            break
    return _NUMBER_OF_ITS_OWN.sub(r"(\1)", " ".join(shown))


def windows(length: int, size: int) -> Iterator[tuple[int, int]]:
    """The windows over ``length`` passages as (start, end), from the last one to the first.

    A step is half a window, so that the better half of each reaches the next. The first passages' window, the last
    that is asked, has ``size`` passages, too.
    """
    end = length
    while end > size:
        yield end - size, end
        end -= size // 2
    yield 0, min(size, length)


def reordered(shown: Sequence[int], ranking: Sequence[int]) -> list[int]:
    """A window by the numbers of an answer. What the answer leaves out keeps its order at the end."""
    named = [shown[number - 1] for number in ranking]
    return named + [each for each in shown if each not in set(named)]


_BRACKETED = re.compile(r"\[\s*(\d{1,4})\s*\]", re.ASCII)
_PLAIN = re.compile(r"(?<![\w.])(\d{1,4})(?![\w]|\.\d)", re.ASCII)
_ARROW = re.compile(r"\s*(?:>|&gt;)\s*")


def ranking_in(answer: str, length: int) -> list[int]:
    """The passages' numbers in an answer, the best first, each once; empty if there are none.

    Numbers outside 1 to ``length`` are left out. The longest line with ">" is the ranking; without one, all numbers
    in brackets are. Numbers without brackets count only in a line with ">" or without letters: "these 20 passages"
    names no passage.
    """
    lines = _ARROW.sub(" > ", answer).splitlines()
    bracketed = any(map(_BRACKETED.search, lines))
    pattern = _BRACKETED if bracketed else _PLAIN
    chains = [found for line in lines if ">" in line and len(found := pattern.findall(line)) > 1]
    if chains:
        numbers = max(reversed(chains), key=len)
    else:
        listed = [line for line in lines if bracketed or not any(map(str.isalpha, line))]
        numbers = [number for line in listed for number in pattern.findall(line)]
    return [number for number in dict.fromkeys(map(int, numbers)) if 1 <= number <= length]


def _by_rank(order: Sequence[int]) -> list[Grade | None]:
    """The grades of passages in their own order, from their indexes in the model's."""
    ranks = {index: rank for rank, index in enumerate(order, 1)}
    return [Grade(-float(ranks[index])) for index in range(len(order))]
