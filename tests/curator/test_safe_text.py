"""Nothing that controls a terminal, hides or reorders gets through the one door."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.safe_text import HIDDEN, hidden_count, one_line, too_long, visible

PAYLOADS = {
    "OSC 52 clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "OSC 0 title": "\x1b]0;evil\x07",
    "clear screen": "\x1b[2J",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;evil\x9c",
    "hyperlink": "\x1b]8;;http://evil.example\x1b\\x\x1b]8;;\x1b\\",
    "NUL": "a\x00b",
    "DEL": "a\x7fb",
    "right-to-left override": "a\u202eb",
    "isolate": "a\u2066b\u2069",
    "zero-width space": "a\u200bb",
    "byte order mark": "a\ufeffb",
    "tag characters": "a\U000e0041b",
    "line separator": "a\u2028b",
    "lone surrogate": "a\ud800b",
    "carriage return": "safe\revil",
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_payload_is_made_visible(payload: str) -> None:
    shown = visible(payload)
    assert not HIDDEN.search(shown)
    assert shown != payload
    assert hidden_count(payload) >= 1
    shown.encode("utf-8")


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Größe, 日本, 👩‍👩‍👧 and\ttabs\nlines [/b] [@click=x]"
    assert visible(text) == text
    assert hidden_count(text) == 0
    assert visible("one\r\ntwo") == "one\ntwo"


@given(st.text(st.characters()))
def test_any_text_comes_out_without_hidden_characters(text: str) -> None:
    shown = visible(text)
    assert not HIDDEN.search(shown)
    assert visible(shown) == shown


def test_one_line_is_one_line_of_the_width_asked_for() -> None:
    assert one_line("a\nb   c", 10) == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


def test_size_limits_say_what_is_too_much() -> None:
    assert too_long("x" * 200_000) is None
    assert "200,001 characters" in (too_long("x" * 200_001) or "")
    assert "5,001 lines" in (too_long("\n" * 5_000) or "")
