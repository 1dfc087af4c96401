import jinja2
import pytest

from helpers.units import words
from limrank import html


def test_a_cut_is_marked():
    assert html.clip("as it is", 8) == "as it is"
    assert html.clip("one too long", 8) == "one too…"
    assert html.clip("a space is not kept", 3) == "a…"


def test_what_cannot_be_seen_is_spelt_out():
    assert html.visible("a\x00b\x1b[31m\x85\x7f\r") == "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+0085⟩⟨U+007F⟩⟨U+000D⟩"
    assert html.visible("exe\u202ecod.txt\u2066") == "exe⟨U+202E⟩cod.txt⟨U+2066⟩"
    # Line breaks, joined emoji and letters of any script are text.
    plain = "one\n\ttwo 👩\u200d🔬 שלום مرحبا"
    assert html.visible(plain) == plain


def test_every_field_is_escaped_and_none_may_be_missing():
    page = html.render("page.html.j2", title="<script>alert(1)</script>", facts={"a & b": "\"'<i>"})
    assert words(page).endswith("<script>alert(1)</script> What was run a & b \"'<i>")
    assert "<script" not in page and "<i>" not in page
    with pytest.raises(jinja2.UndefinedError):
        html.render("page.html.j2", title="t")
