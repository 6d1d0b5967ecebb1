"""Work done in batches, which become smaller where memory is short."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
Say = Callable[[str], None]

# How PyTorch, CUDA, cuBLAS (on a full card it cannot even begin) and the CPU's allocators say it.
NO_MEMORY = (
    "out of memory", "alloc_failed", "cublas_status_not_initialized", "can't allocate memory",
    "cannot allocate memory", "not enough memory", "bad_alloc",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is a lack of memory, on a GPU or a CPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in said for words in NO_MEMORY)
    )


def by_batch(
    parts: Sequence[Part],
    size: int,
    cost: Callable[[list[Part]], float],
    work: Callable[[list[Part]], list[Result]],
    say: Say,
) -> Iterator[list[Result]]:
    """Yield work's results, one a part, a batch at a time; parts are taken in their order.

    A batch holds at most `size` parts, of a cost of at most 1 if there are several. On a lack of
    memory it is tried again with half as many, and so are those after it, which `say` is told; one
    part that does not fit raises.
    """
    done = 0
    while done < len(parts):
        batch = [parts[done]]
        for part in parts[done + 1 : done + size]:
            if cost([*batch, part]) > 1:
                break
            batch.append(part)
        found = None
        try:
            found = work(batch)
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
            size = len(batch) // 2
        if found is None:
            free()  # here, not above: while an error is handled, it holds on to the tensors
            say(f"out of memory: {size} at a time from here on.")
            continue
        done += len(batch)
        yield found


def in_batches(
    parts: Sequence[Part],
    size: int,
    cost: Callable[[list[Part]], float],
    work: Callable[[list[Part]], list[Result]],
    say: Say,
    progress: Callable[[int], None],
) -> list[Result]:
    """Return work's results for all parts, taken as `by_batch` does.

    `progress` gets the number of parts done in each batch.
    """
    results: list[Result] = []
    for found in by_batch(parts, size, cost, work, say):
        results += found
        progress(len(found))
    return results


def free() -> None:
    """Give back what nothing refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
