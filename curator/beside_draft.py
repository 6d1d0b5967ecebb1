"""The draft of what is said beside no verdict yet: reasons, flag, answers to the red flags.

JSON, in the table where a note and a rewrite are kept as they are written. Needs no database.
"""

from __future__ import annotations

import json
from dataclasses import replace

from curator.rubric import MOST_TAGS_A_SIDE, Rubric
from curator.words import Said

BESIDE = "beside"


def draft_text(said: Said, earlier: Said | None) -> str:
    """Return the draft of what is said; empty where neither it nor `earlier` says anything.

    Where something was said before, saying nothing is said too: a flag was taken off.
    """
    if not any(map(_says_something, filter(None, (said, earlier)))):
        return ""
    return json.dumps(
        {
            "tags_left": said.tags_left,
            "tags_right": said.tags_right,
            "flagged": said.flagged,
            "red_flags": said.red_flags,
        }
    )


def differs(said: Said, earlier: Said) -> bool:
    """Tell whether reasons, flag or answers are others than what was said before."""
    mine, before = (
        (each.tags_left, each.tags_right, each.flagged, each.red_flags) for each in (said, earlier)
    )
    return mine != before


def _says_something(said: Said) -> bool:
    return bool(said.tags_left or said.tags_right or said.flagged or said.red_flags)


def with_draft(said: Said, text: str, rubric: Rubric) -> Said:
    """Return `said` with what its draft says; as it is where there is none, or a damaged one.

    A reason that the rubric does not know is left out, unless it was given before; so are answers
    that are not to all questions the rubric asks.
    """
    known = {tag.tag for tag in rubric.tags} | {*said.tags_left, *said.tags_right}
    asked = {f"{side}.{flag.flag}" for side in ("left", "right") for flag in rubric.red_flags}
    try:
        values = json.loads(text)
        left, right = (
            tuple(tag for tag in dict.fromkeys(values[name]) if tag in known)[:MOST_TAGS_A_SIDE]
            for name in ("tags_left", "tags_right")
        )
        flagged = values["flagged"] is True
        answers = dict(values["red_flags"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return said
    whole = answers.keys() == asked and all(isinstance(each, bool) for each in answers.values())
    red_flags = answers if whole else said.red_flags
    return replace(said, tags_left=left, tags_right=right, flagged=flagged, red_flags=red_flags)
