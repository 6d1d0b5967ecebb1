"""Fetching a model, with the real library, from a local server that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainer.conftest import run_folder
from trainer import contract
from trainer import pull as fetching

pytestmark = pytest.mark.train

REVISION, LATER = "a" * 40, "c" * 40
BIG = 24_000_000  # above huggingface_hub's chunk of 10 MB: less is not on the disk when it breaks


class Hub:
    """One repository's files, and how the server behaves with them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lie: set[str] = set()
        self.stop_at: int | None = None
        self.gated = False
        self.newer: dict[str, bytes] = {}
        self.moved = False
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = ""

    def sibling(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "b" * 40}
        if name.endswith(".safetensors"):
            row["lfs"] = {"sha256": self.digest(name), "size": len(data), "pointerSize": 100}
        return row

    def digest(self, name: str, data: bytes | None = None) -> str:
        data = (data or self.files[name]) + (b"x" if name in self.lie else b"")
        return hashlib.sha256(data).hexdigest()


class Answers(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        if "/nobody/" in path or path.endswith("/nothing"):
            return self.refuse(404, "RepoNotFound")
        if self.hub.gated:
            return self.refuse(403, "GatedRepo")
        if path.startswith("/api/") and "/tree/" in path:
            rows = [
                {"type": "file", "path": n, "oid": "b" * 40, **self.hub.sibling(n)}
                for n in self.hub.files
            ]
            for row in rows:
                if "lfs" in row:
                    row["lfs"] = {**row["lfs"], "oid": row["lfs"]["sha256"]}
            return self.send(json.dumps(rows).encode(), body)
        if path.startswith("/api/"):
            info = {"id": "some/model", "sha": LATER if self.hub.moved else REVISION,
                    "siblings": [self.hub.sibling(n) for n in self.hub.files]}  # fmt: skip
            self.hub.moved = bool(self.hub.newer)
            return self.send(json.dumps(info).encode(), body)
        revision, _, name = path.rpartition("/resolve/")[2].partition("/")
        later = self.hub.moved and revision != REVISION
        self.file(name, body, LATER if later else REVISION)

    def file(self, name: str, body: bool, commit: str) -> None:
        data = self.hub.files[name]
        if commit == LATER:
            data = self.hub.newer.get(name, data)
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{self.hub.digest(name, data)}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        end = self.hub.stop_at if name.endswith(".safetensors") else None
        self.wfile.write(data[start:end])
        if end is not None:
            self.wfile.flush()
            time.sleep(60)  # a network that has gone quiet

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(gemma: Path) -> Iterator[Hub]:
    found = Hub()
    for path in gemma.iterdir():
        found.files[path.name] = path.read_bytes()
    found.files["pytorch_model.bin"] = b"a pickle"
    found.files["modeling_x.py"] = b"import os"
    found.files["original/consolidated.00.pth"] = b"a pickle"
    found.files["consolidated.safetensors"] = b"the same once more"
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": found}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()


class Puller:
    """Runs pulls in processes of their own, each in a new folder, into one cache."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.runs = folder, url, 0

    def start(self, model: str) -> tuple[Path, subprocess.Popen[str]]:
        self.runs += 1
        folder = run_folder(self.folder / f"pull-{self.runs}", action="pull", model=model)
        return folder, subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer", str(folder)], env=self.environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip

    def __call__(self, model: str = "some/model") -> tuple[int, str, dict[str, Any]]:
        folder, process = self.start(model)
        _, said = process.communicate(timeout=120)
        lines = [line for line in said.splitlines() if line.startswith("trainer:")]
        return process.returncode, "\n".join(lines), contract.read_manifest(folder) or {}

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
        }  # fmt: skip

    @property
    def cached(self) -> set[str]:
        return {p.name for p in (self.folder / "hf").rglob("snapshots/*/*")}

    @property
    def parts(self) -> list[Path]:
        return list((self.folder / "hf").rglob("*.part"))


@pytest.fixture
def pull(tmp_path: Path, hub: Hub) -> Puller:
    return Puller(tmp_path, hub.url)


def test_weights_tokenizer_and_settings_are_fetched_and_nothing_else(
    pull: Puller, hub: Hub, gemma: Path
) -> None:
    status, said, manifest = pull()
    assert status == 0, said
    assert pull.cached == {path.name for path in gemma.iterdir()}
    folder = Path(manifest["pulled"]["path"])
    weights = (folder / "model.safetensors").read_bytes()
    assert weights == hub.files["model.safetensors"]
    assert manifest["pulled"]["revision"] == REVISION
    events = contract.read_events(pull.folder / "pull-1")[0]
    last = [event for event in events if event["event"] == "progress"][-1]
    assert last["done"] == last["total"] == len(weights)
    hub.asked.clear()
    assert pull()[0] == 0
    assert not any(c == "GET" and path.endswith(".safetensors") for c, path, _ in hub.asked)


def test_of_several_weights_those_of_the_index_are_fetched_and_found(
    pull: Puller, hub: Hub
) -> None:
    shard = "model-00001-of-00001.safetensors"
    hub.files[shard] = hub.files.pop("model.safetensors")
    hub.files["model.fp32.safetensors"] = b"the same once more"
    index = {"metadata": {}, "weight_map": {"a": shard}}
    hub.files["model.safetensors.index.json"] = json.dumps(index).encode()
    status, said, manifest = pull()
    assert status == 0, said
    assert shard in pull.cached and "model.fp32.safetensors" not in pull.cached
    folder = Path(manifest["pulled"]["path"])
    assert manifest["pulled"]["bytes"] == sum(p.stat().st_size for p in folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c",
         "from trainer.model_folder import find_model; print(find_model('some/model').name)"],
        env=pull.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == REVISION, done.stderr


@pytest.mark.parametrize(
    ("files", "said"),
    [(["a"], "has no weight_map"), ({"a": "../b.safetensors"}, "names files outside")],
)
def test_an_index_that_is_none_is_refused_in_one_line(
    pull: Puller, hub: Hub, files: object, said: str
) -> None:
    hub.files["model.safetensors.index.json"] = json.dumps({"weight_map": files}).encode()
    status, told, _ = pull()
    assert status == 65 and said in told and "Traceback" not in told
    assert "model.safetensors" not in pull.cached


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"model.safetensors": "weights.safetensors"}, "under names that transformers does not"),
        ({"tokenizer_config.json": "adapter_config.json"}, "is an adapter, or has one in it"),
    ],
)
def test_what_would_be_refused_afterwards_is_not_fetched(
    pull: Puller, hub: Hub, rename: dict[str, str], said: str
) -> None:
    for old, new in rename.items():
        hub.files[new] = hub.files.pop(old)
    status, told, _ = pull()
    assert status == 65 and said in told and "Nothing was fetched" in told
    assert not pull.cached


def test_every_file_is_of_the_commit_that_was_looked_at(pull: Puller, hub: Hub) -> None:
    # Its publisher changes the model right after: weights and settings must not be of two commits.
    hub.newer["generation_config.json"] = b'{"temperature": 9.0}'
    status, said, manifest = pull()
    assert status == 0, said
    folder = Path(manifest["pulled"]["path"])
    assert folder.name == manifest["pulled"]["revision"] == REVISION
    for path in folder.iterdir():
        assert path.read_bytes() == hub.files[path.name]
    main = (folder.parent.parent / "refs" / "main").read_text()
    assert main == REVISION  # what is loaded by name


def test_a_broken_off_download_goes_on_where_it_broke(pull: Puller, hub: Hub) -> None:
    data = hub.files["model.safetensors"] = os.urandom(BIG)
    hub.stop_at = 15_000_000
    _, process = pull.start("some/model")
    deadline = time.monotonic() + 60
    while not (pull.parts and pull.parts[0].stat().st_size >= 10_000_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = pull.parts[0].stat().st_size
    hub.stop_at = None
    hub.asked.clear()
    status, said, manifest = pull()
    assert status == 0, said
    assert Path(manifest["pulled"]["path"], "model.safetensors").read_bytes() == data
    gets = [r for c, path, r in hub.asked if c == "GET" and path.endswith("model.safetensors")]
    assert gets == [f"bytes={kept}-"]
    assert not pull.parts


def test_weights_that_are_not_what_the_hub_states_are_thrown_away(pull: Puller, hub: Hub) -> None:
    hub.lie.add("model.safetensors")
    status, said, _ = pull()
    assert status == 65 and "arrived damaged" in said
    assert not pull.parts and "model.safetensors" not in pull.cached


def test_what_cannot_be_fetched_is_one_line_each(pull: Puller, hub: Hub) -> None:
    status, said, _ = pull("nobody/nothing")
    assert status == 65 and said.count("\n") == 0 and "is not on the hub, or is private" in said
    status, said, _ = pull("mistralai/Ministral-3-3B-Instruct-2512")
    assert status == 65 and "Name mistralai/Ministral-3-3B-Instruct-2512-BF16." in said
    status, said, _ = pull("not an id")
    assert status == 65 and said.count("\n") == 0 and "is no model's id" in said
    hub.gated = True
    status, said, _ = pull()
    assert status == 65 and "accept its licence at https://huggingface.co/some/model" in said
    hub.gated = False
    hub.files["config.json"] = json.dumps({"quantization_config": {"quant_method": "x"}}).encode()
    status, said, _ = pull()
    assert status == 65 and "is quantised already (x)" in said
    assert not any(c == "GET" and path.endswith(".safetensors") for c, path, _ in hub.asked)
    del hub.files["model.safetensors"]
    status, said, _ = pull()
    assert status == 65 and "has no .safetensors weights" in said
    pull.url = "http://127.0.0.1:9"
    status, said, _ = pull()
    assert status == 65 and said.count("\n") == 0 and "the hub cannot be reached" in said


def test_a_full_disk_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = SimpleNamespace(sha256="f" * 64, size=8_600_000_000)
    file = SimpleNamespace(rfilename="model.safetensors", lfs=blob)
    usage = SimpleNamespace(free=1_000_000_000)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(fetching.Refused, match=r"needs 8\.6 GB more and .* has 1\.0 GB free"):
        fetching._fetch_all("some/model", REVISION, [file], tmp_path, lambda done, total: None)
    assert not list(tmp_path.iterdir())
