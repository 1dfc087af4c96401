"""What a writer says of its task, or to whoever set it, where it should only do it.

Each phrase was seen in what small models wrote, or is how chat models open and refuse. Of
5,213 real queries and 23,397 real passages (MS MARCO, SciFact, Cranfield, BRIGHT, LitSearch),
which the phrases were narrowed by, one speaks so; of 13,700 others (MMLU, PersonaHub, Python's
documentation) none. Of 400 queries of a 135M writer 106 do, of its 222 passages 161.
"""

from __future__ import annotations

import re


def _phrases(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.VERBOSE | re.DOTALL)


_PLACES = "name|city|country|state|town|date|topic|company|location|person|place|product|age|number|year"

_TO_WHO_ASKED = _phrases(
    rf"""
    # It opens as an assistant does.
      ^\W* (?: sure | certainly | absolutely | of \ course | okay ) \W+
      (?: here | below | this \ is | i (?: ['’]ll | \ will ) \ (?: write | give | provide | generate | create ) ) \b
    | ^\W* (?: here (?: ['’]s | \ is | \ are ) | below \ is ) \ (?: \w+ \ ){{0,6}}
      (?: quer(?:y|ies) | passages? | (?: entry | text | paragraph | article | post ) \ (?: that | of | for ) ) \b
    | \b here (?: ['’]s | \ is ) \ (?: \w+ \ ){{0,2}} (?: rewritten | revised | rephrased ) \ version \b
    # It speaks of itself, or refuses.
    | \b as \ an? \ (?: ai (?: \ language \ model | \ model | \ assistant )? | (?: large \ )? language \ model ) ,? \ i \b
    | ^\W* (?: i ['’]m | i \ am )? \W* sorry \b .{{0,12}} \b (?: i | we ) (?: \ can['’]?t | \ can \ ?not | ['’]m \ unable | \ am \ unable )
      \b .{{0,12}} \b (?: help \ with | assist | comply | provide | generate | create | write ) \b
    | ^\W* i \ (?: can['’]?t | can \ ?not ) \ (?: help | assist ) \ (?: you \ )? with \b
    # It names what it writes, as its JSON does or a label.
    | ^\W* (?: the \ | user \ | search \ )? (?: quer(?:y|ies) | passages? | instruction | positive | hard \W? negative )
      (?: \ \#? \d+ )? ["'*_”’]* \s* :
    | ["'] (?: passage | instruction | hard_negatives? ) ["'] \s* :
    | \b hard_negatives? \b | \b positive_ (?: text | response | passage | example )
    | \b word \ count \s* : | -word \ passage \b | \b (?: passage | text | paragraph | entry ) \ of \ about \ \d+ \ words \b
    # It leaves a place to be filled.
    | [\[<] (?: insert | enter | your | specific ) \ [^\]>]{{1,40}} [\]>]
    | \[ (?P<place> {_PLACES} ) \] .* \[ (?! (?P=place) \] ) (?: {_PLACES} ) \]
    """
)

_OF_RELEVANCE = _phrases(
    r"""
      \b (?: relevant | irrelevant | misleading | helpful ) \ (?: passage | document | text )s?
      \ (?: is | are | that | would | should | could | can | must | will | may | might | needs? ) \b
    | \b (?: relevant | misleading | positive | negative | helpful ) \ passages? \b
    | \b passages? \ (?: that | which ) \ (?: (?: would | might | could | may | will ) \ )? (?: help | answer | satisf | mislead ) \w* \b
    | \b (?: this | the ) \ (?: text | passage | paragraph | document ) \ (?: meets | satisfies | fulfil?ls | addresses | answers | violates )
      \ (?: the | this | a | your ) \ (?: \w+ \ )? (?: needs? | query | condition | question | request ) \b
    | \b is \ an? \ hard \W negative \b | \b narrower \ condition \b | \b single \ fact \ settles \b
    | \b (?: it | query | passage ) \ (?: is | was ) \ on \ this \ topic \b | \b evaluate \ the \ passage \b
    | \b i (?: ['’]ve | \ have )? \ (?: avoided | rewritten | rephrased | revised | written ) \b .{0,40} \b (?: passage | query | instructions ) \b
    """
)

_MAY_BE_OF_IT = _phrases(
    r"""
      \b (?: the | this | an? | each | your ) \ (?: (?: above | following | given | first | second | right ) \ )? passages?
      \ (?: (?: that | which ) \ (?: is | says? | tells? | describes? | discuss\w* | explains? | provides? | contains? | mentions? )
          | (?: is | are ) \ (?: (?: not | also | clearly ) \ )? (?: about | related | relevant | written | misleading | positive | negative )
          | (?: would | should | must | might | could | can | may | will | does | needs ) \ (?: (?: not | only | also | to ) \ )*
            (?: be | say | mention | tell | explain | describe | discuss | provide | contain | include | answer | help | meet | join )
          | says | about | describ\w+ | discuss\w* | explain\w* | provid\w+ | contain\w* | mention\w* | itself | you | i ) \b
    | (?: ^ | [.:!?] ) \W* (?: the | this ) \ passages? \ (?: is | are ) \b
    | \b (?: right | given ) \ passage \b | \b (?: topic | version | author ) \ of \ (?: the | this ) \ passage \b | \b passages? :
    | \b (?: stated | described | mentioned ) \ in \ the \ passage \b
    | \b (?: of | describes? | answers? | answered \ by | asked \ in | said \ in | told \ in | rewrite | rewritten ) \ this \ passage \b
    | \b (?: this | the | given | above ) \ (?: search \ )? quer(?:y|ies)
      \ (?: (?: is | are | was ) \ (?: about | asking | for | from | related | looking | relevant ) | asks? | itself | must | description ) \b
    | \b (?: answers? | answer \ to | relevant \ to | related \ to | topic \ of ) \ (?: the | this ) \ query \b | \b your \ query \b
    | ^\W* (?: query [_-] \w | search \ quer(?:y|ies) \b ) | \b query_ (?: description | text | json )
    | ^\W* a \ (?: question | query ) \ (?: that | about ) \b
    """
)
"""People speak so too, of straits, of scripture and of databases."""

_ANSWER = re.compile(
    r"(?<!what )(?<!whether )(?<!if )\bthe (?:correct |right )?answer (?:to (?:this|the) question )?is\b"
    r"|\banswer would be\b",
    re.IGNORECASE,
)


def speaks_of_task(text: str, topic: str) -> bool:
    """Whether a query or passage has what only somebody says who was told to write it, as "a
    passage that helps would say", "**Query:**" or "[insert topic here]".

    Args:
        topic: what it is written from. Where that speaks of queries or of passages itself, as
            documentation of a database does, one phrase with that word proves nothing unless
            another phrase is there too.
    """
    if _TO_WHO_ASKED.search(text) or _OF_RELEVANCE.search(text):
        return True
    phrases = {match[0].lower() for match in _MAY_BE_OF_IT.finditer(text)}
    of_topic = [word for word in ("passage", "quer") if word in topic.lower()]
    return len(phrases) > 1 or any(not any(word in phrase for word in of_topic) for phrase in phrases)


def gives_answer(query: str) -> bool:
    """Whether a query says what its answer is. Of 5,213 real queries nine do, all of them
    exercises of programming with worked examples."""
    return bool(_ANSWER.search(query))
