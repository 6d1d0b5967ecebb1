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
    "joiners between Latin letters": "a\u200d\u200cb",
    "a selector behind a Latin letter": "a\ufe0fb",
    "a joiner behind an emoji alone": "\U0001f469\u200db",
    "Khmer inherent vowel": "\u1780\u17b4",
    "Mongolian selector outside Mongolian": "a\u180bb",
    "musical control": "a\U0001d173b",
    "shorthand control": "a\U0001bca0b",
    "Egyptian control": "a\U00013430b",
    "Khitan filler": "a\U00016fe4b",
    "unassigned and ignorable": "a\ufff0\u2065\U000e0fffb",
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


IGNORABLE = (
    "ad 34f 61c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e 2060-206f 3164 fe00-fe0f feff "
    "ffa0 fff0-fff8 1bca0-1bca3 1d173-1d17a e0000-e0fff"
)


def test_every_ignorable_character_is_counted_between_latin_letters() -> None:
    ends = [[int(end, 16) for end in each.split("-")] for each in IGNORABLE.split()]
    codes = [code for each in ends for code in range(each[0], each[-1] + 1)]
    assert len(codes) == 4_174
    assert [hex(code) for code in codes if hidden_count(f"a{chr(code)}b") != 1] == []


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e", "क्\u200dष", "ශ්\u200dරී", "\u1820\u180b\u1821",
        "1\ufe0f\u20e3", "❤\ufe0f", "👩🏽\u200d🚀", "🏳\ufe0f\u200d🌈", "葛\ufe00", "👩\u200d",
    ],
)  # fmt: skip
def test_joiners_and_selectors_are_part_of_what_needs_them_but_no_row_of_them(text: str) -> None:
    assert visible(text) == text and hidden_count(text) == 0
    more = text.replace("\u200c", "\u200c\u200d").replace("\ufe0f", "\ufe0f\ufe01\ufe02")
    assert hidden_count(more) >= len(more) - len(text)


@given(st.text(st.characters() | st.sampled_from("a\u200d\u200c\ufe0f\u180b👩❤1\u20e3\x1bم\u1820")))
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
