"""Compare an adapter with the backbone alone, on general prompts that no training has seen and on single windows of text.

    python benchmarks/general_chat.py [--adapter FOLDER] [--text FILE] [--out ANSWERS.jsonl]

Answers are greedy, without a session; both models are loaded in fp32, which OpenVINO computes with 8-bit weights where it is
installed. Prints how many begin with the same sentence, how many words they share, how many end and how many repeat a
sentence; and of a text, in blocks of 1,024 tokens from its middle, the perplexity behind P_0 and that of the backbone. About
5 minutes on 2 cores. The prompts that are trained on are those of `general_answers.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import machine

from hmt_memory import HMTModel
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.evaluate.perplexity import token_losses
from hmt_memory.evaluate.scoring import f1, repeats, sentences_of
from hmt_memory.evaluate.statistics import gain_interval, mean_interval, perplexity_interval

PROMPTS = (
    "What is the difference between a frog and a toad?",
    "Give me three ideas for a rainy afternoon.",
    "Write a short poem about autumn leaves.",
    "How does a thermometer work?",
    "What should I pack for a weekend at the sea?",
    "Explain what a noun is.",
    "Who discovered penicillin?",
    "What is the boiling point of water?",
    "How many legs does a spider have?",
    "Suggest a name for a small bookshop.",
    "Write a polite message to decline an invitation.",
    "What is the largest planet of the solar system?",
    "Why do we have seasons?",
    "Name five animals that live in the forest.",
    "How can I become better at public speaking?",
    "What is 9 times 8?",
    "What is half of 50?",
    "Translate 'see you soon' into German.",
    "Translate 'I am hungry' into Italian.",
    "What is the capital of Canada?",
    "Which language do people speak in Brazil?",
    "What is a haiku?",
    "Tell me about the invention of the telephone.",
    "How do airplanes fly?",
    "What is the opposite of generous?",
    "Use the word 'lantern' in a sentence.",
    "Write a slogan for a bakery.",
    "How do I make lemonade?",
    "What are the three states of matter?",
    "Why do onions make us cry?",
    "Tell me a fun fact about octopuses.",
    "Who painted The Starry Night?",
    "What is a good present for a teacher?",
    "How do I keep my desk tidy?",
    "Describe a sunset in one sentence.",
    "What does a plumber do?",
    "Is glass a solid?",
    "The train was full this morning.",
    "My friend is nervous about an exam.",
    "I want to start running. Where do I begin?",
)
WINDOW = 1024
_LONGEST = 80


class Answer(NamedTuple):
    """An answer, and whether it came to an end before the limit of its length."""

    text: str
    ended: bool


def answers(model: HMTModel, prompts: Sequence[str]) -> list[Answer]:
    """Answer prompts greedily, each by itself."""
    made = []
    for prompt in prompts:
        generation = model.generate([{"role": "user", "content": prompt}], max_new_tokens=_LONGEST).finish()
        made.append(Answer(generation.text.strip(), generation.finish_reason != "length"))
    return made


def compared(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, list[float]]:
    """Compare answers of the backbone with those of an adapter. Returns a value of each prompt, by what was compared."""
    pairs = [(one.text, other.text) for one, other in zip(before, after, strict=True)]
    return {
        "same first sentence": [float(sentences_of(one)[:1] == sentences_of(other)[:1]) for one, other in pairs],
        "words in common (F1)": [f1(other, one) for one, other in pairs],
        "ended, backbone": [float(answer.ended) for answer in before],
        "ended, adapter": [float(answer.ended) for answer in after],
        "repeats a sentence, backbone": [float(repeats(answer.text)) for answer in before],
        "repeats a sentence, adapter": [float(repeats(answer.text)) for answer in after],
    }


def middle(ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return `count` tokens from the middle of a text, or all where it has fewer."""
    start = max(0, len(ids) - count) // 2
    return ids[start : start + count]


def window_losses(model: HMTModel, ids: torch.Tensor) -> np.ndarray:
    """Return the losses [t - 1] of a text's tokens in nats, in windows that know nothing of one another, behind P_0 if any."""
    alone = model.with_config(segment_length=WINDOW, sensory_length=0)
    return token_losses(alone, ids, "none" if model.config.mode == "plain" else "initial")


def main() -> None:
    """Answer, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--adapter", help="folder; by default the one that is shipped")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="the first so many")
    parser.add_argument("--text", type=Path, help="whose windows are predicted")
    parser.add_argument("--tokens", type=int, default=10 * WINDOW, help="of the text, from its middle")
    parser.add_argument("--out", type=Path, help="file for the answers")
    options = parser.parse_args()
    backbone = HMTModel.from_pretrained(options.model, adapter="none", dtype="float32").with_config(mode="plain")
    adapted = HMTModel.from_pretrained(options.model, adapter=options.adapter, dtype="float32")
    print(f"{machine(adapted)}, engine {adapted.backbone.engine}; adapter {options.adapter or 'as shipped'}")
    prompts = PROMPTS[: options.prompts]
    before, after = answers(backbone, prompts), answers(adapted, prompts)
    for name, values in compared(before, after).items():
        mean = mean_interval(np.array(values))
        print(f"{name}: {mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f}) of {len(values)} prompts")
    if options.out is not None:
        rows = zip(prompts, before, after, strict=True)
        lines = [json.dumps({"prompt": asked, "backbone": one.text, "adapter": other.text}) for asked, one, other in rows]
        options.out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if options.text is not None:
        ids = torch.tensor(adapted.backbone.encode(options.text.read_text(encoding="utf-8"), literal=True))
        ids = middle(ids, options.tokens)
        reference, losses = window_losses(backbone, ids), window_losses(adapted, ids)
        for name, values in (("backbone", reference), ("adapter", losses)):
            mean = perplexity_interval(values, block=WINDOW)
            print(f"perplexity of {len(ids):,} tokens, {name}: {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})")
        gain = gain_interval(losses, reference, block=WINDOW)
        print(f"adapter below backbone: {gain.value:.1%} ({gain.low:.1%} to {gain.high:.1%})")


if __name__ == "__main__":
    main()
