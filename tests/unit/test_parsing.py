"""Every fault of a text is one short UserError that says where it is."""

import json
import math

import pytest

from limrank.errors import UserError
from limrank.parsing import DEEPEST, brief, finite_number, parse_json, parse_json_array, parse_yaml, whole_number

DEEP = 50_000


def refusal(call, *arguments, **options):
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    message = str(raised.value)
    assert len(message) <= 300
    assert "\n" not in message
    return message


# ---- JSON ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": "caf\xe9"}', "f: not UTF-8 text"),
        (b'{"a": 1,\n"b": "\xff"}', "f:2: not UTF-8 text"),
        ('{"a": 1}'.encode("utf-16"), "f: not UTF-8 text, but UTF-16: save it as UTF-8"),
        ("", "f: not JSON: Expecting value (column 1)"),
        ('{"a": 1,\n"b" 2}', "f:2: not JSON: Expecting ':' delimiter (column 5)"),
        ('{"a": 1} 2', "f: not JSON: Extra data (column 10)"),
        ('{"a": "\x00"}', "f: not JSON: Invalid control character at (column 8)"),
        ("[" * DEEP, f"f: more than {DEEPEST} levels deep"),
        ('{"a":' * DEEP + "1" + "}" * DEEP, f"f: more than {DEEPEST} levels deep"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), f"f: more than {DEEPEST} levels deep"),
        ("9" * 5000, "f: a number of very many digits"),
        ('{"a": {"b": [0, ' + "9" * 400 + "]}}", "f: a number of very many digits (in a.b.1)"),
        ('{"a": 1e999}', "f: inf is not a finite number (in a)"),
        ('{"a": [NaN]}', "f: nan is not a finite number (in a.0)"),
        ("-Infinity", "f: -inf is not a finite number"),
        (r'{"a": "\ud800"}', "f: half a surrogate pair, which is no character (in a)"),
        (r'{"\uDFFF": 1}', "f: half a surrogate pair, which is no character (in a key)"),
        ('"\ud800"', "f: not UTF-8 text"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "f: the key 'c' is there twice"),
        (f'{{"{"k" * 9000}": 1, "{"k" * 9000}": 2}}', f"f: the key '{'k' * 119}… is there twice"),
    ],
)
def test_json_that_is_refused(text, message):
    assert refusal(parse_json, text, "f") == message


def test_json_on_one_line_of_a_file_is_named_by_that_line():
    assert refusal(parse_json, '{"a" 1}', "f", line=7) == "f:7: not JSON: Expecting ':' delimiter (column 6)"


@pytest.mark.parametrize(("text", "found"), [("[]", "list"), ("null", "null"), ("1", "int"), ('""', "str")])
def test_json_of_another_type_than_expected(text, found):
    assert refusal(parse_json, text, "f", expect=dict) == f"f: not a JSON object, but {found}"


def test_json_that_is_taken():
    text = '{"a": [1, 2.5, null, true, "caf\u00e9 \\ud83d\\ude00 \\u0000"], "b": {}}'
    expected = {"a": [1, 2.5, None, True, "café 😀 \0"], "b": {}}
    assert parse_json(text, "f", expect=dict) == expected
    assert parse_json(b"\xef\xbb\xbf" + text.encode(), "f") == expected
    assert parse_json("\ufeff" + text, "f") == expected
    nested = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parse_json(nested, "f")) == nested


def test_numbers_of_an_endpoint_may_be_infinite():
    assert parse_json('{"logprob": -Infinity}', "f", finite=False) == {"logprob": -math.inf}


# ---- arrays of objects ---------------------------------------------------------------


