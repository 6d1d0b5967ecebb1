"""The one door from stored text to any screen.

Texts come from files and models and may hold anything: terminal escapes that write the
clipboard, characters that reverse the reading order, invisible ones. They are stored as they
came; what is shown goes through here, with every such character made visible.
"""

from __future__ import annotations

import re

# Escape and the other C0 controls (line feed and tab stay), delete, C1, line and paragraph
# separators, reading-order controls, zero-width and blank-looking characters that only hide
# (joiners stay: scripts and emoji need them), tag characters, and lone surrogates.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e01ef]"
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


def one_line(text: str, width: int) -> str:
    """Return a text made visible, on one line, cut to `width` characters."""
    line = " ".join(visible(text[: width * 4]).split())
    return line if len(line) <= width else line[: width - 1] + "…"


def too_long(text: str) -> str | None:
    """Return why a text is over the size that is kept, or None."""
    if len(text) > MOST_CHARACTERS:
        return f"{len(text):,} characters; at most {MOST_CHARACTERS:,} are kept"
    lines = text.count("\n") + 1
    return f"{lines:,} lines; at most {MOST_LINES:,} are kept" if lines > MOST_LINES else None
