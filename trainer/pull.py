"""Fetching a model from the hub, because somebody asked for it by name: the only download there is.

Weights go through our own few lines on huggingface_hub's `http_get`: since its 1.x releases the
library throws a file away that a broken process left half fetched, and these are gigabytes. Each
is checked against the SHA-256 the hub states before it takes its place in the ordinary cache.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract import ADAPTER_CONFIG, sha256_file, write_whole
from trainer.model_folder import INDEX, SINGLE, Refused, check_config, indexed_files, read_json
from trainer.presets import QUANTISED, preset

# What a model is loaded from. Pickles and code never; folders below the top hold the same weights
# in other shapes (original/, onnx/), as does consolidated.safetensors.
ALLOWED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICENSE*"]
REFUSED = ["*/*", "consolidated*"]
EVERY = 0.5  # seconds between two reports
AGAIN = "What was fetched so far is kept: the same command goes on from there."

Progress = Callable[[int, int], None]


def pull(name: str, progress: Progress, cache: Path | None = None) -> dict[str, Any]:
    """Fetch a model into the local cache; return its id, revision, folder and bytes.

    `progress(done, total)` is told bytes, twice a second. Raises Refused, in one line, when there
    is no such model, it is gated, quantised or pickled, the network or the disk is not there, or
    what arrives is not what the hub says it is.
    """
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    known = preset(name)
    repository = known.id if known else name
    if repository in QUANTISED:  # known without asking
        check_config({"quantization_config": {}}, repository)
    try:
        return _pull(repository, progress, cache)
    except GatedRepoError:
        raise Refused(
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, "
            "then hf auth login (or set HF_TOKEN), then pull again."
        ) from None
    except RepositoryNotFoundError:
        raise Refused(
            f"{repository} is not on the hub, or is private. Check the spelling: ORGANISATION/NAME."
        ) from None
    except HFValidationError:
        raise Refused(f"{repository[:60]!r} is no model's id: ORGANISATION/NAME.") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.TransportError) as error:
        raise Refused(
            f"the hub cannot be reached ({type(error).__name__}). Is there a network? {AGAIN}"
        ) from None
    except httpx2.HTTPStatusError as error:
        raise Refused(f"the hub answers {error.response.status_code}. {AGAIN}") from None
    except OSError as error:
        said = str(error).strip().splitlines()
        raise Refused(
            f"{repository} was not fetched whole ({error.strerror or (said or ['?'])[0]}). {AGAIN}"
        ) from None


def _pull(repository: str, progress: Progress, cache: Path | None) -> dict[str, Any]:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils._paths import filter_repo_objects

    root = Path(cache or constants.HF_HUB_CACHE).expanduser()
    info = HfApi().model_info(repository, files_metadata=True)
    files = [s for s in info.siblings or [] if s.rfilename]
    wanted = list(
        filter_repo_objects(
            files, allow_patterns=ALLOWED, ignore_patterns=REFUSED, key=lambda s: s.rfilename
        )
    )
    names = {s.rfilename for s in wanted}
    if "config.json" not in names:
        raise Refused(f"{repository} is no model that transformers loads: it has no config.json.")
    if not any(n.endswith(".safetensors") for n in names):
        raise Refused(
            f"{repository} has no .safetensors weights (only pickled ones, which can run code). "
            "Nothing was fetched."
        )

    if not {SINGLE, INDEX} & names:
        raise Refused(
            f"{repository} has its weights under names that transformers does not load: neither "
            f"{SINGLE} nor {INDEX}. Nothing was fetched."
        )
    if ADAPTER_CONFIG in names:
        raise Refused(f"{repository} is an adapter, or has one in it. Nothing was fetched.")

    def small(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=info.sha, cache_dir=root))

    check_config(read_json(small("config.json"), repository), repository)  # before gigabytes
    weights = [s for s in wanted if s.rfilename.endswith(".safetensors")]
    if INDEX in names:
        used = indexed_files(small(INDEX), repository)
        weights = [s for s in weights if s.rfilename in used]
        if used - names:
            raise Refused(f"{repository} is half a checkpoint on the hub: no {min(used - names)}.")
    blobs = root / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
    _fetch_all(repository, str(info.sha), weights, blobs, progress)
    fetched = [s for s in wanted if not s.rfilename.endswith(".safetensors")] + weights
    folder = snapshot_download(
        repository, revision=info.sha, cache_dir=root,
        allow_patterns=[s.rfilename for s in fetched],
    )  # fmt: skip
    # What is loaded by name is what "main" was when it was asked for, now that it is all there.
    main = blobs.parent / "refs" / "main"
    main.parent.mkdir(exist_ok=True)
    write_whole(main, str(info.sha))
    size = sum(s.size or 0 for s in fetched)
    return {"model": repository, "revision": info.sha, "path": folder, "bytes": size}


def _fetch_all(
    repository: str, revision: str, weights: list[Any], blobs: Path, progress: Progress
) -> None:
    """Fetch the weights that the hub states a SHA-256 for; the others are small, and plain git."""
    large = [s for s in weights if s.lfs is not None]
    total = sum(s.lfs.size for s in large)
    done = {s.rfilename: _there(blobs, s) for s in large}
    blobs.mkdir(parents=True, exist_ok=True)
    missing = total - sum(done.values())
    free = shutil.disk_usage(blobs).free
    if missing > free:
        raise Refused(
            f"{repository} needs {missing / 1e9:.1f} GB more and {blobs} has {free / 1e9:.1f} GB "
            "free. Make room, or set HF_HOME to another disk."
        )
    progress(sum(done.values()), total)
    for file in large:
        before = sum(size for name, size in done.items() if name != file.rfilename)

        def tell(size: int, before: int = before) -> None:
            progress(before + size, total)

        _fetch(repository, revision, file, blobs, tell)
        done[file.rfilename] = file.lfs.size
    progress(total, total)


def _there(blobs: Path, file: Any) -> int:
    blob = blobs / file.lfs.sha256
    part = _part(blob)
    if blob.is_file():
        return int(file.lfs.size)
    return min(part.stat().st_size, file.lfs.size) if part.is_file() else 0


def _part(blob: Path) -> Path:
    return blob.with_name(blob.name + ".part")


def _fetch(
    repository: str, revision: str, file: Any, blobs: Path, progress: Callable[[int], None]
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    blob = blobs / file.lfs.sha256
    if blob.is_file():
        return
    part = _part(blob)
    part.touch()
    with part.open("rb+") as target:
        size = target.seek(0, 2)
        if size > file.lfs.size:
            size = target.seek(0)
            target.truncate()
        http_get(
            hf_hub_url(repository, file.rfilename, revision=revision), target,
            resume_size=size, headers=build_hf_headers(), expected_size=file.lfs.size,
            tqdm_class=_bar(size, progress),
        )  # fmt: skip
    digest = sha256_file(part)
    if digest != file.lfs.sha256:
        part.unlink()
        raise Refused(
            f"{repository}: {file.rfilename} arrived damaged (SHA-256 {digest[:12]}, not "
            f"{file.lfs.sha256[:12]}); it was thrown away. Pull again."
        )
    part.replace(blob)


def _bar(start: int, progress: Callable[[int], None]) -> Any:
    """Return the class that http_get reports to, in the place of a tqdm bar."""

    class Bar:
        def __init__(self, **_: Any) -> None:
            self.size, self.told = start, 0.0

        def update(self, size: int) -> None:
            self.size += size
            if time.monotonic() - self.told >= EVERY:
                self.told = time.monotonic()
                progress(self.size)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            progress(self.size)

    return Bar
