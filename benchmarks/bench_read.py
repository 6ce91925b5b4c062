"""How close reading comes to the cost limit, and what it gains over reading the authors' way.

The limit: the backbone's body alone on the same tokens in pieces of L, times the extra positions that the method asks for,
(L + k + 2) / L for Eq. 4 and (j + 2) / L for Eq. 1. The authors' way: one segment at a time, a pass for its summary, then
all positions of Eq. 4 through the language-model head.

Run: .venv/bin/python benchmarks/bench_read.py [--tokens 8192] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measure import default_model, english, interleaved, machine, ratio

from hmt_memory import HMTModel


@torch.no_grad()
def body_only(model: HMTModel, ids: torch.Tensor) -> None:
    """The baseline: the backbone's blocks on pieces of L tokens, nothing else."""
    for piece in ids.split(model.config.segment_length):
        model.backbone.body(model.backbone.embed(piece)[None])


@torch.no_grad()
def authors_way(model: HMTModel, ids: torch.Tensor) -> torch.Tensor:
    """Segment by segment, with a pass for each summary and logits of every position; the memory it leaves."""
    memory = ids.new_zeros(0, model.backbone.hidden_size).to(model.backbone.dtype)
    previous = ids[:0]
    for piece in ids.split(model.config.segment_length):
        (summary,) = model.summarize([piece])
        window = memory[-model.config.recall_window :, None]
        prompt = model.prompt([summary], [window])
        step = model.augment(prompt, [previous[len(previous) - model.config.sensory_length :]], [piece])
        model.backbone.head(step.hidden[0])
        memory = torch.cat([memory, step.memory[0]])
        previous = piece
    return memory


def cost_limit(model: HMTModel) -> float:
    """Positions through the backbone for each token read."""
    sizes = model.config
    extra = sizes.sensory_length + 2 * sizes.memory_tokens + (sizes.summary_length or 0) + 2
    return (sizes.segment_length + extra) / sizes.segment_length


def bench(length: int, tokens: int, rounds: int) -> None:
    """One segment length: check the result, then time."""
    model = default_model(segment_length=length)
    ids = english(model, tokens // length * length)
    read, plain = model.read(ids).memory.float(), authors_way(model, ids).float()
    error = float((read - plain).norm() / plain.norm())
    assert error < 0.05, f"the two ways disagree by {error}"
    times = interleaved(
        {
            "body": lambda: body_only(model, ids),
            "read": lambda: model.read(ids),
            "authors": lambda: authors_way(model, ids),
        },
        rounds,
    )
    if length == 256:
        print(machine(model))
    share = ratio(times, "body", "read") * cost_limit(model)
    print(
        f"L={length}: read {tokens / statistics.median(times['read']):.0f} tokens/s; limit {cost_limit(model):.3f} x body; "
        f"share of the limit reached {share:.3f}; authors' way takes {ratio(times, 'authors', 'read'):.2f} x as long "
        f"(bf16 memories of the two differ by {error:.1e})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for size in (256, 1024):
        bench(size, options.tokens, options.rounds)
