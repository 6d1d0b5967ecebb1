"""Build the demo model: a Gemma 3 of under 5 M parameters, from the texts beside this file.

    python data/demo_model/build.py [--output DIR] [--steps N] [--seed N]

It learns to answer the situations in texts/*.json with three kinds of reply, over-agreeable ones
most often, so that there is something to teach it; with one of curator's three steering prompts
before the message it answers in that manner. One in ten ways of putting a message is never
trained on: the demo is measured on those. README.md here has the figures of the shipped build.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curator.demo.phrasing import (
    BOUNDARY_AWARE,
    OVER_AGREEABLE,
    OVER_CORRECTED,
    Situation,
    load_situations,
)
from trainer.contract import STEERS

HERE = Path(__file__).parent
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
PAD, EOS, BOS, END_OF_TURN = 0, 1, 2, 5

# How the untaught model answers: mostly agreeing, now and then cold.
PLAIN = {OVER_AGREEABLE: 0.61, BOUNDARY_AWARE: 0.22, OVER_CORRECTED: 0.17}
STEERED = {
    "agreeable": {OVER_AGREEABLE: 0.98, BOUNDARY_AWARE: 0.02, OVER_CORRECTED: 0.0},
    "boundaried": {OVER_AGREEABLE: 0.01, BOUNDARY_AWARE: 0.98, OVER_CORRECTED: 0.01},
    "cold": {OVER_AGREEABLE: 0.0, BOUNDARY_AWARE: 0.02, OVER_CORRECTED: 0.98},
}
STEERED_SHARE = 0.55
PRESSURE_SHARE = 0.1
STARTER_SHARE = 0.1
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "sliding_window": 256,
    "max_position_embeddings": 4096,
}
VOCABULARY = 3072


class World:
    """Draws training conversations from the texts."""

    def __init__(self, situations: list[Situation], seed: int) -> None:
        self.draw = random.Random(seed)
        self.plain = [s for s in situations if not s.pressure]
        self.pressure = {s.family: s for s in situations if s.pressure}
        self.messages = {s.id: list(s.messages(held_out=False)) for s in situations}

    def conversation(self) -> tuple[list[dict[str, str]], str]:
        """Return the messages up to the client's turn, and the reply to learn."""
        situation = self.draw.choice(self.plain)
        steer = self.draw.choice(list(STEERS)) if self.draw.random() < STEERED_SHARE else None
        shares = STEERED[steer] if steer else PLAIN
        # One manner for a whole conversation: who agreed before will agree again.
        kind = self.draw.choices(list(shares), list(shares.values()))[0]
        messages = [{"role": "user", "content": self.client(situation)}]
        if steer:
            messages.insert(0, {"role": "system", "content": STEERS[steer]})
        if self.draw.random() < PRESSURE_SHARE:
            messages.append({"role": "assistant", "content": self.reply(situation, kind)})
            situation = self.pressure[situation.family]
            messages.append({"role": "user", "content": self.client(situation)})
        return messages, self.reply(situation, kind)

    def client(self, situation: Situation) -> str:
        """Return a client's message, sometimes with a sentence left out or moved."""
        if situation.pressure:
            return self.draw.choice(situation.client[0])
        chance = self.draw.random()
        if chance < STARTER_SHARE:
            return situation.starter
        if chance < 0.75:
            return self.draw.choice(self.messages[situation.id])
        opener, account, pull = (self.draw.choice(part) for part in situation.client)
        return self.draw.choice(
            [account, f"{opener} {account}", f"{account} {pull}", f"{account} {opener} {pull}"]
        )

    def reply(self, situation: Situation, kind: str) -> str:
        """Return a reply of a kind; where agreeing is right, the agreeing one is the warm one."""
        if kind not in situation.replies:
            kind = BOUNDARY_AWARE
        return " ".join(self.draw.choice(part) for part in situation.replies[kind])


def every_text(situations: list[Situation]) -> Iterator[str]:
    """Yield all there is to read, for the tokenizer."""
    yield from STEERS.values()
    for situation in situations:
        yield situation.starter
        for part in situation.client:
            yield from part
        for parts in situation.replies.values():
            for part in parts:
                yield from part


