"""What workers tell the screens, and the app asks of them. Workers only post."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from textual.message import Message

if TYPE_CHECKING:
    from curator.models import Run


@dataclass
class RunEvent(Message):
    """The trainer said something."""

    event: dict[str, Any]


@dataclass
class RunEnded(Message):
    """The run under way has ended and is settled; `run` is None when another process settled it."""

    run: Run | None


@dataclass
class RunChanged(Message):
    """Passed on to every open screen: what is known of the run has changed."""

    ended: Run | None = None
    pairs: bool = False
    """Pairs came into the queue while it goes on."""


@dataclass
class PairsCame(Message):
    """Pairs of the run under way are in the queue."""


@runtime_checkable
class Drafts(Protocol):
    """A screen on which something is written."""

    def draft(self) -> bool:
        """Keep what is written so far, if it changed; tell whether it is on the disk."""
        ...
