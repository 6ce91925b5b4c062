"""The distance of reading from its cost limit, and its gain over reading the authors' way.

Two configurations of the paper's with untrained memory, and the default model as it ships. The limit: the backbone's body
alone on the same tokens in pieces of L, times the extra positions that the method asks for, (L + k + 2) / L for Eq. 4 (more
where a segment leaves more memory embeddings) and (j + 2) / L for Eq. 1. The authors' way: one segment at a time, a pass for
its summary, then all positions of Eq. 4 through the language-model head.

Run: .venv/bin/python benchmarks/bench_read.py [--tokens 4096] [--rounds 4]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from measure import default_model, english, interleaved, machine, ratio

from hmt_memory import HMTModel, HMTState


@torch.no_grad()
def body_only(model: HMTModel, ids: torch.Tensor) -> None:
    """Run the backbone's blocks alone on pieces of L tokens, as the baseline."""
    for piece in ids.split(model.config.segment_length):
        model.backbone.body(model.backbone.embed(piece)[None])


@torch.no_grad()
def authors_way(model: HMTModel, ids: torch.Tensor, state: HMTState) -> torch.Tensor:
    """Read segment by segment, with a pass for each summary and logits of every position. Returns the memory."""
    memory, previous = model.by_segment(state), state.recent_ids
    for piece in ids.split(model.config.segment_length):
        (summary,) = model.summarize([piece])
        prompt = model.prompt([summary], [memory[-model.config.recall_window :]])
        step = model.augment(prompt, [previous[len(previous) - model.config.sensory_length :]], [piece])
        model.backbone.head(step.hidden[0])
        memory = torch.cat([memory, step.memory])
        previous = piece
    return memory.flatten(0, 1)


def bench(model: HMTModel, tokens: int, rounds: int) -> None:
    """Check the result of one configuration, then time it. A segment is read before: the first of a stream costs less."""
    length = model.config.segment_length
    first, ids = english(model, (tokens // length + 1) * length).split([length, tokens // length * length])
    state = model.read(first)
    read, plain = model.read(ids, state).memory.float(), authors_way(model, ids, state).float()
    error = float((read - plain).norm() / plain.norm())
    assert error < 0.05, f"the two ways disagree by {error}"
    times = interleaved(
        {
            "body": lambda: body_only(model, ids),
            "read": lambda: model.read(ids, state),
            "authors": lambda: authors_way(model, ids, state),
        },
        rounds,
    )
    limit = model.config.positions_per_token()
    share = ratio(times, "body", "read") * limit
    print(machine(model))
    print(
        f"L={length}, m={model.config.memory_tokens}: read {len(ids) / statistics.median(times['read']):.0f} tokens/s; "
        f"limit {limit:.3f} x body; share of the limit reached {share:.3f} (wanted: 0.95); the authors' way takes "
        f"{ratio(times, 'authors', 'read'):.2f} x as long (bf16 memories of the two differ by {error:.1e})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    for one in (default_model(segment_length=256), default_model(segment_length=1024), default_model()):
        bench(one, options.tokens, options.rounds)
