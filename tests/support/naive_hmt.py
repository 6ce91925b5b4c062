"""The method as a plain loop over one row, written from the paper's equations alone: what the engine is compared with."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Naive(NamedTuple):
    logits: Tensor  # [T, vocab]
    memory: Tensor  # [n * m, d]


def naive_hmt(causal_lm: Any, parameters: dict[str, Tensor], ids: Tensor, config: Any) -> Naive:
    """Eq. 1-5 segment by segment; nothing is batched, cached or folded."""
    L, j, k, N = config.segment_length, config.summary_length, config.sensory_length, config.recall_window
    m = config.memory_tokens
    T, P0 = parameters["summary_prompt"], parameters["initial_memory"]
    Wq, Wk = parameters["recall.query.weight"].T, parameters["recall.key.weight"].T  # [d, d_h]
    embed = causal_lm.get_input_embeddings()

    def hidden(inputs: Tensor) -> Tensor:
        return causal_lm.base_model(inputs_embeds=inputs[None], use_cache=False).last_hidden_state[0]

    def logits(inputs: Tensor) -> Tensor:
        return causal_lm(inputs_embeds=inputs[None], use_cache=False).logits[0]

    M: list[Tensor] = []  # one [m, d] a segment
    rows: list[Tensor] = []
    previous = ids[:0]
    for start in range(0, len(ids), L):
        segment = ids[start : start + L]
        H = embed(segment)
        if config.mode == "rmt" and M:
            P = M[-1]
        elif config.mode == "hmt" and M:
            S = hidden(torch.cat([T, H[:j], T]))[-1:]  # Eq. 1
            slots = []
            for slot in range(m - (config.recalled_tokens or m), m):
                known = torch.stack([one[slot] for one in M[-N:]])
                Q, K = S @ Wq, known @ Wk  # Eq. 2
                slots.append(torch.softmax(Q @ K.T / math.sqrt(Wk.shape[1]), dim=-1) @ known)  # Eq. 3
            P = torch.cat(slots if config.recalled_tokens is None else [M[-1], *slots])
        else:
            P = P0
            if config.mode == "hmt" and config.recalled_tokens:
                P = torch.cat([P0, P0[m - config.recalled_tokens :]])
        if config.mode == "plain":
            P = P[:0]
        front, end = enter(P, parameters, config, embed)
        sensory = embed(previous[len(previous) - k :]) if len(previous) else H[:0]
        inputs = torch.cat([front, sensory, H, end])  # Eq. 4
        first = len(front) + len(sensory)
        rows.append(logits(inputs)[first : first + len(segment)])  # Eq. 5
        if len(segment) == L and len(P):
            M.append(hidden(inputs)[-m:])
        previous = segment
    return Naive(torch.cat(rows), torch.cat(M) if M else ids.new_zeros(0, P0.shape[1]).float())


def enter(P: Tensor, parameters: dict[str, Tensor], config: Any, embed: Any) -> tuple[Tensor, Tensor]:
    """The `memory_input` extension, in front and at the end."""
    m = config.memory_tokens
    if config.memory_input == "paper" or not len(P):
        return P, P[:m]
    if config.memory_input == "centred":
        centre = parameters["memory_input.centre"]
        typical = torch.cat([centre, centre[len(centre) - (len(P) - len(centre)) :]])
        own = (P - typical) @ parameters["memory_input.map.weight"].T
        front = torch.cat([parameters["memory_input.sink"], own + parameters["memory_input.read"][: len(P)]])
        return front, own[: len(centre)] + parameters["memory_input.write"]
    every = embed(torch.arange(embed.weight.shape[0]))
    unit = every.norm(dim=-1).mean() / math.sqrt(P.shape[-1])
    scaled = (P - P.mean(-1, keepdim=True)) / P.std(-1, keepdim=True, correction=0) * unit
    scaled = scaled * parameters["memory_input.gain"]
    entering = scaled @ parameters["memory_input.map.weight"].T if config.memory_input == "mapped" else scaled
    return entering, entering[:m]
