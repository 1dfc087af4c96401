"""Server-sent events from bytes that are split anywhere."""

import pytest

from limrank.serving.event_parser import Event, EventParser


def parsed(content, size=None, **options):
    parser = EventParser(**options)
    pieces = [content] if size is None else [content[start : start + size] for start in range(0, len(content), size)]
    return [event for piece in pieces for event in parser.feed(piece)]


STREAM = (
    ': keep-alive\n\nevent: ranking\ndata: {"a": "ünï 漢字 🙂\u2028"}\n\nid: 7\nretry: 10\nevent: done\ndata:one\ndata: two\n'
    "data\n\n: end\n\nevent: empty\n\ndata: plain\n\n"
)
EVENTS = [Event("ranking", '{"a": "ünï 漢字 🙂\u2028"}'), Event("done", "one\ntwo\n"), Event("message", "plain")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, None])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_any_split_and_any_line_end_give_the_same_events(end, size, mark):
    assert parsed((mark + STREAM).replace("\n", end).encode(), size) == EVENTS


def test_line_ends_may_be_mixed():
    assert parsed(b"event: a\r\ndata: 1\rdata: 2\n\rdata: 3\r\n\r\n", 1) == [Event("a", "1\n2"), Event("message", "3")]


def test_an_event_that_does_not_end_is_none():
    assert parsed(b"event: done\ndata: {}\n") == []
    assert parsed(b"event: done\ndata: {}") == []
    assert parsed(b"") == []


def test_bytes_that_are_no_text_are_replaced():
    assert parsed(b"data: \xff\xfe\n\n", 1) == [Event("message", "\ufffd\ufffd")]


@pytest.mark.parametrize("size", [1, 5, None])
@pytest.mark.parametrize("content", [b"data: " + b"x" * 30, b"x" * 40, b"data: 12345678\n" * 4, b"event: aaaaaa\n" * 9])
def test_an_event_that_is_too_long_is_refused(size, content):
    with pytest.raises(ValueError, match="an event of more than 30 characters"):
        parsed(content, size, longest=30)


def test_many_short_events_and_comments_are_not_too_long():
    assert len(parsed(b"data: 1\n\n: and so on\n\n" * 1000, 7, longest=30)) == 1000
    assert parsed(b": and so on\n" * 1000, 7, longest=30) == []
