"""What the judge screen's keys do, beside the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from curator.errors import CuratorError
from curator.safe_text import bare
from curator.tui.panels import LinePanel, RedFlagsPanel, Tags, TagsPanel
from curator.tui.rewrite_screen import RewriteScreen
from curator.words import SAID, Rewrite, Shown, Verdict

if TYPE_CHECKING:
    from curator.tui.judge_screen import JudgeScreen


def undo(screen: JudgeScreen) -> None:
    """Take the last judgment back and show its pair again."""
    try:
        pair = screen.app.seat.undo()
    except CuratorError as error:
        screen.notice(f"not taken back: {error}", failed=True)
        return
    if pair is None:
        screen.notice("nothing to take back.")
        return
    screen.show(pair)
    screen.refresh_progress_later()
    if pair.earlier is not None:
        said = SAID.get((str(pair.earlier.verdict), pair.earlier.strength), "")
        reasons = [
            f"{letter} because {labels}"
            for letter, tags in (("A", pair.earlier.tags_left), ("B", pair.earlier.tags_right))
            if (labels := screen.app.seat.rubric.labels(tags))
        ]
        rewritten = ["with a rewrite"] if pair.earlier.rewrite_id is not None else []
        text = f"taken back; it was: {', '.join([said, *reasons, *rewritten])}"
        if pair.before is not None:
            text += f"; before that: {SAID.get((str(pair.before.verdict), pair.before.strength))}"
        screen.notice(text)


def tags(screen: JudgeScreen) -> None:
    """Ask for reasons."""
    if screen.pair is None:
        return

    def keep(chosen: Tags | None) -> None:
        if chosen is not None and chosen != (screen.beside.tags_left, screen.beside.tags_right):
            screen.say_beside(tags_left=chosen[0], tags_right=chosen[1])

    chosen = (screen.beside.tags_left, screen.beside.tags_right)
    side = 1 if screen.query_one("#right").has_focus else 0
    screen.app.push_screen(TagsPanel(screen.app.seat.rubric, chosen, side), keep)


def ask_red_flags(screen: JudgeScreen, then: Callable[[], None]) -> None:
    """Ask the red flags of both replies, then go on; escape leaves the pair unjudged."""

    def keep(answers: dict[str, bool] | None) -> None:
        if answers is None:
            screen.notice("not judged: the questions are open.")
            return
        screen.say_beside(red_flags=answers)
        then()

    screen.app.push_screen(RedFlagsPanel(screen.app.seat.rubric.red_flags), keep)


def note(screen: JudgeScreen) -> None:
    """Ask for a line of note."""
    pair = screen.pair
    if pair is None:
        return

    def keep(text: str | None) -> None:
        if text is not None and text != (screen.beside.note or ""):
            screen.say_beside(note=text or None)
        screen.show_marks()

    screen.app.push_screen(
        LinePanel(
            "A note on this pair",
            _begun(pair, "note") or screen.beside.note or "",
            "enter  keep it with the judgment · esc  leave it as it was",
            lambda text: _draft(screen, "note", text),
        ),
        keep,
    )


def _begun(pair: Shown, name: str) -> str:
    """Return a draft, which is never older than what was kept; empty: there is none."""
    text = pair.drafts.get(name, "")
    return text if bare(text) else ""


def _draft(screen: JudgeScreen, name: str, text: str) -> bool:
    """Keep writing that is not saved yet; tell whether it is on the disk."""
    pair = screen.pair
    if pair is None:
        return True
    try:
        screen.app.seat.save_draft(pair.pair_id, name, text)
    except CuratorError as error:
        screen.app.complain(error)
        return False
    drafts = {**pair.drafts, name: text}
    if not text:
        del drafts[name]
    screen.pair = replace(pair, drafts=drafts)
    return True


def flag(screen: JudgeScreen) -> None:
    """Flag the pair, or take the flag off."""
    if screen.pair is None:
        return
    screen.say_beside(flagged=not screen.beside.flagged)


def rewrite_left(screen: JudgeScreen) -> None:
    """Rewrite reply A."""
    _rewrite(screen, Verdict.LEFT)


def rewrite_right(screen: JudgeScreen) -> None:
    """Rewrite reply B."""
    _rewrite(screen, Verdict.RIGHT)


def _rewrite(screen: JudgeScreen, side: Verdict) -> None:
    pair = screen.pair
    if pair is None:
        return
    name = f"rewrite_{side.value}"
    reply = pair.left if side is Verdict.LEFT else pair.right
    kept = screen.beside.rewrite
    nothing = {"", *(bare(each) for each in (pair.left, pair.right))}

    def draft(text: str) -> bool:
        return _draft(screen, name, "" if bare(text) in nothing else text)

    text = _begun(pair, name) or (kept.text if kept and kept.side is side else reply)

    def keep(text: str | None) -> None:
        if text is None:
            screen.show_marks()
            return
        if bare(text) in nothing:
            draft("")
            if kept is not None and kept.side is not side:
                screen.notice("that is no rewrite: the other one stays.")
                screen.show_marks()
                return
            screen.say_beside(rewrite=None)
            screen.notice("no rewrite goes with your pick: it says what a reply says, or nothing.")
            return
        screen.say_beside(rewrite=Rewrite(side, text))
        if screen.saved is None:
            screen.notice("now judge the two as they are: your rewrite is kept with your pick.")

    letter = "A" if side is Verdict.LEFT else "B"
    screen.app.push_screen(RewriteScreen(pair, letter, reply, text, draft), keep)


def _show_found(screen: JudgeScreen, find: Callable[[], Shown | None], none: str) -> None:
    """Show the pair that `find` returns, or say that there is none."""
    try:
        pair = find()
    except CuratorError as error:
        screen.notice(str(error), failed=True)
        return
    if pair is None:
        screen.notice(none)
        return
    screen.show(pair)
    if pair.earlier is not None:
        said = SAID.get((str(pair.earlier.verdict), pair.earlier.strength), "")
        screen.notice(f"pair {pair.round}.{pair.number}; it is: {said}. Judge again to change it.")
    else:
        other = "; another person has judged it" if pair.by_another else ""
        screen.notice(f"pair {pair.round}.{pair.number}{other}")


def go_to(screen: JudgeScreen) -> None:
    """Ask for a pair's number and go there."""

    def go(text: str | None) -> None:
        if not text:
            return
        turn, _, number = text.rpartition(".")
        if not number.isdecimal() or (turn and not turn.isdecimal()):
            screen.notice(f"{text!r} is no pair: a number, or round and number as 2.17.")
            return
        seat, turn_number = screen.app.seat, int(turn[:9]) if turn else None
        _show_found(
            screen,
            lambda: seat.go_to(int(number[:9]), turn_number),
            f"there is no pair {text}.",
        )

    hint = "a number, or round and number as 2.17 · enter  go · esc  stay"
    screen.app.push_screen(LinePanel("Go to pair", "", hint), go)


