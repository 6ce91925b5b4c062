"""The cost of the LangChain classes over `Session` itself, per call and per streamed token.

A small random model answers, so that the classes' own time shows. Calls alternate with `Session.reply`, each on a session of
its own, with answers of two lengths: their difference gives the cost of a token, the rest the cost of a call.

Run: .venv/bin/python benchmarks/bench_langchain.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from typing import Any

import torch
from langchain_core.messages import HumanMessage
from measure import cpu_name, interleaved
from transformers import AutoModelForCausalLM, LlamaConfig

from hmt_memory import Assistant, HMTConfig, HMTModel
from hmt_memory.engine.weights import load
from langchain_hmt import HMTChatModel

SHORT, LONG = 8, 108


def small_model() -> HMTModel:
    """Make a model of two layers with the default model's tokenizer and segments so long that none closes in a round."""
    _, tokenizer = load("smollm2-135m-instruct", dtype="auto", device="cpu")
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    causal_lm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **sizes))
    return HMTModel.wrap(causal_lm.eval(), tokenizer, HMTConfig(segment_length=256, sensory_length=8))


def main(rounds: int) -> None:
    """Time both ways in turn and print the difference."""
    with tempfile.TemporaryDirectory() as folder:
        assistant = Assistant(small_model(), store=folder)
        chat = HMTChatModel(engine=assistant)
        question = "How are you today?"

        def with_session(tokens: int) -> None:
            options: Any = {"max_new_tokens": tokens, "min_new_tokens": 1, "temperature": 1.0, "seed": 0}
            assistant.session(f"session {tokens}").reply({"role": "user", "content": question}, **options).finish()

        def with_class(tokens: int) -> None:
            config: Any = {"configurable": {"session_id": f"class {tokens}"}}
            for _ in chat.stream([HumanMessage(question)], config, max_tokens=tokens, temperature=1.0, seed=0):
                pass

        calls = {}
        for tokens in (SHORT, LONG):
            calls[f"session {tokens}"] = partial(with_session, tokens)
            calls[f"class {tokens}"] = partial(with_class, tokens)
        times = interleaved(calls, rounds)
    over = {}
    for tokens in (SHORT, LONG):
        pairs = zip(times[f"class {tokens}"], times[f"session {tokens}"], strict=True)
        over[tokens] = 1000 * statistics.median(a - b for a, b in pairs)
    token = (over[LONG] - over[SHORT]) / (LONG - SHORT)
    call = over[SHORT] - SHORT * token
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, medians over {rounds} rounds")
    print(f"over Session.reply: {call:.2f} ms a call (wanted 2), {token:.3f} ms a streamed token (wanted 0.2)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    main(parser.parse_args().rounds)
