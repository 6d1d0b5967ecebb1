"""The one door from stored text to any screen.

Texts come from files and models and may hold anything: terminal escapes that write the
clipboard, characters that reverse the reading order, invisible ones. They are stored as they
came; what is shown goes through here, with every such character made visible.
"""

from __future__ import annotations

import re

# Escape and the other C0 controls (line feed and tab stay), delete, C1, line and paragraph
# separators, lone surrogates; the fillers and controls of Egyptian and Khitan writing; and all
# that Unicode calls Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 16.0), which is
# painted as nothing.
_HIDES = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U00013430-\U0001345f\U00016fe4\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Some of these are part of writing where they stand: one joiner behind a letter of a script that
# joins its letters (Arabic, Syriac, N'Ko; those of India and South-East Asia; Mongolian), one
# variation selector behind what has variants, and both within emoji. A row of them hides.
_JOINING = (
    "\u0600-\u061b\u061d-\u0dff\u1000-\u109f\u1780-\u17b3\u17b6-\u17ff\u1820-\u18aa\u1900-\u1cff"
    "\ua800-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00011fff"
    "\U0001e900-\U0001e95f"
)
_EMOJI = "\u00a9\u00ae\u203c\u2049\u2122-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_VARIED = (
    f"{_EMOJI}\u1000-\u109f\u3001\u3002\u3400-\u4dbf\u4e00-\u9fff\ua840-\ua87f\uaa60-\uaa7f"
    "\uf900-\ufaff\uff01-\uff1f\U00010ac0-\U00010aff\U00020000-\U0003ffff"
)
HIDDEN = re.compile(
    f"[{_HIDES}]"
    f"(?<![{_JOINING}][\u200c\u200d])"
    "(?<![\u1820-\u18aa][\u180b-\u180d\u180f])"
    f"(?<![{_VARIED}][\ufe00-\ufe0f])"
    # At the end too: an emoji that is being typed.
    f"(?!(?:(?<=[{_EMOJI}]\u200d)|(?<=[{_EMOJI}]\ufe0f\u200d))(?:[{_EMOJI}]|\\Z))"
    "(?!(?<=[0-9#*]\ufe0f)(?:\u20e3|\\Z))"
)
# Scripts that put no spaces between words, counted in words of English, roughly and on the low
# side: a pick should rather go unmarked than be marked wrongly. Chinese, kana and their
# punctuation; Thai, Lao, Burmese and Khmer, whose words are spelt out.
UNSPACED = (
    ("[\u3001-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff01-\uff65\U00020000-\U0003ffff]", 2.5),
    ("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff]", 5.0),
)
MOST_CHARACTERS = 200_000
MOST_LINES = 5_000


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the Unicode pictures of the control characters
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


def visible(text: str) -> str:
    """Return `text` with every hidden or controlling character made visible."""
    return HIDDEN.sub(_shown, text.replace("\r\n", "\n"))


def hidden_count(text: str) -> int:
    """Return how many hidden or controlling characters a text has."""
    return len(HIDDEN.findall(text.replace("\r\n", "\n")))


def bare(text: str) -> str:
    """Return a text without what is hidden in it, nor space around it: what two may share."""
    return HIDDEN.sub("", text).strip()


def one_line(text: str, width: int) -> str:
    """Return a text made visible, on one line, cut to `width` characters."""
    line = " ".join(visible(text[: width * 4]).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def shortened(text: str, most: int) -> str:
    """Return a text on one line, cut in its middle: what happened and what next stay in sight."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    half = max(2, most - 3) // 2
    return f"{text[:half]} … {text[-half:]}"


def too_long(text: str) -> str | None:
    """Return why a text is over the size that is kept, or None."""
    if len(text) > MOST_CHARACTERS:
        return f"{len(text):,} characters; at most {MOST_CHARACTERS:,} are kept"
    lines = text.count("\n") + 1
    return f"{lines:,} lines; at most {MOST_LINES:,} are kept" if lines > MOST_LINES else None


def words_to_read(text: str) -> float:
    """Return about how many words there are to read, also where no spaces stand between them."""
    words = 0.0
    if not text.isascii():
        for script, letters_a_word in UNSPACED:
            text, letters = re.subn(script, " ", text)
            words += letters / letters_a_word
    return words + len(text.split())
