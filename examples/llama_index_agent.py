"""An agent with tools, whose memory has every step of it.

A model of this size seldom decides to call a tool, so its first step here is told to. Run: python examples/llama_index_agent.py
"""

import asyncio
import tempfile
from typing import Literal

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.llms.hmt import HMTLLM
from llama_index.memory.hmt import HMTMemory


def room_temperature(room: Literal["kitchen", "cellar"]) -> str:
    """Measure the temperature of a room."""
    return f"The {room} has 21 degrees."


async def run(folder: str) -> None:
    llm = HMTLLM(store=folder, max_tokens=40)
    memory = HMTMemory.from_defaults("house", llm=llm)
    agent = FunctionAgent(tools=[room_temperature], llm=llm, initial_tool_choice="room_temperature")
    answer = await agent.run("How warm is it in the kitchen?", memory=memory)
    for message in memory.get_all():
        print(f"{message.role.value}: {message.content or message.blocks[0]}")
    print(f"\nCalled: {[(call.tool_name, call.tool_kwargs) for call in answer.tool_calls]}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))
