"""The examples run as they stand, offline: on a tiny model, but for the one that needs a model which ends what it writes."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence

import pytest
from places import ROOT
from scripts import run_script

EXAMPLES = ROOT / "examples"
FACT = "The door code of the office is 4071."
PRINTED = {  # in this order: what is told and recalled, not the words that the model chooses
    "read_and_ask": ["Read 9 documents: ", "> How long is the notice period?", "office/contract #0", "> When does the canteen"],
    "remember": [
        "--- process",
        f"> {FACT}",
        "22 messages, ",
        "; the store is not closed",
        "--- process",
        "The facts were told ",
        "> What is the door code of the office?",
        "Recalled",
        FACT,
        "> Which tea do I like best?",
        " of 10 answers are right.",
        "The record after an exit without closing: whole.",
    ],
    "langchain_chain": ["> What is the door code of the office?", "Recalled", FACT],
    "langchain_agent": ["> What is the door code of the office?", "Another model", "Recalled from earlier:", FACT],
    "langchain_rag": ["[readme/README.md:", "> What happens to a session when the disk is full?"],
    "langgraph_postgres": [FACT, "2 messages in the thread", "4 messages in the thread", f"kept in the session: {FACT}"],
    "llama_index_query": ["> How long is the notice period?", "contract.md: The notice period is three months", "house.md:"],
    "llama_index_chat": ["16 messages are kept", "Recalled from earlier:", FACT],
}


WITH_A_SERVER = ("langgraph_postgres",)


@pytest.mark.slow
@pytest.mark.real
def test_the_agent_runs_on_the_default_model() -> None:
    """It needs a model that ends what it writes; which of the rooms is measured is the model's choice."""
    printed = run("llama_index_agent", dict(os.environ))
    calls = ast.literal_eval(printed.partition("\nCalled: ")[2])
    assert calls and {name for name, _ in calls} == {"room_temperature"}
    rooms = [arguments["room"] for _, arguments in calls]
    assert set(rooms) <= {"kitchen", "cellar"} and all(len(arguments) == 1 for _, arguments in calls)
    in_order(printed, [*(f"tool: The {room} has 21 degrees." for room in rooms), "\nCalled: "])


@pytest.mark.parametrize("name", [name for name in PRINTED if name not in WITH_A_SERVER])
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
    in_order(run(name, environment), PRINTED[name])


def run(name: str, environment: dict[str, str]) -> str:
    """Run an example to its end; return what it printed."""
    done = run_script(EXAMPLES / f"{name}.py", environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_order(printed: str, texts: Sequence[str]) -> None:
    """Find the texts in what was printed, each after the one before."""
    start = 0
    for text in texts:
        start = printed.find(text, start)
        assert start >= 0, f"{text!r} is missing, or stands too early, in\n{printed}"
