"""An agent that remembers across processes, and HMT memory around a chat model that is not HMT's.

The first process tells the agent something and ends; the second asks. The other model here only repeats what it is shown of its
memory: a hosted one takes its place. Run: python examples/langchain_agent.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage, HumanMessage

from langchain_hmt import HMTChatModel, HMTMemoryMiddleware

THREAD: Any = {"configurable": {"thread_id": "office"}}
FACT, QUESTION = "The door code of the office is 4071.", "What is the door code of the office?"


class Hosted(SimpleChatModel):
    """A stand-in for any other chat model."""

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def _call(self, messages: list[BaseMessage], *_: Any, **__: Any) -> str:
        recalled = [message.text for message in messages if message.type == "system"]
        return recalled[0] if recalled else "Noted."


def say(store: str, text: str) -> None:
    """Run the agent once, in a process of its own."""
    agent = create_agent(HMTChatModel(store=store, max_tokens=24))
    print(f"> {text}\n{agent.invoke({'messages': [HumanMessage(text)]}, THREAD)['messages'][-1].text}\n", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for text in (FACT, QUESTION):
            subprocess.run([sys.executable, __file__, folder, text], check=True)
        agent = create_agent(Hosted(), middleware=[HMTMemoryMiddleware(store=folder)])
        print("Another model, asked in the same thread, is shown:")
        print(agent.invoke({"messages": [HumanMessage(QUESTION)]}, THREAD)["messages"][-1].text)


if __name__ == "__main__":
    say(*sys.argv[1:]) if len(sys.argv) == 3 else main()
