"""The tables, which are the domain objects; the words they use are in curator.words.

Every column names a type that SQLite's STRICT tables take (Text, Integer, REAL, LargeBinary) and
PostgreSQL takes too. Times are ISO 8601 in UTC with milliseconds; order is never read from them
but from `id`, `position`, `revision` and `sequence`. Rows of `judgment` are only ever added.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    REAL,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from curator.words import SCHEMA_VERSION as SCHEMA_VERSION
from curator.words import AdapterStatus as AdapterStatus
from curator.words import AnnotatorKind as AnnotatorKind
from curator.words import Purpose as Purpose
from curator.words import RunState as RunState
from curator.words import Split as Split
from curator.words import Verdict as Verdict
from curator.words import new_uuid as new_uuid
from curator.words import now as now


class Json(TypeDecorator[Any]):
    """A JSON value kept as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


class Choice(TypeDecorator[Any]):
    """One of an enum's values, kept as text and read back as the enum."""

    impl = Text
    cache_ok = True

    def __init__(self, values: type[StrEnum]) -> None:
        super().__init__()
        self.values = values

    def process_bind_param(self, value: Any, dialect: Any) -> str | None:
        return None if value is None else self.values(value).value

    def process_result_value(self, value: str | None, dialect: Any) -> Any:
        return None if value is None else self.values(value)


def _key() -> Any:
    return Field(default=None, sa_column=Column(Integer, primary_key=True))


def _text(default: Any = ..., *, unique: bool = False, index: bool = False) -> Any:
    column: Column[Any] = Column(Text, nullable=default is None, unique=unique, index=index)
    return Field(default=default, sa_column=column)


def _made(factory: Any, *, unique: bool = False) -> Any:
    return Field(default_factory=factory, sa_column=Column(Text, nullable=False, unique=unique))


def _choice(name: str, values: type[StrEnum], default: Any) -> Any:
    allowed = ", ".join(f"'{value}'" for value in values)
    check = CheckConstraint(f"{name} IN ({allowed})", name=f"{name}_known")
    return Field(default=default, sa_column=Column(name, Choice(values), check, nullable=False))


def _integer(default: Any = ..., *, unique: bool = False) -> Any:
    column: Column[Any] = Column(Integer, nullable=default is None, unique=unique)
    return Field(default=default, sa_column=column)


def _json(default: Any = None) -> Any:
    return Field(default=default, sa_column=Column(Json, nullable=True))


def _link(target: str, *, optional: bool = False, index: bool = False) -> Any:
    # No ON DELETE: a row that a judgment rests on cannot vanish under it.
    column: Column[Any] = Column(Integer, ForeignKey(target), nullable=optional, index=index)
    return Field(default=None if optional else ..., sa_column=column)


class Table(SQLModel):
    """What all tables share: STRICT typing on SQLite."""

    __table_args__: ClassVar[Any] = {"sqlite_strict": True}


def _table(*constraints: Any) -> Any:
    return (*constraints, {"sqlite_strict": True})


class Annotator(Table, table=True):
    """Who judges or writes replies."""

    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    name: str = _text(unique=True)
    kind: AnnotatorKind = _choice("kind", AnnotatorKind, AnnotatorKind.HUMAN)
    role: str | None = _text(None)
    orientation: str | None = _text(None)
    created_at: str = _made(now)


class Prompt(Table, table=True):
    """Chat messages ending with the client's turn."""

    id: int | None = _key()
    sha256: str = _text(unique=True)
    messages: list[dict[str, str]] = _json()
    external_id: str | None = _text(None, unique=True)
    client: str | None = _text(None, index=True)
    split: Split = _choice("split", Split, Split.TRAIN)
    source: str = _text()
    family: str | None = _text(None)
    content_label: str | None = _text(None)
    risk_cue: str | None = _text(None)
    asked: int = _integer(0)
    """How many runs were asked to write for it, whatever came of it."""
    created_at: str = _made(now)


class Adapter(Table, table=True):
    """A LoRA result on disk."""

    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    name: str = _text(unique=True)
    folder: str = _text()
    base_model: str = _text()
    base_sha256: str = _text()
    sha256: str = _text()
    pairs_sha256: str = _text()
    parent_id: int | None = _link("adapter.id", optional=True)
    metrics: dict[str, Any] = _json()
    status: AdapterStatus = _choice("status", AdapterStatus, AdapterStatus.PROPOSED)
    status_reason: str | None = _text(None)
    created_at: str = _made(now)
    decided_at: str | None = _text(None)


class Round(Table, table=True):
    """One turn of generate, annotate, train; `adapter_id` wrote its candidates (none: the base)."""

    id: int | None = _key()
    number: int = _integer(unique=True)
    adapter_id: int | None = _link("adapter.id", optional=True)
    strategy: str | None = _text(None)
    pairs: int = _integer(0)
    left_out: dict[str, int] = _json()
    created_at: str = _made(now)


class Run(Table, table=True):
    """One trainer process; its folder is under the workspace's runs/.

    `adapter_id` is the adapter it made, or wrote with.
    """

    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    folder: str = _text(unique=True)
    action: str = _text()
    state: RunState = _choice("state", RunState, RunState.RUNNING)
    round_id: int | None = _link("round.id", optional=True)
    adapter_id: int | None = _link("adapter.id", optional=True)
    pid: int | None = _integer(None)
    request_sha256: str = _text()
    error: str | None = _text(None)
    metrics: dict[str, Any] = _json()
    created_at: str = _made(now)
    ended_at: str | None = _text(None)