def test_an_array_of_objects():
    records = [{"text": '"],[{ \\ é 漢'}, {}, {"list": [1, {"a": None}]}, {"long": "x" * 1000}]
    for indent in (None, 1):
        data = json.dumps(records, ensure_ascii=False, indent=indent).encode()
        assert list(parse_json_array(data, "f")) == [
            (number, f"f: element {number}", record) for number, record in enumerate(records, start=1)
        ]
    assert list(parse_json_array("\ufeff \n[ ] \n".encode(), "f")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "f: not a JSON array, but '{'"),
        ("", "f: not a JSON array, but the end of the file"),
        ('[{"a": 1}, {"a": 2}, and what is no JSON', "f: element 3: not a JSON object, but 'a'"),
        ('[{"a": 1},\n{"a" 2}', "f: element 2: not JSON: Expecting ':' delimiter (line 2, column 6)"),
        ('[{"a": 1}, {"a": 1, "a": 2}]', "f: element 2: the key 'a' is there twice"),
        ('[{"a": 1}, {"a": NaN}]', "f: element 2: nan is not a finite number (in a)"),
        ('[{"a": ' + "[" * DEEP, f"f: element 1: more than {DEEPEST} levels deep"),
        ('[{"a": ' + "9" * 5000 + "}]", "f: element 1: a number of very many digits"),
        ('[{"a": 1}]]', "f: ']' after the end of the array: one array is the whole file"),
        ('[{"a": 1},\n{"a": "\ud800"}]', "f:2: not UTF-8 text"),
    ],
)
def test_an_array_that_is_refused(text, message):
    assert refusal(lambda: list(parse_json_array(text.encode("utf-8", "surrogatepass"), "f"))) == message


# ---- YAML ----------------------------------------------------------------------------


def laughs(levels=9, wide=9):
    """Each level holds the one before ``wide`` times."""
    return "a0: &a0 [x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * wide)}]\n" for level in range(1, levels + 1)
    )


def merges(levels=12, wide=9):
    return "m0: &m0 {x: 1}\n" + "".join(
        f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * wide)}]}}\n" for level in range(1, levels + 1)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: caf\xe9", "f: not UTF-8 text"),
        ("a: 1".encode("utf-16"), "f: not UTF-8 text, but UTF-16: save it as UTF-8"),
        ("a: [1, 2", "f: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2\n", "f:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\nb: \x00\n", "f:2: not YAML: the character U+0000 is not allowed there"),
        ("a: 1\n---\nb: 2\n", "f:2: not YAML: but found another document"),
        ("a: *b", "f: not YAML: found undefined alias 'b'"),
        (f"a: *{'b' * 9000}", f"f: not YAML: found undefined alias '{'b' * 97}…"),
        ("a: 1\nb: 2\na: 3\n", "f:3: the key 'a' is there twice"),
        ("a: {b: {c: 1, d: 2, 'c': 3}}", "f: the key 'c' is there twice"),
        (
            "a: 1\nb: !!python/object/apply:os.system [ls]\n",
            "f:2: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not known here",
        ),
        ("a: !mine 1", "f: the tag '!mine' is not known here"),
        ("a: !!set {b}", "f: the tag 'tag:yaml.org,2002:set' is not known here"),
        ("a: !!binary aGk=", "f: the tag 'tag:yaml.org,2002:binary' is not known here"),
        ("a: !!int abc", "f: 'abc' is not of the tag !!int, or too large"),
        ("a: !!float abc", "f: 'abc' is not of the tag !!float, or too large"),
        ("a: !!bool abc", "f: 'abc' is not of the tag !!bool, or too large"),
        ("a: " + "9" * 5000, f"f: '{'9' * 119}… is not of the tag !!int, or too large"),
        ("a: " + "9" * 400, "f: a number of very many digits (in a)"),
        ("a: 0x" + "f" * 9000, "f: a number of very many digits (in a)"),
        ("a: .inf", "f: inf is not a finite number (in a)"),
        ("a: 1\nb: [1.0e+999]\n", "f:2: inf is not a finite number (in b.0)"),
        ("a: &a [*a]", f"f: more than {DEEPEST} levels deep, or an alias within itself"),
        ("a: &a {b: *a}", f"f: more than {DEEPEST} levels deep, or an alias within itself"),
        ("a: &a {<<: *a}", f"f: more than {DEEPEST} levels deep, or an alias within itself"),
        ("<<: 1", "f: << takes in a mapping, or a list of them"),
        ("? [a]\n: 1\n", "f:1: a key should be text, not a list or a mapping"),
        (r'a: "\ud800"', "f: half a surrogate pair, which is no character"),
        ("[" * DEEP, f"f: more than {DEEPEST} levels deep"),
        ("a: " + "{a: " * DEEP, f"f: more than {DEEPEST} levels deep"),
        ("- " * DEEP + "1", f"f: more than {DEEPEST} levels deep"),
        ("[" * 150 + "]" * 150, f"f: more than {DEEPEST} levels deep, or an alias within itself"),
        (" " * (2 << 20), "f: longer than 1048576 characters, which is not read as YAML"),
    ],
)
def test_yaml_that_is_refused(text, message):
    assert refusal(parse_yaml, text, "f") == message


