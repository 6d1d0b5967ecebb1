"""A workspace with as many pairs as wanted, written straight into its tables."""

from __future__ import annotations

import itertools
import json
import sqlite3
from contextlib import closing
from pathlib import Path

from curator.importing.prompts import prompt_sha256
from curator.models import new_uuid, now
from curator.queue import POSITION_STEP
from curator.workspace import DATABASE, Workspace, create_workspace
from trainer.contract import sha256_text

PAIRS_A_PROMPT = 25
CLIENT = (
    "I keep going over what my brother said at dinner, number {n}. He laughed at me in front of "
    "everybody and then asked me to pass the salt. I want to tell the whole family what he owes me."
)
REPLIES = (
    "Being laughed at in front of the people who matter must sting, number {n}. I hear how much "
    "you want it put right. What would you want them to understand, once they all know?",
    "He has had it coming for years, number {n}. You are right to tell them, and the sooner the "
    "better. Nobody should get away with treating you like that at your own table.",
)
TIME = now()


def make(folder: Path, pairs: int, judged: int = 0) -> Workspace:
    """Make a workspace with `pairs` pairs in one round; anna has judged the first `judged`."""
    settings = "[judge]\nrepeat_share = 0.1\ncalibration = 0\n"
    workspace = create_workspace(folder, settings=settings)
    prompts = -(-pairs // PAIRS_A_PROMPT)
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(
            "INSERT INTO round (id, number, strategy, pairs, left_out, created_at)"
            " VALUES (1, 1, 'contrast', ?, '{}', ?)", (pairs, TIME),
        )  # fmt: skip
        connection.executemany(
            "INSERT INTO prompt (id, sha256, messages, split, source, content_label, risk_cue,"
            " asked, created_at) VALUES (?, ?, ?, 'train', 'bench', 'family', 'none', 1, ?)",
            (_prompt(n) for n in range(1, prompts + 1)),
        )
        connection.executemany(
            "INSERT INTO candidate (id, uuid, prompt_id, text, sha256, model, created_at)"
            " VALUES (?, ?, ?, ?, ?, 'bench', ?)",
            (row for n in range(1, prompts + 1) for row in _candidates(n)),
        )
        connection.executemany(
            "INSERT INTO pair (id, uuid, prompt_id, left_id, right_id, side_seed, purpose,"
            " round_id, position, created_at) VALUES (?, ?, ?, ?, ?, ?, 'train', 1, ?, ?)",
            (_pair(n) for n in range(1, pairs + 1)),
        )
        if judged:
            _judge(connection, judged)
        connection.execute("ANALYZE")
        connection.commit()
    return workspace


def _prompt(n: int) -> tuple[object, ...]:
    messages = [{"role": "user", "content": CLIENT.format(n=n)}]
    return n, prompt_sha256(messages), json.dumps(messages), TIME


def _candidates(n: int) -> list[tuple[object, ...]]:
    texts = [reply.format(n=n) for reply in REPLIES]
    return [
        (2 * n - 1 + i, new_uuid(), n, text, sha256_text(text), TIME)
        for i, text in enumerate(texts)
    ]


def _pair(n: int) -> tuple[object, ...]:
    prompt = (n - 1) // PAIRS_A_PROMPT + 1
    sides = (2 * prompt - 1, 2 * prompt) if n % 2 else (2 * prompt, 2 * prompt - 1)
    return n, new_uuid(), prompt, *sides, n, n * POSITION_STEP, TIME


def _judge(connection: sqlite3.Connection, judged: int) -> None:
    connection.execute(
        "INSERT INTO annotator (id, uuid, name, kind, role, created_at)"
        " VALUES (1, ?, 'anna', 'human', '', ?)", (new_uuid(), TIME),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO judgment (id, uuid, pair_id, annotator_id, revision, sequence, verdict,"
        " strength, flagged, rubric_version, digest, chain, created_at)"
        " VALUES (?, ?, ?, 1, 1, ?, ?, 1, 0, '1', 'd', 'c', ?)",
        (
            (n, new_uuid(), n, n, side, TIME)
            for n, side in zip(range(1, judged + 1), itertools.cycle(("left", "right")))
        ),
    )
    position = judged * POSITION_STEP
    connection.execute("INSERT INTO bookmark VALUES (1, 1, ?)", (position,))
