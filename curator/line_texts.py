"""What line mode prints of the keys, of what was said beside a verdict, and of the history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from curator.history import history
from curator.rubric import Rubric
from curator.safe_text import hidden_count, one_line, words_to_read
from curator.seat import Seat
from curator.verbs import Verb
from curator.words import COUNTED, Rewrite, Said, Verdict

# What may follow a key on its line.
MORE = {
    "tags": "A or B, then the keys of the reasons; alone: which reasons there are",
    "rewrite_left": "alone: goes on from what was begun; new: begins anew",
    "rewrite_right": "alone: goes on from what was begun; new: begins anew",
    "note": "then the note; alone: the one begun earlier, or none",
    "go_to": "then 17, or 2.17: round and number",
    "history": "alone, or with verdict=tie, flagged=yes, words to find",
    "rounds": "alone: what comes next; start: do that now",
}
MOST_LISTED = 20


def help_lines(verbs: Iterable[Verb]) -> Iterator[str]:
    """Yield the verbs with their keys, and what may follow these."""
    for verb in verbs:
        more = f"  ({MORE[verb.name]})" if verb.name in MORE else ""
        yield f"  {verb.key}  {verb.says}{more}"


def paragraph(name: str, text: str) -> str:
    """Return a text under a name, with its length and hidden characters.

    Its further lines stand in from the edge: no text can look like another speaker's.
    """
    hidden = hidden_count(text)
    words = f"{words_to_read(text):.0f} words"
    facts = f"{words}, {hidden} hidden characters" if hidden else words
    return f"{name} ({facts}): {text}".replace("\n", "\n    ")


def beside_lines(rubric: Rubric, said: Said, rewrite: Rewrite | None) -> Iterator[str]:
    """Yield what was said beside a verdict so far."""
    for letter, tags in (("A", said.tags_left), ("B", said.tags_right)):
        if tags:
            yield f"{letter} because {rubric.labels(tags)}"
    if said.note:
        yield f"note: {said.note}"
    if said.flagged:
        yield "flagged."
    if rewrite is not None:
        letter = "A" if rewrite.side is Verdict.LEFT else "B"
        yield paragraph(f"your rewrite of {letter}", rewrite.text)


def history_lines(seat: Seat, asked: str) -> Iterator[str]:
    """Yield the latest judgments, filtered: `verdict=tie flagged=yes words`, or some of these."""
    words_for = {said.replace(" ", "-"): verdict for verdict, said in COUNTED.items()}
    verdicts = {word.casefold(): verdict for word, verdict in words_for.items()}
    verdicts |= {str(verdict): verdict for verdict in COUNTED}
    verdict, flagged, words = None, False, []
    for word in asked.split(" "):
        name, _, value = word.partition("=")
        if name == "verdict" and value.casefold() not in verdicts:
            yield f"{one_line(word, 40)} is none of: {', '.join(words_for)}."
            return
        if name == "verdict":
            verdict = verdicts[value.casefold()]
        elif word == "flagged=yes":
            flagged = True
        else:
            words.append(word)
    rows = history(seat, verdict, flagged, " ".join(words))
    for row in rows[:MOST_LISTED]:
        flag = " flagged" if row.said.flagged else ""
        client = one_line(row.client, 60)
        clearly = " clearly" if row.said.strength == 2 else ""
        yield f"{row.round}.{row.number}  {COUNTED[row.said.verdict]}{clearly}{flag}  {client}"
    if not rows:
        yield "there is no such judgment." if asked else "nothing was judged so far."
