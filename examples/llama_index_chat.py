"""A chat engine whose memory has no end: a fact is told, much else is said, the process ends, and a new one is asked.

Run: python examples/llama_index_chat.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory

FACT, QUESTION = "The door code of the office is 4071.", "What is the door code of the office?"
TALK = [f"Tell me something about {animal}." for animal in ("cats", "bees", "owls", "whales", "frogs", "horses")]


def say(store: str, *texts: str) -> None:
    """Send a few turns, in a process of its own."""
    llm = HMTLLM(store=store, max_tokens=40)
    memory = HMTMemory.from_defaults("office", llm=llm, token_limit=300)  # small, so that the fact leaves the window
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    for text in texts:
        print(f"> {text}\n{engine.chat(text)}\n", flush=True)
    shown = memory.get(input=texts[-1])
    print(
        f"{len(engine.chat_history)} messages are kept; of them the model is shown {len(shown) - 1} and: {shown[0].content}\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for texts in ([FACT, *TALK], [QUESTION]):
            subprocess.run([sys.executable, __file__, folder, *texts], check=True)


if __name__ == "__main__":
    say(*sys.argv[1:]) if len(sys.argv) > 2 else main()