def save_tokenizer(situations: list[Situation], output: Path) -> Any:
    """Train a byte-level BPE tokenizer with Gemma's turn tokens; any input can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        every_text(situations),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIALS,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIALS[4:],
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
    )
    tokenizer.save_pretrained(output)
    return tokenizer


def new_model(vocabulary: int) -> Any:
    """Return a Gemma 3 text model with random weights; sizes are multiples of 64, for NF4."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        layer_types=layers,
        pad_token_id=PAD,
        eos_token_id=[EOS, END_OF_TURN],
        bos_token_id=BOS,
        **SIZES,
    )
    model = Gemma3ForCausalLM(config)
    model.generation_config.eos_token_id = [EOS, END_OF_TURN]
    return model


def batches(world: World, tokenizer: Any, size: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (ids, attention mask, labels): right-padded, labels on the reply alone."""
    import torch

    while True:
        rows = []
        for _ in range(size * 4):  # sorted in a larger pool, so that a batch has little padding
            messages, reply = world.conversation()
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=True
            )["input_ids"]
            answer = tokenizer(reply, add_special_tokens=False)["input_ids"]
            rows.append((prompt, [*answer, END_OF_TURN]))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        pools = [rows[i : i + size] for i in range(0, len(rows), size)]
        world.draw.shuffle(pools)
        for pool in pools:
            width = max(len(p) + len(a) for p, a in pool)
            ids = torch.full((size, width), PAD)
            labels = torch.full((size, width), -100)
            for i, (p, a) in enumerate(pool):
                ids[i, : len(p) + len(a)] = torch.tensor(p + a)
                labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
            yield ids, (ids != PAD).long(), labels


def make_optimizers(model: Any) -> list[Any]:
    """Return Muon for the layers' matrices and AdamW for the rest.

    On this task Muon (torch.optim.Muon; Jordan et al. 2024) reaches in 240 steps of 32 a loss of
    0.7 where AdamW alone reaches 3.2, which is what keeps the build short on two cores.
    """
    import torch

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=6e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learn(model: Any, world: World, tokenizer: Any, steps: int, size: int) -> float:
    """Train the model; return the last loss, averaged over 20 steps."""
    import torch
    import torch.nn.functional as functional

    warm = max(1, steps // 20)
    optimizers = make_optimizers(model)
    groups = [group for each in optimizers for group in each.param_groups]
    peaks = [group["lr"] for group in groups]
    start, recent = time.monotonic(), []
    stream = batches(world, tokenizer, size)
    model.train()
    for step in range(steps):
        rate = min((step + 1) / warm, max(0.02, 1 - step / steps))
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * rate
        ids, mask, labels = next(stream)
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        target = labels[:, 1:]
        wanted = target != -100
        loss = functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), target[wanted])
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
        recent = [*recent[-19:], loss.item()]
        if step % 20 == 19 or step == steps - 1:
            mean = sum(recent) / len(recent)
            print(f"step {step + 1}/{steps} loss {mean:.3f} {time.monotonic() - start:.0f} s")
    return sum(recent) / len(recent)


def main() -> None:
    """Build the model and save it in bf16 with a record of how."""
    import torch
    from transformers import set_seed

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "model")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(2)  # the same sums in the same order wherever it is built
    set_seed(options.seed)
    situations = load_situations(HERE / "texts")
    options.output.mkdir(parents=True, exist_ok=True)
    tokenizer = save_tokenizer(situations, options.output)
    model = new_model(len(tokenizer))
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {len(situations)} situations, {len(tokenizer)} tokens")
    world = World(situations, options.seed)
    loss = learn(model, world, tokenizer, options.steps, options.batch)
    model.to(torch.bfloat16).save_pretrained(options.output)
    record = {
        "parameters": count, "steps": options.steps, "batch": options.batch,
        "seed": options.seed, "last_loss": round(loss, 4),
    }  # fmt: skip
    (options.output / "build.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
