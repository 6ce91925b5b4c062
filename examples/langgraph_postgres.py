"""One PostgreSQL for LangGraph's checkpoints and for HMT sessions: a thread goes on at another worker.

Each worker is a process of its own that keeps nothing on its machine. The graph's state comes back by the checkpointer, what
the model remembers by its session, both under the thread's id.
Run: HMT_STORE=postgresql://host/database python examples/langgraph_postgres.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres import PostgresSaver

from hmt_memory import MemoryStore
from langchain_hmt import HMTChatModel

STORE = os.environ.get("HMT_STORE", "")
THREAD: Any = {"configurable": {"thread_id": "office"}}
FACT, QUESTION = "The door code of the office is 4071.", "What is the door code of the office?"


def database() -> str:
    """Return the address for LangGraph, which knows no parameter `schema`."""
    address, _, query = STORE.partition("?")
    return f"{address}?{'&'.join(field for field in query.split('&') if not field.startswith('schema='))}"


def work(text: str) -> None:
    """Answer once, as one of many workers."""
    with PostgresSaver.from_conn_string(database()) as checkpointer:
        checkpointer.setup()
        agent = create_agent(HMTChatModel(store=STORE, max_tokens=24), checkpointer=checkpointer)
        answered = agent.invoke({"messages": [HumanMessage(text)]}, THREAD)["messages"]
    print(f"> {text}\n{answered[-1].text}\n{len(answered)} messages in the thread\n", flush=True)


def main() -> None:
    if not STORE.startswith("postgresql://"):
        sys.exit("name a database: HMT_STORE=postgresql://host/database python examples/langgraph_postgres.py")
    for text in (FACT, QUESTION):
        with tempfile.TemporaryDirectory() as machine:
            os.environ["HMT_CACHE"] = machine
            subprocess.run([sys.executable, __file__, text], check=True)
    with MemoryStore(STORE, read_only=True) as store:
        print("kept in the session:", store.session("office").messages()[0].content)


if __name__ == "__main__":
    work(*sys.argv[1:]) if len(sys.argv) == 2 else main()
