"""The examples of the integrations run as they stand, offline, on the default model."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

EXAMPLES = ROOT / "examples"


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("langchain_chain", ["Recalled: user: The door code of the office is 4071."]),
        ("langchain_agent", ["> What is the door code of the office?", "Recalled from earlier:", "4071"]),
        ("langchain_rag", ["[readme/README.md:", "> What happens to a session when the disk is full?"]),
        ("llama_index_query", ["4071", "house.md: # The house The canteen opens"]),
        ("llama_index_chat", ["16 messages are kept", "Recalled from earlier:", "user: The door code of the office is 4071."]),
        ("llama_index_agent", ["tool: The kitchen has 21 degrees.", "Called: [('room_temperature', {'room': 'kitchen'})]"]),
    ],
)
def test_an_example_runs(name: str, printed: list[str]) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for one in printed:
        assert one in done.stdout
