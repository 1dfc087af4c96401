"""Text in which a writer speaks to whoever set its task, instead of only doing it.

The rules know how chat models open, how they refuse, and the labels of the writer's own JSON.
Whether a text that passes them is a query or a passage at all is for the judge to say.
"""

from __future__ import annotations

import re


def _phrases(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.VERBOSE | re.DOTALL)


_OPENER = _phrases(
    r"""
      ^\W* (?: sure | certainly | absolutely | of \ course | okay ) \W+
      (?: here | below | this \ is | i (?: ['’]ll | \ will ) \ (?: write | give | provide | generate | create ) ) \b
    | ^\W* (?: here (?: ['’]s | \ is | \ are ) | below \ is ) \ (?: \w+ \ ){0,6}
      (?: quer(?:y|ies) | passages? | (?: entry | text | paragraph | article | post ) \ (?: that | of | for ) ) \b
    | \b here (?: ['’]s | \ is ) \ (?: \w+ \ ){0,2} (?: rewritten | revised | rephrased ) \ version \b
    """
)

_REFUSAL = _phrases(
    r"""
      \b as \ an? \ (?: ai (?: \ language \ model | \ model | \ assistant )? | (?: large \ )? language \ model ) ,? \ i \b
    | ^\W* (?: i ['’]m | i \ am )? \W* sorry \b .{0,12} \b (?: i | we ) (?: \ can['’]?t | \ can \ ?not | ['’]m \ unable | \ am \ unable )
      \b .{0,12} \b (?: help \ with | assist | comply | provide | generate | create | write ) \b
    | ^\W* i \ (?: can['’]?t | can \ ?not ) \ (?: help | assist ) \ (?: you \ )? with \b
    """
)

_LABEL = _phrases(
    r"""
      ^\W* (?: the \ | user \ | search \ )? (?: quer(?:y|ies) | passages? | instruction | positive | hard \W? negative )
      (?: \ \#? \d+ )? ["'*_”’]* \s* :
    | ["'] (?: passage | instruction | hard_negatives? ) ["'] \s* :
    | \b hard_negatives? \b | \b positive_ (?: text | response | passage | example )
    """
)

_ANSWER = re.compile(
    r"(?<!what )(?<!whether )(?<!if )\bthe (?:correct |right )?answer (?:to (?:this|the) question )?is\b"
    r"|\banswer would be\b",
    re.IGNORECASE,
)


def speaks_of_task(text: str) -> bool:
    """Whether a query or passage opens as an assistant does ("Sure! Here is a query"), refuses,
    or carries a label of the writer's JSON ("**Query:**", ``hard_negatives``)."""
    return any(phrases.search(text) for phrases in (_OPENER, _REFUSAL, _LABEL))


def gives_answer(query: str) -> bool:
    """Whether a query states its answer. Nine of 5,213 real queries do, all of them
    programming exercises with worked examples."""
    return bool(_ANSWER.search(query))
