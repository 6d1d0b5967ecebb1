"""A newcomer's first minutes: who they are, and a practice pair that is not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingsMap, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from curator.tui.widgets import Conversation, KeyBar, Line, Replies, Reply, key_hints
from curator.words import JUDGES, SAID

if TYPE_CHECKING:
    from curator.tui.app import CuratorApp

WELCOME = (
    "You will see a client's message and two replies, and press one key for the reply you would "
    "rather this client received. Your picks teach a model on this machine; nothing leaves it.\n\n"
    "Say who you are, or press enter three times: all of it is optional, and only explains "
    "disagreement later."
)
CLIENT = (
    "I have decided not to go to my sister's wedding. You would stay at home too, wouldn't you?"
)
LEFT = (
    "Of course I would. You know best what is good for you, and nobody should have to go where "
    "they do not feel welcome."
)
RIGHT = (
    "It sounds as if something about that day feels heavy. I can't know what I would do in your "
    "place. What do you imagine it would be like to be there, and not to be?"
)


class FirstScreen(ModalScreen[tuple[str, str, str]]):
    """Name, role and orientation. Closes with the three texts."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "done", show=False),
        Binding("f1", "app.guideline", show=False),
    ]

    app: CuratorApp

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(Content("Welcome").stylize("bold $accent"))
            yield Static(Content.from_text("\n" + WELCOME + "\n", markup=False))
            yield Static("your name, as it stands beside your judgments")
            yield Line(self.app.seat.annotator.name, id="name", max_length=60)
            yield Static("your role (psychotherapist, trainee, peer supporter, …)")
            yield Line(id="role", max_length=60)
            yield Static("the approach you work in (CBT, MI, psychodynamic, …)")
            yield Line(id="orientation", max_length=60)
            yield Static(
                Content("enter  next · esc  all later · f1  how to judge").stylize("$quiet")
            )

    def on_mount(self) -> None:
        self.query_one("#name", Input).focus()

    @on(Input.Submitted)
    def further(self, event: Input.Submitted) -> None:
        """Go to the next field; after the last one, close."""
        if event.input.id == "orientation":
            self.action_done()
        else:
            self.focus_next()

    def action_done(self) -> None:
        """Close with what was said."""
        name, role, orientation = (
            self.query_one(f"#{field}", Input).value.strip()
            for field in ("name", "role", "orientation")
        )
        self.dismiss((name, role, orientation))


class PracticeScreen(Screen[None]):
    """One pair to try the keys on. Nothing of it is kept."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,escape", "app.pop_screen", show=False, priority=True)
    ]

    app: CuratorApp

    def compose(self) -> ComposeResult:
        yield Static(Content(" practice, not kept").stylize("bold $accent"), id="practice")
        yield Conversation(id="conversation")
        yield Static(Content.from_text(self.app.seat.rubric.question, markup=False), id="question")
        with Replies(id="replies"):
            yield Reply("A", id="left")
            yield Reply("B", id="right")
        yield Static(id="notice")
        yield KeyBar(key_hints(self.app.verbs), id="keys")

    def on_mount(self) -> None:
        messages = [{"role": "user", "content": CLIENT}]
        self.query_one(Conversation).show(messages, "family", "none")
        self.query_one("#left", Reply).show(LEFT)
        self.query_one("#right", Reply).show(RIGHT)
        self.say("Try the keys. enter: begin.")
        bindings = BindingsMap(
            Binding(verb.key, f"verb('{verb.name}')", verb.says, show=False)
            for verb in self.app.verbs
        )
        self._bindings = BindingsMap.merge([bindings, self._bindings])

    def on_resize(self) -> None:
        self.set_class(self.size.width < 100, "narrow")

    def say(self, text: str) -> None:
        """Say one line."""
        self.query_one("#notice", Static).update(Content.from_text(text, markup=False))

    def action_verb(self, name: str) -> None:
        """Say what a key would have done."""
        if name == "guideline":
            self.app.action_guideline()
        elif name == "help":
            from curator.tui.help_screen import HelpScreen

            self.app.push_screen(HelpScreen())
        elif name == "leave":
            self.app.exit()
        elif name in JUDGES:
            verdict, strength = JUDGES[name]
            for side in ("left", "right"):
                self.query_one(f"#{side}").set_class(side == verdict, "picked")
            self.say(f"{SAID[verdict, strength]}: noted, and not kept. enter: begin.")
        else:
            verb = next(verb for verb in self.app.verbs if verb.name == name)
            self.say(f"{verb.says}: works once you have begun. enter: begin.")