def previous(screen: JudgeScreen) -> None:
    """Show the pair before this one."""
    _beside(screen, -1, "this is the first pair.")


def following(screen: JudgeScreen) -> None:
    """Show the pair after this one."""
    _beside(screen, 1, "this is the last pair.")


def _beside(screen: JudgeScreen, step: int, none: str) -> None:
    if screen.pair is not None:
        pair_id = screen.pair.pair_id
        _show_found(screen, lambda: screen.app.seat.beside(pair_id, step), none)


def next_unjudged(screen: JudgeScreen) -> None:
    """Show the next pair that needs a judgment."""
    screen.go_next()


def history(screen: JudgeScreen) -> None:
    """Open the annotator's judgments; one that is opened there is shown to be judged again."""
    from curator.tui.history_screen import HistoryScreen

    def open_pair(pair_id: int | None) -> None:
        if pair_id is not None:
            _show_found(screen, lambda: screen.app.seat.open(pair_id), "that pair is gone.")

    screen.app.push_screen(HistoryScreen(), open_pair)


def rounds(screen: JudgeScreen) -> None:
    """Open the rounds screen."""
    from curator.tui.rounds_screen import RoundsScreen

    screen.app.push_screen(RoundsScreen())


def show_help(screen: JudgeScreen) -> None:
    """Show what the keys do."""
    from curator.tui.help_screen import HelpScreen

    screen.app.push_screen(HelpScreen())


def guideline(screen: JudgeScreen) -> None:
    """Show how to judge."""
    screen.app.action_guideline()


def leave(screen: JudgeScreen) -> None:
    """Leave the app; a run under way goes on."""
    screen.app.exit()


DO: Mapping[str, Callable[[JudgeScreen], None]] = {
    "undo": undo, "tags": tags, "rewrite_left": rewrite_left, "rewrite_right": rewrite_right,
    "note": note, "flag": flag, "go_to": go_to, "previous": previous, "following": following,
    "next_unjudged": next_unjudged, "history": history, "rounds": rounds,
    "guideline": guideline, "help": show_help, "leave": leave,
}  # fmt: skip
