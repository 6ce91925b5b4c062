"""What the mixed load of `benchmarks/bench_serve.py` counts as wrong: it would find what it looks for."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient
from places import ROOT

from hmt_memory import Assistant
from hmt_memory.server.app import create_app
from hmt_memory.server.logs import Formatter, LogFormat
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens


@pytest.fixture(scope="module")
def load() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("serve_load")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_a_ledger_tells_lost_and_doubled_from_what_was_never_answered(load: ModuleType) -> None:
    asked, answered = load.Said(1, "user", "a"), load.Said(2, "assistant", "b")
    assert load.Ledger([asked, answered]).settle([asked, answered]) is None
    assert "is stored" in load.Ledger([asked, answered]).settle([asked])
    assert "is stored" in load.Ledger([asked]).settle([asked, answered])
    assert "twice" in load.Ledger([asked, asked]).settle([asked, asked])
    unsure = [[("user", "a"), ("assistant", None)]]
    for found in ([], [asked, answered]):
        ledger = load.Ledger([], unsure)
        assert ledger.settle(found) is None and ledger.known == found and not ledger.instead
    assert "is stored" in load.Ledger([], unsure).settle([asked])


@pytest.fixture
def client(load: ModuleType, assistant: Assistant) -> Any:
    """A client in front of the application itself, and what was found."""
    assistant.store.folder.mkdir(exist_ok=True)
    tokens = Tokens(assistant.store.folder)
    secret = tokens.make("ann")
    app = create_app(assistant, Settings(hosts=("*",)), tokens=tokens)
    server = type("Server", (), {"url": "http://testserver"})()
    made = load.Client(0, "ann", server, secret, load.Findings(), 4)
    made._http = TestClient(app, headers={"Authorization": f"Bearer {secret}"})
    return made


def test_all_that_a_client_does_agrees_with_what_is_stored(client: Any) -> None:
    for act in ("ask", "stream", "edit", "add", "forget", "upload", "recall", "search", "embed", "complete", "delete", "ask"):
        getattr(client, f"_{act}")()
        client.check()
    client.check_all()
    assert client._findings.wrong == [] and len(client.ledger.known) == 2 and client.documents


def test_what_goes_wrong_behind_a_clients_back_is_found(client: Any, assistant: Assistant) -> None:
    client._ask()
    session = assistant.session(f"ann/{client._session}")
    session.add({"role": "user", "content": "Nobody said that."})
    client.check()
    assert len(client._findings.wrong) == 1
    session.add({"role": "user", "content": "Good morning, ~bob-0123456789ab~ sea"})
    client._search()
    assert "was told words of ['bob']" in client._findings.wrong[-1]
    client._forgotten |= {"~bob-0123456789ab~"}
    client._search()
    assert any("what was forgotten" in wrong for wrong in client._findings.wrong)
    assistant.corpus(f"ann/{client._corpus}").add_documents([{"name": "other", "text": "x"}])
    client.check_all()
    assert "['other'] are stored" in client._findings.wrong[-1]


def test_a_process_that_grows_is_found(load: ModuleType) -> None:
    steady = load.Life([300.0, *[500.0] * load._LONG], [20] * load._LONG)
    growing = load.Life([300.0 + at for at in range(load._LONG)], [20] * load._LONG)
    assert list(steady.wrong()) == [] and "memory grows" in next(growing.wrong())
    assert "descriptors" in next(load.Life([300.0], [900]).wrong())


def test_what_ran_too_shortly_to_be_judged_is_not_said_to_hold_its_memory(load: ModuleType) -> None:
    short = load.Life([300.0 * at for at in range(1, load._LONG)], [20] * (load._LONG - 1))
    long = load.Life([300.0] * load._LONG, [20] * load._LONG)
    assert list(short.wrong()) == [] and "memory not judged in less than 300 s" in str(short) and "judged" not in str(long)
    assert load.verdict([], [long, long]).endswith("no words of others, no leak")
    assert load.verdict([], [long, short]).endswith("memory judged in 1 of 2 processes")
    assert load.verdict(["it is wrong"], [long]) == "WRONG:\nit is wrong"


@pytest.mark.parametrize("clients", [1, 4, 5, 32, 64])
def test_a_crowd_asks_in_each_session_once_and_no_two_in_the_same(load: ModuleType, clients: int) -> None:
    crowd = importlib.import_module("bench_serve")
    asked = [session for number in range(clients) for session in crowd.sessions_of(number, clients)]
    assert sorted(asked) == list(range(max(32, clients))) and all(
        crowd.sessions_of(number, clients) for number in range(clients)
    )


def test_a_server_that_does_not_come_back_is_found(client: Any, load: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: Any, **options: Any) -> Any:
        raise load.Gone

    monkeypatch.setattr(client, "_call", gone)
    client.check(0.0)
    assert "does not come back" in client._findings.wrong[0]


def test_what_the_server_writes_of_failures_is_found(load: ModuleType) -> None:
    form = Formatter(LogFormat.json)
    lines = [form.format(logging.makeLogRecord({"levelname": level, "msg": level})) for level in ("INFO", "WARNING", "ERROR")]
    try:
        raise ValueError
    except ValueError as error:
        about = {"levelname": "WARNING", "msg": "tidy", "exc_info": (ValueError, error, error.__traceback__)}
        lines.append(form.format(logging.makeLogRecord(about)))
    others = ["Listening at http://127.0.0.1:8399", "Traceback (most recent call last):", ""]
    assert load.failures("\n".join([*lines, *others])) == [*lines[2:], others[1]]


def test_streams_that_are_cut_at_a_restart_are_no_failure_and_more_of_them_are(load: ModuleType) -> None:
    cut = Formatter(LogFormat.json).format(logging.makeLogRecord({"levelname": "ERROR", "msg": load._CUT}))
    assert load.failures("\n".join([cut] * 4), clients=2) == []
    assert load.failures("\n".join([cut] * 5), clients=2) == [cut] * 5


def test_a_client_stops_when_it_is_over(client: Any) -> None:
    over = threading.Event()
    over.set()
    client.run(over)
    assert not client._findings.done