@pytest.mark.parametrize("bomb", [laughs, merges])
def test_aliases_that_stand_for_billions(bomb):
    assert "more than 200000 values, with a value behind an alias counted each time" in refusal(parse_yaml, bomb(), "f")


@pytest.mark.parametrize(("text", "found"), [("[]", "list"), ("", "null"), ("1", "int"), ("a", "str")])
def test_yaml_of_another_type_than_expected(text, found):
    assert refusal(parse_yaml, text, "f", expect=dict) == f"f: should be a mapping of keys to values, not {found}"


def test_yaml_that_is_taken():
    text = """
base: &base {depth: 10, b: 0.4}
more: {<<: *base, b: 0.5}
both: {<<: [*base, {depth: 5, k1: 2}], b: 1}
list: [1, 1_000, 0x10, -2.5, 1e3, yes, no, ~, null, "1", 'null']
2024: a year
true: a key
2001-12-14: 2001-13-45
time: 8:00
octal: 0123
tagged: !!str 12
"""
    assert parse_yaml(text, "f") == {
        "base": {"depth": 10, "b": 0.4},
        "more": {"depth": 10, "b": 0.5},
        "both": {"depth": 10, "b": 1, "k1": 2},
        "list": [1, 1000, 16, -2.5, "1e3", True, False, None, None, "1", "null"],
        "2024": "a year",
        "true": "a key",
        "2001-12-14": "2001-13-45",
        "time": "8:00",
        "octal": "0123",
        "tagged": "12",
    }
    assert parse_yaml(b"\xef\xbb\xbfa: 1\r\n", "f") == {"a": 1}


def test_yaml_s_text_is_taken_as_it_is_written():
    text = "{a: 2024, b: [0123, yes, 1e3, .inf, 2001-13-45, ~, ''], c: {d: 0x10, e: 0x10}, f: null}"
    values = parse_yaml(text, "f", is_text=lambda way: way in (("a",), ("c", "d"), ("f",)) or way[0] == "b")
    assert values == {
        "a": "2024",
        "b": ["0123", "yes", "1e3", ".inf", "2001-13-45", None, ""],
        "c": {"d": "0x10", "e": 16},
        "f": None,
    }


# ---- numbers, and values in messages -------------------------------------------------


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, True, None, [], "", "x", "nan", "1e999", "1_0", 10**400, "9" * 5000]
)
def test_what_is_no_finite_number(value):
    assert refusal(finite_number, value, "f:1: the score").endswith(" is not a finite number")


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), ("-2.5", -2.5), ("1e3", 1000.0), (0.25, 0.25)])
def test_a_finite_number(value, number):
    assert finite_number(value, "f:1: the score") == number


@pytest.mark.parametrize("text", ["", "x", "1.0", "1_0", "9" * 19, "9" * 5000, "٣", "1e3"])
def test_what_is_no_whole_number(text):
    assert refusal(whole_number, text, "f:1: the grade").endswith(" is not a whole number")


def test_a_whole_number():
    assert [whole_number(text, "f") for text in ("0", "-1", " 12 ", "+3")] == [0, -1, 12, 3]


def test_a_value_in_a_message_is_short():
    assert brief("a") == "'a'"
    assert len(brief("a" * 200_000)) <= 122
    assert len(brief(["a" * 200_000])) <= 122
    assert brief(10**5000) == "a number of very many digits"
    assert brief([10**5000]) == "a value of type list"
