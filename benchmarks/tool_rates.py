"""The rate at which the default model gets right what LangChain's suite asks of a model rather than of a class.

Twenty answers each, sampled at temperature 0.7 with seeds 0 to 19: `magic_function(3)` called with exactly {"input": 3} where
it has to call; `get_weather` called where it may; a Chinese name copied into a call.

Run: .venv/bin/python benchmarks/tool_rates.py
"""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool

from langchain_hmt import HMTChatModel

SEEDS = range(20)


@tool
def magic_function(input: int) -> int:
    """Apply a magic function to an input."""
    return input + 2


@tool
def get_weather(location: str) -> str:
    """Get the weather at a location."""
    return "sunny"


@tool
def create_customer(customer_name: str) -> str:
    """Create a customer with Unicode name."""
    return customer_name


def rate(chosen: Any, choice: str | None, question: str, right: Any) -> str:
    """Return in how many of the answers a call is right."""
    model = HMTChatModel(max_tokens=96, temperature=0.7).bind_tools([chosen], tool_choice=choice)
    answers = (model.invoke(question, seed=seed) for seed in SEEDS)
    return f"{sum(any(right(call['args']) for call in answer.tool_calls) for answer in answers)} of {len(SEEDS)}"


if __name__ == "__main__":
    asked = "What is the value of magic_function(3)? Use the tool."
    print("arguments copied:", rate(magic_function, "any", asked, lambda given: given == {"input": 3}))
    print("a call decided on:", rate(get_weather, None, "What is the weather in San Francisco, CA?", lambda given: True))
    named = "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company"
    print(
        "rare characters:",
        rate(create_customer, "any", named, lambda given: any(character in given["customer_name"] for character in "你好")),
    )
