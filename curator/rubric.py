"""The reasons and red flags an annotator can give: data/rubric.json, or the workspace's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadConfig
from curator.safe_text import HIDDEN

FILE = "rubric.json"
DIRECTIONS = ("good", "over_agreeable", "over_corrected")
MOST_TAGS_A_SIDE = 3


@dataclass(frozen=True)
class Tag:
    """A reason, with the key that gives it."""

    tag: str
    key: str
    label: str
    short: str
    definition: str
    direction: str
    red: bool = False


@dataclass(frozen=True)
class RedFlag:
    """A question answered yes or no for each reply where there is a risk."""

    flag: str
    question: str


@dataclass(frozen=True)
class Rubric:
    """What a judgment may say beside its verdict; its version goes into every judgment."""

    version: str
    question: str
    tags: tuple[Tag, ...]
    red_flags: tuple[RedFlag, ...]

    def tag(self, name: str) -> Tag | None:
        """Return a tag by its name, or None."""
        return next((tag for tag in self.tags if tag.tag == name), None)

    def labels(self, names: list[str] | tuple[str, ...] | None) -> str:
        """Return tags as people read them."""
        return ", ".join(tag.short if (tag := self.tag(n)) else n for n in names or ())


def load_rubric(path: Path) -> Rubric:
    """Read a rubric. Raises BadConfig naming the file and what is wrong in it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        rubric = Rubric(
            version=_text(values, "version"),
            question=_text(values, "question"),
            tags=tuple(_tag(each) for each in values["tags"]),
            red_flags=tuple(
                RedFlag(_text(each, "flag"), _text(each, "question"))
                for each in values.get("red_flags", ())
            ),
        )
    except OSError as error:
        raise BadConfig(f"{path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadConfig(f"{path} is no rubric ({error}). See data/rubric.json for one.") from None
    for what, everything in (
        ("tag", rubric.tags),
        ("key", rubric.tags),
        ("flag", rubric.red_flags),
    ):
        seen = [getattr(each, what) for each in everything]
        twice = sorted({each for each in seen if seen.count(each) > 1})
        if twice:
            raise BadConfig(f"{path}: the {what} {twice[0]!r} stands twice.")
    return rubric


def _text(values: dict[str, Any], name: str) -> str:
    value = values[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is no text")
    if HIDDEN.search(value) or "\n" in value:
        raise ValueError(f"{name} holds a line's end or a character that is not seen")
    return value


def _tag(values: dict[str, Any]) -> Tag:
    names = ("tag", "key", "label", "short", "definition", "direction")
    tag = Tag(**{name: _text(values, name) for name in names}, red=values.get("red") is True)
    if len(tag.short) > 13:
        raise ValueError(f"short of {tag.tag} is longer than 13 characters")
    if len(tag.key) != 1 or not tag.key.isalnum():
        raise ValueError(f"the key of {tag.tag} is no single letter or digit")
    if tag.direction not in DIRECTIONS:
        raise ValueError(f"{tag.tag} has the direction {tag.direction!r}")
    return tag
