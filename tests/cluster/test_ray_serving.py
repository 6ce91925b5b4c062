"""Replicas on a real Ray cluster of two nodes: affinity, streams, tenants, too many calls, and replicas and nodes that die."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hmt_memory import Assistant
from hmt_memory.cluster import serving
from hmt_memory.server.settings import Settings
from hmt_memory.server.tokens import Tokens

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: make test-ray", allow_module_level=True)

pytestmark = pytest.mark.enable_socket
CHAT = "/v1/chat/completions"


class Served:
    def __init__(self, url: str, secrets: dict[str, str]) -> None:
        self.url, self._secrets = url, secrets

    def client(self, tenant: str = "ann") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self._secrets[tenant]}"}, timeout=120)

    def replicas(self) -> Any:
        from ray import serve

        return serve.get_deployment_handle("Replica", app_name=serving.APPLICATION)


@pytest.fixture(scope="module")
def served(cluster: Any, chatty: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = tmp_path_factory.mktemp("store")
    tokens = Tokens(store)
    secrets = {name: tokens.make(name) for name in ("ann", "bob")}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assistant = Assistant(chatty, reader="same", store=store, dtype="float32", device="cpu")
    settings = Settings(hosts=("*",), answers=2, looking=2, waiting=2)
    serving.serve(assistant, settings, tokens=tokens, scale=serving.Scale(2, 2), port=port)
    yield Served(f"http://127.0.0.1:{port}", secrets)


def said(session: str | None = None, *, tokens: int = 4, **body: Any) -> dict[str, Any]:
    named = {} if session is None else {"metadata": {"session_id": session}}
    return {"messages": [{"role": "user", "content": "Good morning."}], "max_tokens": tokens, **named, **body}


def answers_of(text: bytes) -> float:
    samples = (sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == "hmt_answer_seconds_count")


def messages(http: httpx.Client, session: str) -> list[str]:
    return [message["content"] for message in http.get(f"/v1/sessions/{session}/messages").json()["data"]]


def patiently(call: Callable[[], httpx.Response], seconds: float = 90) -> httpx.Response:
    """Call again as long as there is nobody to answer, as clients do."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = call()
            if answer.status_code < 500 or time.monotonic() > deadline:
                return answer
        time.sleep(0.5)


def test_calls_of_a_session_go_to_one_replica(served: Served) -> None:
    before = sorted(map(answers_of, served.replicas().broadcast("metrics").results()))
    with served.client() as http:
        for _ in range(20):
            http.post(CHAT, json=said("warm")).raise_for_status()
        assert http.get("/metrics").text.count("hmt_answer_seconds_count ") == 1
        assert answers_of(http.get("/metrics").content) == sum(before) + 20
    after = sorted(map(answers_of, served.replicas().broadcast("metrics").results()))
    assert len(after) == 2 and max(late - early for early, late in zip(before, after, strict=True)) >= 17


def test_a_stream_comes_as_it_is_written_and_stores_what_it_says(served: Served) -> None:
    with served.client() as http, http.stream("POST", CHAT, json=said("streamed", tokens=60, stream=True)) as answer:
        times = [time.monotonic() for line in answer.iter_lines() if line]
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert times[0] < times[-1] - 0.02 and len(times) > 10
    with served.client() as http:
        assert len(messages(http, "streamed")) == 2


def test_whoever_goes_away_leaves_nothing(served: Served) -> None:
    with served.client() as http, http.stream("POST", CHAT, json=said("left", tokens=2000, stream=True)) as answer:
        next(answer.iter_lines())
    with served.client() as http:
        deadline = time.monotonic() + 60
        while "hmt_answering 0.0" not in http.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert messages(http, "left") == []


def test_tenants_are_apart_and_strangers_refused(served: Served) -> None:
    with served.client("ann") as ann, served.client("bob") as bob:
        ann.post(CHAT, json=said("own")).raise_for_status()
        assert bob.get("/v1/sessions/own/messages").status_code == 404
        assert bob.get(CHAT).status_code == 405
    for path in ("/v1/sessions", "/metrics"):
        stranger = httpx.get(f"{served.url}{path}")
        assert stranger.status_code == 401 and stranger.json()["error"]["type"] == "authentication_error"
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_too_many_calls_are_told_to_come_again(served: Served) -> None:
    def ask(_: int) -> httpx.Response:
        with served.client() as http:
            return http.post(CHAT, json=said(tokens=150))

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(ask, range(40)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and len(refused) < 40
    assert {answer.status_code for answer in refused} == {429} and all("Retry-After" in answer.headers for answer in refused)
    assert refused[0].json()["error"]["type"] == "rate_limit_error"


def test_another_replica_takes_over_when_one_dies_in_an_answer(served: Served) -> None:
    with served.client() as http:
        http.post(CHAT, json=said("heir")).raise_for_status()
        known = messages(http, "heir")
        holder = served.replicas().options(session_id="ann/session:heir").process.remote().result()
        more = [{"role": "user", "content": "Good evening."}]
        with http.stream("POST", CHAT, json=said("heir", tokens=3000, stream=True) | {"messages": more}) as answer:
            lines = filter(None, answer.iter_lines())
            next(lines)
            os.kill(holder, signal.SIGKILL)
            *_, failure, end = lines
        assert '"type": "server_error"' in failure and end == "data: [DONE]"
        assert messages(http, "heir") == known
        begun = time.monotonic()
        again = patiently(lambda: http.post(CHAT, json=said("heir") | {"messages": more}))
        assert again.status_code == 200 and time.monotonic() - begun < 30
        assert len(messages(http, "heir")) == len(known) + 2


def test_the_other_node_takes_over_when_one_dies(served: Served, cluster: Any) -> None:
    with served.client() as http:
        sessions = [f"spread {number}" for number in range(6)]
        for session in sessions:
            patiently(lambda session=session: http.post(CHAT, json=said(session))).raise_for_status()
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        for session in sessions:
            answer = patiently(lambda session=session: http.post(CHAT, json=said(session)))
            assert answer.status_code == 200 and messages(http, session)[0] == "Good morning."


def test_what_is_being_answered_is_answered_before_it_stops(served: Served) -> None:
    def ask() -> list[str]:
        with served.client() as http, http.stream("POST", CHAT, json=said(tokens=300, stream=True)) as answer:
            lines = answer.iter_lines()
            begun.append(next(lines))
            return [line for line in lines if line]

    begun: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        while not begun and not asking.done():
            time.sleep(0.01)
        serving.stop()
        assert '"finish_reason": "length"' in "".join(asking.result()[-3:])
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{served.url}/health")
