"""One run of an agent with a checkpointer on disk, in a process of its own: FOLDER TEXT [CHECKPOINT]. Prints it as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant
from langchain_hmt import HMTChatModel


def main(folder: str, text: str, checkpoint: str | None = None) -> None:
    assistant = Assistant(light_model(config=REMEMBERING, tokenizer=byte_tokenizer()), store=Path(folder) / "memories")
    thread: dict[str, Any] = {"thread_id": "t1"} | ({"checkpoint_id": checkpoint} if checkpoint else {})
    with SqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.db")) as saver:
        agent = create_agent(HMTChatModel(engine=assistant, max_tokens=6), checkpointer=saver)
        found = agent.invoke({"messages": [HumanMessage(text)]}, {"configurable": thread})
        latest = agent.get_state({"configurable": {"thread_id": "t1"}}).config["configurable"]["checkpoint_id"]
    session = assistant.session("t1")
    whole = [one.content for one in session.messages()]
    assistant.store.close()
    print(json.dumps({"thread": [one.text for one in found["messages"]], "session": whole, "checkpoint": latest}))


if __name__ == "__main__":
    main(*sys.argv[1:])
