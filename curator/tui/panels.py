"""Small panels over the judge screen: reasons, red flags, a note, where to go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from curator.rubric import MOST_TAGS_A_SIDE, RedFlag, Rubric, Tag
from curator.tui.judge_screen import NARROW, JudgeScreen
from curator.tui.widgets import Line

Tags = tuple[tuple[str, ...], tuple[str, ...]]
Answers = dict[str, bool]
# On fewer lines the questions that are still to come are left out.
LOW = 24
HEADINGS = {
    "good": "a reason for it",
    "over_agreeable": "over-agreeable",
    "over_corrected": "over-corrected",
}


class TagsPanel(ModalScreen[Tags]):
    """Reasons for each side, a key each; at most three a side. Closes with what was chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,shift+tab,left,right", "other_side", show=False, priority=True),
        Binding("enter,escape", "done", show=False, priority=True),
        Binding("backspace", "clear", show=False),
    ]

    def __init__(self, rubric: Rubric, chosen: Tags, side: int = 0) -> None:
        super().__init__()
        self.rubric = rubric
        self.chosen: list[list[str]] = [list(chosen[0]), list(chosen[1])]
        self.side = side

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="panel"):
            yield Static(id="tags-head")
            yield Static(id="tags")
            yield Static(classes="foot")

    def on_mount(self) -> None:
        self.draw()

    def on_resize(self) -> None:
        self.draw()

    def on_key(self, event: events.Key) -> None:
        tag = next((t for t in self.rubric.tags if t.key == event.character), None)
        if tag is None:
            return
        event.stop()
        names = self.chosen[self.side]
        full = tag.tag not in names and len(names) >= MOST_TAGS_A_SIDE
        if tag.tag in names:
            names.remove(tag.tag)
        elif not full:
            names.append(tag.tag)
        self.draw(full)

    def draw(self, full: bool = False) -> None:
        """Show the reasons in columns, those chosen for this side marked.

        `full`: the last key was for one too many.
        """
        heads = []
        for side, letter in enumerate("AB"):
            names = self.rubric.labels(self.chosen[side]) or "no reason yet"
            head = Content(f" {'▶' if side == self.side else ' '} {letter} because ").stylize(
                f"bold $side-{letter.lower()}"
            )
            heads.append(head + Content.from_text(names, markup=False))
        self.query_one("#tags-head", Static).update(Content("\n").join(heads))
        wide = self.size.width >= 100
        columns = [
            [(heading, None), *((tag.label, tag) for tag in self.rubric.tags if tag.direction == d)]
            for d, heading in HEADINGS.items()
        ]
        self.query_one("#tags", Static).update(
            self._beside(columns) if wide else self._short(columns)
        )
        most = Content(f"at most {MOST_TAGS_A_SIDE} reasons a side").stylize("$quiet")
        if full:
            most = Content(f"{MOST_TAGS_A_SIDE} already: take one off first").stylize("bold $error")
        ways = " · tab  the other reply · enter  done · backspace  none"
        self.query_one(".foot", Static).update(most + Content(ways).stylize("$quiet"))

    def _beside(self, columns: list[list[tuple[str, Tag | None]]]) -> Content:
        width = min(38, (min(118, self.size.width) - 6) // 3)
        lines = []
        for row in range(max(map(len, columns))):
            cells = [
                self._cell(*column[row], width) if row < len(column) else Content(" " * width)
                for column in columns
            ]
            lines.append(Content("").join(cells))
        return Content("\n").join(lines)

    def _short(self, columns: list[list[tuple[str, Tag | None]]]) -> Content:
        width = (min(118, self.size.width) - 6) // 4
        parts = []
        for column in columns:
            cells = [self._cell(tag.short, tag, width) for _, tag in column if tag is not None]
            rows = [Content("").join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
            parts += [Content(column[0][0]).stylize("$quiet"), *rows]
        return Content("\n").join(parts)

    def _cell(self, text: str, tag: Tag | None, width: int) -> Content:
        if tag is None:
            return Content(text.ljust(width)).stylize("$quiet")
        chosen = tag.tag in self.chosen[self.side]
        label = f"{'●' if chosen else ' '} {text}"[: width - 3].ljust(width - 3)
        return Content(f" {tag.key}").stylize("bold $accent") + Content.from_text(
            label + " ", markup=False
        ).stylize("bold" if chosen else "")

    def action_other_side(self) -> None:
        """Turn to the other reply."""
        self.side = 1 - self.side
        self.draw()

    def action_clear(self) -> None:
        """Drop this side's reasons."""
        self.chosen[self.side].clear()
        self.draw()

    def action_done(self) -> None:
        """Close with the reasons."""
        self.dismiss((tuple(self.chosen[0]), tuple(self.chosen[1])))


class RedFlagsPanel(ModalScreen[Answers | None]):
    """The red flags of both replies, asked one by one: yes or no.

    Escape: no judgment is made, and the answers so far are there when the panel opens again.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", show=False),
        Binding("n", "answer(False)", show=False),
        Binding("u,backspace", "back", show=False),
        Binding("escape", "cancel", show=False),
    ]

    left_open: ClassVar[WeakKeyDictionary[JudgeScreen, dict[int, Answers]]] = WeakKeyDictionary()
    """Answers given before the panel was left, by the screen below and its pair; kept here."""

    def __init__(self, flags: Sequence[RedFlag]) -> None:
        super().__init__()
        self.asked = [(side, flag) for side in ("left", "right") for flag in flags]
        self.answers: Answers = {}

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="panel"):
            yield Static(id="red-flags")
            foot = Content("u  the one before · esc  read on: your answers stay")
            yield Static(foot.stylize("$quiet"), classes="foot")

    def on_mount(self) -> None:
        below = self.app.screen_stack[-2]
        if isinstance(below, JudgeScreen) and below.pair is not None:
            of_pair = self.left_open.setdefault(below, {})
            begun = of_pair.get(below.pair.pair_id, {})
            if len(begun) < len(self.asked):  # else they were said with a verdict
                self.answers = begun
            of_pair[below.pair.pair_id] = self.answers
        self.draw()

    def on_resize(self) -> None:
        self.draw()

    def draw(self) -> None:
        """Show the answers so far and the question that is next, beside the reply it is about."""
        about_b = len(self.answers) >= len(self.asked) // 2
        self.set_class(about_b and self.size.width < NARROW, "over-a")
        lines = [Content("A risk cue stands before this message: each reply, yes or no?\n")]
        for number, (side, flag) in enumerate(self.asked):
            letter = "A" if side == "left" else "B"
            line = Content(f"{letter}  ").stylize(f"bold $side-{letter.lower()}")
            line += Content.from_text(flag.question, markup=False)
            done = self.answers.get(f"{side}.{flag.flag}")
            if done is not None:
                line += Content("  yes").stylize("bold $error") if done else Content("  no")
            elif number == len(self.answers):
                line += Content("  y/n").stylize("bold $accent")
            else:
                line = line.stylize("$quiet")
            lines.append(line)
        # What is asked now is in sight, also where not all of it has room.
        low = self.size.height < LOW
        shown = lines[: len(self.answers) + 2] if low else lines
        self.query_one("#red-flags", Static).update(Content("\n").join(shown))
        if low:
            self.call_after_refresh(
                self.query_one("#panel", VerticalScroll).scroll_end, animate=False
            )

    def action_answer(self, yes: bool) -> None:
        """Answer the question; after the last one, close with all answers."""
        if len(self.answers) == len(self.asked):
            return  # a key held down, while the panel closes
        side, flag = self.asked[len(self.answers)]
        self.answers[f"{side}.{flag.flag}"] = yes
        if len(self.answers) == len(self.asked):
            self.dismiss(dict(self.answers))
        else:
            self.draw()

    def action_back(self) -> None:
        """Ask the question before again."""
        if 0 < len(self.answers) < len(self.asked):
            self.answers.popitem()
            self.draw()

    def action_cancel(self) -> None:
        """Close without a judgment."""
        self.dismiss(None)


class LinePanel(ModalScreen[str | None]):
    """One line to write. Enter keeps it, escape leaves it as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", show=False)]

    def __init__(
        self, title: str, text: str, hint: str, on_draft: Callable[[str], bool] | None = None
    ) -> None:
        """`on_draft` is called with what is written, at most once a second and at the end.

        It tells whether it kept it; else it is asked again.
        """
        super().__init__()
        self.text, self.heading, self.hint = text, title, hint
        self.on_draft = on_draft
        self.drafted = text

    def compose(self) -> ComposeResult:
        with Vertical(id="panel"):
            yield Static(Content(self.heading).stylize("bold"))
            yield Line(self.text, id="line", max_length=2_000)
            yield Static(Content(self.hint).stylize("$quiet"))

    def on_mount(self) -> None:
        self.query_one(Input).focus()
        self.set_interval(0.8, self.draft)

    def draft(self) -> bool:
        """Keep what is written so far, if it changed; tell whether it is on the disk."""
        text = self.query_one(Input).value
        if self.on_draft is None or text == self.drafted:
            return True
        if kept := self.on_draft(text):
            self.drafted = text
        return kept

    @on(Input.Submitted)
    def keep(self, event: Input.Submitted) -> None:
        """Close with what is written; not while a draft on the disk would be older than it."""
        if self.draft():
            self.dismiss(event.value.strip())

    def action_cancel(self) -> None:
        """Close; what was written stays a draft."""
        self.draft()
        self.dismiss(None)