class Candidate(Table, table=True):
    """One completion of a prompt, by a model (and adapter) or by a person."""

    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    prompt_id: int = _link("prompt.id", index=True)
    text: str = _text()
    sha256: str = _text()
    model: str | None = _text(None)
    model_sha256: str | None = _text(None)
    adapter_id: int | None = _link("adapter.id", optional=True)
    run_id: int | None = _link("run.id", optional=True)
    steer: str | None = _text(None)
    system_prompt: str | None = _text(None)
    sampling: dict[str, Any] | None = _json()
    seed: int | None = _integer(None)
    template_sha256: str | None = _text(None)
    tokens: int | None = _integer(None)
    finish_reason: str | None = _text(None)
    author_id: int | None = _link("annotator.id", optional=True)
    rewrites_id: int | None = _link("candidate.id", optional=True)
    created_at: str = _made(now)


class Pair(Table, table=True):
    """Two candidates of one prompt; which is left was drawn from `side_seed` when it was made.

    `position` is the place in its round's queue. A pair with an `annotator_id` is for that one
    annotator only.
    """

    __table_args__ = _table(
        CheckConstraint("left_id <> right_id", name="two_candidates"),
        UniqueConstraint("round_id", "position", name="one_place"),
        # The few pairs for one annotator alone, found without reading the many for everybody: a
        # full index would not be used, nearly every value being null.
        Index(
            "pair_of_annotator", "annotator_id", "repeat_of", "purpose",
            sqlite_where=text("annotator_id IS NOT NULL"),
            postgresql_where=text("annotator_id IS NOT NULL"),
        ),
    )  # fmt: skip
    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    prompt_id: int = _link("prompt.id", index=True)
    left_id: int = _link("candidate.id")
    right_id: int = _link("candidate.id")
    side_seed: int = _integer()
    purpose: Purpose = _choice("purpose", Purpose, Purpose.TRAIN)
    repeat_of: int | None = _link("pair.id", optional=True)
    annotator_id: int | None = _link("annotator.id", optional=True)
    round_id: int = _link("round.id")
    position: int = _integer()
    distance: float | None = Field(default=None, sa_column=Column(REAL, nullable=True))
    created_at: str = _made(now)


class Judgment(Table, table=True):
    """One annotator's verdict on one pair. The highest `revision` counts.

    `digest` is the salted SHA-256 of what was judged and said; `chain` that of the annotator's
    previous chain value and this digest, in the order of `sequence`. Erasing a text and its salt
    leaves the digest standing, so the chain still verifies.
    """

    __table_args__ = _table(
        UniqueConstraint("pair_id", "annotator_id", "revision", name="one_revision"),
        UniqueConstraint("annotator_id", "sequence", name="one_sequence"),
        CheckConstraint(
            "(verdict IN ('left', 'right')) = (strength IS NOT NULL)", name="strength_of_a_side"
        ),
        CheckConstraint("strength IS NULL OR strength IN (1, 2)", name="strength_known"),
    )
    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    pair_id: int = _link("pair.id")
    annotator_id: int = _link("annotator.id")
    revision: int = _integer()
    sequence: int = _integer()
    verdict: Verdict = _choice("verdict", Verdict, ...)
    strength: int | None = _integer(None)
    tags_left: list[str] | None = _json()
    tags_right: list[str] | None = _json()
    red_flags: dict[str, bool] | None = _json()
    note: str | None = _text(None)
    flagged: int = _integer(0)
    rewrite_id: int | None = _link("candidate.id", optional=True)
    rubric_version: str = _text()
    sitting: str | None = _text(None)
    shown_at: str | None = _text(None)
    elapsed_ms: int | None = _integer(None)
    salt: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    digest: str = _text()
    chain: str = _text()
    created_at: str = _made(now)


class Lease(Table, table=True):
    """A pair handed out to one sitting until `expires_at` (seconds since 1970, UTC)."""

    pair_id: int = Field(sa_column=Column(Integer, ForeignKey("pair.id"), primary_key=True))
    annotator_id: int = _link("annotator.id")
    sitting: str = _text(index=True)
    expires_at: int = _integer()


class Bookmark(Table, table=True):
    """Up to which position of a round's queue an annotator has judged everything."""

    annotator_id: int = Field(
        sa_column=Column(Integer, ForeignKey("annotator.id"), primary_key=True)
    )
    round_id: int = Field(sa_column=Column(Integer, ForeignKey("round.id"), primary_key=True))
    position: int = _integer(0)


class Draft(Table, table=True):
    """Unsaved: a note, a rewrite of the left or right reply, what is said beside no verdict."""

    annotator_id: int = Field(
        sa_column=Column(Integer, ForeignKey("annotator.id"), primary_key=True)
    )
    pair_id: int = Field(sa_column=Column(Integer, ForeignKey("pair.id"), primary_key=True))
    field: str = Field(sa_column=Column(Text, primary_key=True))
    text: str = _text()
    updated_at: str = _made(now)


class Erasure(Table, table=True):
    """A text that was erased: what it was part of, why, and when. The text itself is gone."""

    id: int | None = _key()
    uuid: str = _made(new_uuid, unique=True)
    kind: str = _text()
    row_id: int = _integer()
    reason: str = _text()
    annotator_id: int | None = _link("annotator.id", optional=True)
    created_at: str = _made(now)


class Setting(Table, table=True):
    """A fact about this workspace: where each annotator's chain of judgments ends."""

    name: str = Field(sa_column=Column(Text, primary_key=True))
    value: str = _text()
