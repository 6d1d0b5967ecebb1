"""A paste is one text, whatever it holds: nothing in it is ever taken for a key.

Textual's own parser looks for keys in a bracketed paste too, wherever an ESC stands in it; the
letters behind one would judge.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import Any

from textual import constants, events
from textual._parser import ParseEOF, ParseTimeout, Peek1, Read1, TokenCallback
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.driver import Driver

from curator.safe_text import HIDDEN

ESC = "\x1b"
# A terminal sends a paste in one go. Where its end was lost on the way, which a pause this long
# tells, esc, ctrl+c or a key that is sent as a sequence ends it: the app is not deaf for good.
# Letters do not: they may be the rest of a paste on a slow line. (One that halts for so long just
# before an ESC in its text cannot be told from it.)
STALLED_SECONDS = 2.0

Reads = Generator[Read1 | Peek1, str, None]


def cleaned(text: str) -> str:
    """Return a pasted text with its lines ended by line feeds and without what a terminal obeys.

    Terminals send a carriage return for every line's end of a paste.
    """
    return HIDDEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


class PasteParser(XTermParser):
    """Textual's parser behind a gate that keeps pastes from it.

    A paste that holds the sequence of its own end is cut there by every terminal that lets it
    through, and cannot be told from one that ends; what follows it is keys, here too. A terminal
    without bracketed paste sends a paste as keys.
    """

    def parse(self, token_callback: TokenCallback[Any]) -> Reads:
        """Yield what is to be read next; tokens go to `token_callback`."""
        keys = super().parse(token_callback)
        waits = next(keys)
        begun = 0  # how many characters of a paste's start were read in a row
        held = ""  # those of them that `keys` was not given: they may yet be a key
        try:
            while True:
                try:
                    character = yield Read1(_patience(held)) if held else waits
                except ParseTimeout:
                    waits, held = _ended(keys, _given(keys, held, waits)), ""
                    continue  # a slow line may still bring the rest of the start
                if character == BRACKETED_PASTE_START[begun]:
                    begun, held = begun + 1, held + character
                    if begun < len(BRACKETED_PASTE_START):
                        continue
                    waits, begun, held = _ended(keys, waits), 0, ""
                    character = yield from _paste(token_callback)
                waits, held, begun = _given(keys, held, waits), "", 0
                if character == ESC:
                    held, begun = ESC, 1
                elif character:
                    waits = keys.send(character)
        except ParseEOF as end:
            try:
                _given(keys, held, waits)
                keys.throw(end)
            except StopIteration:
                return


def _patience(held: str) -> float:
    """Return the seconds that what may be a paste's start is waited for.

    Nobody types three characters of it, but where a paste is halted there on a slow line, the
    digits would be keys.
    """
    return constants.ESCAPE_DELAY if len(held) < 3 else STALLED_SECONDS


def _given(keys: Reads, characters: str, waits: Read1 | Peek1) -> Read1 | Peek1:
    """Give `keys` characters to read; return what it waits for then."""
    for character in characters:
        waits = keys.send(character)
    return waits


def _ended(keys: Reads, waits: Read1 | Peek1) -> Read1 | Peek1:
    """Have `keys` take what it was given for whole; return what it waits for then."""
    return waits if waits.timeout is None else keys.throw(ParseTimeout())


def _paste(token_callback: TokenCallback[Any]) -> Generator[Read1, str, str]:
    """Read to the end of a paste and tell its text; return the key that ended it, or nothing."""
    taken: list[str] = []
    key, stalled = "", False
    while True:
        try:
            character = yield Read1(STALLED_SECONDS)
        except ParseTimeout:
            stalled = True
            continue
        if stalled and character in (ESC, "\x03"):
            key = character  # also where it begins the end, which means nothing to `keys`
            break
        stalled = False
        taken.append(character)
        if character == "~" and "".join(taken[-len(BRACKETED_PASTE_END) :]) == BRACKETED_PASTE_END:
            del taken[-len(BRACKETED_PASTE_END) :]
            break
    token_callback(events.Paste("".join(taken)))
    return key


def gate(driver: type[Driver]) -> type[Driver]:
    """Have Textual's drivers read through PasteParser from now on; return the driver.

    They make their parser themselves, by the name it has in their module (on Windows, in another
    one), and offer no other way to choose it.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("textual.drivers.") and "XTermParser" in vars(module):
            vars(module)["XTermParser"] = PasteParser
    return driver
