"""Replicas on a real Ray cluster of two nodes: affinity, streams, tenants, too many calls, and replicas and nodes that die."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import threading
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
    def __init__(self, url: str, secrets: dict[str, str], scaled: Callable[[serving.Scale], None]) -> None:
        self.url, self._secrets, self.scaled = url, secrets, scaled

    def client(self, tenant: str = "ann") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self._secrets[tenant]}"}, timeout=120)

    def running(self) -> set[int]:
        """The processes of the replicas that are given calls."""
        return set(self.replicas().broadcast("process").results())

    def holder(self, session: str) -> int:
        """The process of the replica that a session's calls go to."""
        return int(self.replicas().options(session_id=f"ann/session:{session}").process.remote().result())

    def answering(self) -> list[float]:
        """How many answers each replica is writing."""
        return [answers_of(text, "hmt_answering") for text in self.replicas().broadcast("metrics").results()]

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

    def scaled(scale: serving.Scale) -> None:
        settings = Settings(hosts=("*",), answers=2, looking=2, waiting=2)
        serving.serve(assistant, settings, tokens=tokens, scale=scale, port=port)

    scaled(serving.Scale(2, 2))
    yield Served(f"http://127.0.0.1:{port}", secrets, scaled)
    from ray import serve

    serve.shutdown()  # else threads of its handles connect again


def said(session: str | None = None, *, tokens: int = 4, **body: Any) -> dict[str, Any]:
    named = {} if session is None else {"metadata": {"session_id": session}}
    return {"messages": [{"role": "user", "content": "Good morning."}], "max_tokens": tokens, **named, **body}


def answers_of(text: bytes, counted: str = "hmt_answer_seconds_count") -> float:
    samples = (sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples)
    return next(sample.value for sample in samples if sample.name == counted)


def messages(http: httpx.Client, session: str) -> list[str]:
    answer = patiently(lambda: http.get(f"/v1/sessions/{session}/messages"))
    return [message["content"] for message in answer.json()["data"]]


def patiently(call: Callable[[], httpx.Response], seconds: float = 90) -> httpx.Response:
    """Call again as long as there is nobody to answer, as clients do."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            answer = call()
            if answer.status_code < 500:
                return answer
        time.sleep(0.5)
    return call()


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
        holder = served.holder("heir")
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


def test_replicas_come_and_go_by_need_and_what_is_being_answered_is_answered(served: Served) -> None:
    """Four answers bring a second replica. Then one of each is left, and one replica goes."""
    served.scaled(serving.Scale(1, 2, calls=3, up_after=1, down_after=1))  # what looks at replicas is a call, too
    until(lambda: len(served.running()) == 1)
    begun, enough = time.monotonic(), threading.Event()
    asked(served, "measured", 200)
    lasting = round(200 / (time.monotonic() - begun) * 20)  # tokens that take longer than a replica needs to go
    with ThreadPoolExecutor(4) as threads:
        for number in range(4):
            threads.submit(asked, served, f"load {number}", 50 * lasting, enough)
        until(lambda: len(served.running()) == 2)
        two = served.running()
        names = list({served.holder(f"of {number}"): f"of {number}" for number in range(20)}.values())
        enough.set()
        until(lambda: sum(served.answering()) == 0)
        answers = [threads.submit(asked, served, name, lasting) for name in names]
        until(lambda: served.answering() == [1, 1])
        until(lambda: len(served.running()) == 1)
        (kept,) = served.running()
        assert kept in two and not any(answer.done() for answer in answers), "both are still being answered"
        assert all('"finish_reason": "length"' in answer.result() for answer in answers)
    with served.client() as http:
        for name in names:
            assert len(messages(http, name)) == 2
            http.post(CHAT, json=said(name)).raise_for_status()
            assert served.holder(name) == kept and len(messages(http, name)) == 4


def test_a_replica_that_goes_writes_to_their_end_also_the_answers_that_nobody_follows(served: Served) -> None:
    served.scaled(serving.Scale(2, 2))
    until(lambda: len(served.running()) == 2)
    begun = time.monotonic()
    asked(served, "measured again", 200)
    lasting = round(200 / (time.monotonic() - begun) * 40)
    with served.client() as http:
        names = []
        while served.answering().count(0):
            body = {"input": "Good morning.", "background": True, "max_output_tokens": lasting}
            if (taken := http.post("/v1/responses", json=body)).status_code == 200:
                names.append(taken.json()["id"])
            time.sleep(0.5)
        assert {status(http, name) for name in names} <= {"queued", "in_progress"}
        served.scaled(serving.Scale(1, 1))  # returns when one has gone
        until(lambda: len(served.running()) == 1)
        until(lambda: not {status(http, name) for name in names} & {"queued", "in_progress"}, 300)
        ended = [http.get(f"/v1/responses/{name}").json() for name in names]
    told = [(one["status"], (one["incomplete_details"] or {}).get("reason")) for one in ended]
    assert all(end in (("completed", None), ("incomplete", "max_output_tokens")) for end in told), told
    assert all(one["output"][0]["content"][0]["text"] for one in ended)


def status(http: httpx.Client, name: str) -> str:
    """Return how far a response is that is written in the background."""
    return str(patiently(lambda: http.get(f"/v1/responses/{name}")).json()["status"])


def until(done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def asked(served: Served, session: str, tokens: int, enough: threading.Event | None = None) -> str:
    """Ask in a session until it is enough, again where too many ask; return the end of the stream that answers."""
    body = said(session, tokens=tokens, stream=True) | {"messages": [{"role": "user", "content": f"For {tokens}."}]}
    with served.client() as http:
        while True:
            with http.stream("POST", CHAT, json=body) as answer:
                if answer.status_code != 429:
                    lines = itertools.takewhile(lambda _: enough is None or not enough.is_set(), answer.iter_lines())
                    return "".join([line for line in lines if line][-3:])
            time.sleep(0.2)


def test_what_is_being_answered_is_answered_before_it_stops_but_not_without_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(tokens: int) -> list[str]:
        said_so_far: list[str] = []
        body = said(tokens=tokens, stream=True)
        with (
            contextlib.suppress(httpx.TransportError),
            served.client() as http,
            http.stream("POST", CHAT, json=body) as answer,
        ):
            for line in filter(None, answer.iter_lines()):
                begun.add(tokens)
                said_so_far.append(line)
        return said_so_far

    begun: set[int] = set()
    monkeypatch.setattr(serving, "_LAST_WORDS", 15.0)
    with ThreadPoolExecutor(2) as threads:
        short, long = threads.submit(ask, 300), threads.submit(ask, 1_000_000)
        until(lambda: len(begun) == 2)
        serving.stop()
        assert '"finish_reason": "length"' in "".join(short.result()[-3:])
        assert '"finish_reason": "length"' not in "".join(long.result()[-3:])
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{served.url}/health")
