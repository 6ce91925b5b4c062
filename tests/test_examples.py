"""The examples of the integrations run as they stand, offline, on the default model."""

from __future__ import annotations

import os

import pytest
from places import ROOT
from scripts import run_script

EXAMPLES = ROOT / "examples"
FACT = "The door code of the office is 4071."
PRINTED = {  # in this order: what is told and recalled, not the words that the model chooses
    "langchain_chain": ["> What is the door code of the office?", "Recalled", FACT],
    "langchain_agent": ["> What is the door code of the office?", "Another model", "Recalled from earlier:", FACT],
    "langchain_rag": ["[readme/README.md:", "> What happens to a session when the disk is full?"],
    "langgraph_postgres": [FACT, "2 messages in the thread", "4 messages in the thread", f"kept in the session: {FACT}"],
    "llama_index_query": ["> How long is the notice period?", "contract.md: The notice period is three months", "house.md:"],
    "llama_index_chat": ["16 messages are kept", "Recalled from earlier:", FACT],
    "llama_index_agent": ["tool: The kitchen has 21 degrees.", "Called: [('room_temperature', {'room': 'kitchen'})]"],
}


WITH_A_SERVER = ("langgraph_postgres",)
ON_THE_DEFAULT_MODEL = ("llama_index_agent",)  # it needs one that ends what it writes


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ON_THE_DEFAULT_MODEL)
def test_an_example_runs_on_the_default_model(name: str) -> None:
    check(name, dict(os.environ))


@pytest.mark.parametrize("name", [name for name in PRINTED if name not in (*ON_THE_DEFAULT_MODEL, *WITH_A_SERVER)])
def test_an_example_runs(name: str, trained: str) -> None:
    """On a tiny model, which takes a tenth of the time."""
    check(name, os.environ | {"HMT_MODEL": trained})


@pytest.mark.parametrize("name", WITH_A_SERVER)
def test_an_example_runs_with_postgresql(name: str, trained: str, postgres_url: str) -> None:
    address, _, schema = postgres_url.partition("&schema=")
    place = address.replace("?", f"?schema={schema}&")  # wherever the parameter stands
    check(name, os.environ | {"HMT_MODEL": trained, "HMT_STORE": place})


def check(name: str, environment: dict[str, str]) -> None:
    """Run an example to its end; it prints what it should in order."""
    done = run_script(EXAMPLES / f"{name}.py", environment=environment)
    assert done.returncode == 0, done.stderr
    start = 0
    for text in PRINTED[name]:
        start = done.stdout.find(text, start)
        assert start >= 0, f"{text!r} is missing, or stands too early, in\n{done.stdout}"
