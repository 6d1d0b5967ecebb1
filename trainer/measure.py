"""What memory is really taken: a model's bytes, a process's peak, one dry step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainer.memory import CUDA_CONTEXT, Machine

if TYPE_CHECKING:
    from trainer.model import Device

EVERY = 0.02  # seconds between two looks at the resident memory


def machine_here(vram: int | None = None) -> Machine:
    """Return what can be planned with: a card of `vram` bytes, else what is free here and now."""
    import sys

    linux = sys.platform == "linux"  # where PyTorch brings Triton
    if vram is not None:
        words = f"a card of {vram / (1 << 30):.3g} GB, less {CUDA_CONTEXT / 1e9:.1f} GB for CUDA"
        return Machine(max(vram - CUDA_CONTEXT, 0), "cuda", linux, 2, words)
    import torch

    if torch.cuda.is_available():
        width = 2 if torch.cuda.is_bf16_supported(including_emulation=False) else 4
        name = torch.cuda.get_device_name(0)
        return Machine(torch.cuda.mem_get_info()[0], "cuda", linux, width, f"free on {name} now")
    import psutil

    return Machine(psutil.virtual_memory().available, "cpu", False, 4, "this machine's free memory")


def model_bytes(model: Any) -> int:
    """Return the bytes of a model's weights and buffers, a quantised weight's tables included.

    `get_memory_footprint` leaves those tables out: 1.7 % of Gemma 3 4B. A matrix in the host's
    memory counts where the model is there too.
    """
    from trainer.model import host_matrix

    matrix = host_matrix(model)
    held = matrix.nbytes if matrix is not None and model.device.type == "cpu" else 0
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.data_ptr()] = tensor.nbytes
        state = getattr(tensor, "quant_state", None)
        while state is not None:
            for part in (state.absmax, state.code, getattr(state, "offset", None)):
                if part is not None:
                    # bitsandbytes' code table may be one for all: every matrix is told by itself.
                    seen[part.data_ptr()] = part.nbytes
            state = state.state2 if state.nested else None
    return held + sum(seen.values())


class Peak:
    """The most memory taken while it is open: CUDA's own count, or the resident set above start.

    `bytes` is 0 until it is closed.
    """

    def __init__(self, device: Device, start: int | None = None) -> None:
        self.cuda = device.kind == "cuda"
        self.bytes = 0
        self.start = resident() if start is None else start
        self._most = 0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(EVERY):
            self._most = max(self._most, resident())

    def __enter__(self) -> Peak:
        import torch

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            self.bytes = int(torch.cuda.max_memory_allocated())
        else:
            self._over.set()
            self._watch.join()
            # Nothing taken is 0, though the allocator gave some of the start back meanwhile.
            self.bytes = max(self._most, resident(), self.start) - self.start


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def row_length(row: Any) -> int:
    """Return the tokens of a pair that TRL has tokenised: its prompt with the longer reply."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def longest_batch(trainer: Any) -> list[Any]:
    """Return the longest pairs, as many as training puts through at once; none of no dataset."""
    rows = sorted(trainer.train_dataset, key=row_length, reverse=True)
    return rows[: trainer.args.per_device_train_batch_size]


@contextmanager
def checkpointing(trainer: Any) -> Iterator[None]:
    """Have the layers computed again on the way back, if training will; undone afterwards.

    transformers 5.23 turns it on in `Trainer.train()` alone, with these very arguments.
    """
    args, model = trainer.args, trainer.model
    if not args.activation_checkpointing or model.is_activation_checkpointing:
        yield
        return
    options = dict(args.activation_checkpointing_kwargs or {})
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs=options or None, every_n_layers=every, offload=offload
    )
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


def dry_step(trainer: Any, rows: Sequence[Any], device: Device) -> int:
    """Take one step forward and back on these pairs, and forget it; return the peak in bytes.

    The weights, their gradients and every random draw are as before it. What the optimiser adds is
    not in it: it makes its state at the first real step.
    """
    import torch

    model, was_training = trainer.model, trainer.model.training
    devices = [0] if device.kind == "cuda" else []
    model.train()
    with torch.random.fork_rng(devices=devices), checkpointing(trainer), Peak(device) as peak:
        inputs = trainer._prepare_inputs(trainer.data_collator(list(rows)))
        # As DPOTrainer.training_step does: without it nothing would go to the host's memory here.
        with trainer.maybe_activation_offload_context:
            with trainer.accelerator.autocast(), trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    trainer._metrics["train"].clear()  # of a step that was none
    if device.kind == "cuda":
        torch.cuda.empty_cache()
    return peak.bytes
