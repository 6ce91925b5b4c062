"""The examples of the integrations run as they stand, offline, on the default model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

EXAMPLES = ROOT / "examples"


FACT = "The door code of the office is 4071."


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("langchain_chain", ["> What is the door code of the office?", "Recalled", FACT]),
        ("langchain_agent", ["> What is the door code of the office?", "Another model", "Recalled from earlier:", FACT]),
        ("langchain_rag", ["[readme/README.md:", "> What happens to a session when the disk is full?"]),
        ("llama_index_query", ["> How long is the notice period?", "house.md: # The house The canteen opens"]),
        ("llama_index_chat", ["16 messages are kept", "Recalled from earlier:", FACT]),
        ("llama_index_agent", ["tool: The kitchen has 21 degrees.", "Called: [('room_temperature', {'room': 'kitchen'})]"]),
    ],
)
def test_an_example_runs(name: str, printed: list[str]) -> None:
    """To its end, and prints this in this order: what is told and recalled, not the words that the model chooses."""
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    start = 0
    for text in printed:
        start = done.stdout.find(text, start)
        assert start >= 0, f"{text!r} is missing, or stands too early, in\n{done.stdout}"
