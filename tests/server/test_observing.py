"""What operators see: spans and lines of a log, and nothing in them that was said."""

from __future__ import annotations

import builtins
import io
import json
import logging
import logging.config
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tiny import randomize

from hmt_memory import Assistant, HMTConfig, HMTModel
from hmt_memory.errors import MissingDependencyError, StoreError
from hmt_memory.server import logs, tracing
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings
from hmt_memory.server.stored_responses import tidy

SECRET = "zebra"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": f"My {SECRET} sleeps."}], "max_tokens": 5, "seed": 3}
NAMED = {"X-HMT-Session": f"{SECRET}-session"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def api(assistant: Assistant) -> TestClient:
    return TestClient(create_app(assistant, Settings(hosts=("*",))), raise_server_exceptions=False)


# --- spans --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What was exported."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("named", [{}, NAMED])
def test_an_answer_has_a_span_of_its_tokens_and_times(
    api: TestClient, spans: Any, assistant: Assistant, stream: bool, named: dict[str, str]
) -> None:
    body = ASKED | {"stream": stream, "stream_options": {"include_usage": True}, "stop": [SECRET]}
    answer = api.post("/v1/chat/completions", json=body, headers=named | {"traceparent": PARENT})
    (told,) = [line for line in answer.text.splitlines() if '"usage"' in line]
    usage = json.loads(told.removeprefix("data: "))["usage"]
    (span,) = spans.get_finished_spans()
    about = dict(span.attributes)
    assert span.name == f"chat {assistant.name}" and span.parent.span_id == int(PARENT.split("-")[2], 16)
    assert 0 < about.pop("gen_ai.response.time_to_first_chunk") < 60
    assert about.pop("gen_ai.response.finish_reasons") in (("stop",), ("length",))
    assert about == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hmt_memory",
        "gen_ai.request.model": assistant.name,
        "gen_ai.response.model": assistant.name,
        "gen_ai.output.type": "text",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stream": stream,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }
    assert SECRET not in span.to_json()


def test_texts_and_vectors_have_spans_and_what_fails_says_so(
    spans: Any, chatty: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = HMTConfig(segment_length=48, key_dim=16)
    model = randomize(HMTModel.from_pretrained(chatty, config=config, dtype="float32", device="cpu"))
    app = create_app(Assistant(model, store=tmp_path / "store"), Settings(hosts=("*",)))
    api = TestClient(app, raise_server_exceptions=False)
    api.post("/v1/completions", json={"prompt": SECRET, "max_tokens": 2})
    api.post("/v1/embeddings", json={"input": SECRET})
    monkeypatch.setattr(Assistant, "reply", lambda *given, **options: 1 / 0)
    api.post("/v1/chat/completions", json=ASKED)
    done, embedded, failed = spans.get_finished_spans()
    assert done.attributes["gen_ai.operation.name"] == "text_completion" and done.attributes["gen_ai.usage.output_tokens"] == 2
    assert embedded.name.startswith("embeddings ") and embedded.attributes["gen_ai.usage.input_tokens"] == len(SECRET)
    assert failed.attributes["error.type"] == "ZeroDivisionError" and not failed.status.is_ok and not failed.events
    assert not any(SECRET in span.to_json() for span in (done, embedded, failed))


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_a_span_as_an_answer_of_chat_has(
    api: TestClient, spans: Any, assistant: Assistant, stream: bool
) -> None:
    body = {"input": f"My {SECRET} sleeps.", "max_output_tokens": 5, "conversation": f"{SECRET}-session", "stream": stream}
    answer = api.post("/v1/responses", json=body, headers={"traceparent": PARENT})
    told = [line for line in answer.text.splitlines() if '"total_tokens"' in line][-1]
    whole = json.loads(told.removeprefix("data: "))
    response = whole["response"] if stream else whole
    usage = response["usage"]
    (span,) = spans.get_finished_spans()
    about = span.attributes
    assert span.name == f"chat {assistant.name}" and span.parent.span_id == int(PARENT.split("-")[2], 16)
    assert (about["gen_ai.request.max_tokens"], about["gen_ai.request.stream"]) == (5, stream)
    assert about["gen_ai.usage.input_tokens"] == usage["input_tokens"] == response["hmt"]["view_tokens"]
    assert about["gen_ai.usage.output_tokens"] == usage["output_tokens"] and span.status.is_unset
    assert SECRET not in span.to_json()


def test_a_response_in_the_background_has_its_span_when_it_has_ended(assistant: Assistant, spans: Any) -> None:
    body = {"input": f"My {SECRET} sleeps.", "max_output_tokens": 5, "background": True}
    with TestClient(create_app(assistant, Settings(hosts=("*",)))) as api:
        name = api.post("/v1/responses", json=body, headers={"traceparent": PARENT}).json()["id"]
        while (response := api.get(f"/v1/responses/{name}").json())["status"] in ("queued", "in_progress"):
            time.sleep(0.01)
    (span,) = spans.get_finished_spans()
    assert span.name == f"chat {assistant.name}" and span.parent.span_id == int(PARENT.split("-")[2], 16)
    assert span.attributes["gen_ai.usage.output_tokens"] == response["usage"]["output_tokens"] and span.status.is_unset
    assert SECRET not in span.to_json()


def test_what_is_done_with_a_memory_has_spans_by_its_kind(api: TestClient, spans: Any) -> None:
    items = {"items": [{"role": "user", "content": SECRET}]}
    name = api.post("/v1/conversations", json={}).json()["id"]
    item = api.post(f"/v1/conversations/{name}/items", json=items).json()["data"][0]["id"]
    api.get(f"/v1/sessions/{name}/recall", params={"query": SECRET})
    api.delete(f"/v1/conversations/{name}/items/{item}")
    api.delete(f"/v1/conversations/{name}")
    assert api.get(f"/v1/sessions/{SECRET}/recall", params={"query": SECRET}).status_code == 404
    *done, failed = spans.get_finished_spans()
    kinds = ["create_memory_store", "create_memory", "search_memory", "delete_memory", "delete_memory_store"]
    assert [span.name for span in done] == kinds == [span.attributes["gen_ai.operation.name"] for span in done]
    assert all(span.status.is_unset for span in done) and failed.attributes["error.type"] == "SessionNotFoundError"
    assert not any(text in span.to_json() for span in (*done, failed) for text in (SECRET, name))


def test_an_answer_that_fails_while_it_is_streamed_says_of_what(
    api: TestClient, spans: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmt_memory.sessions.answer.Answer._advance", lambda _: 1 / 0)
    monkeypatch.setattr("hmt_memory.server.door.started", lambda call, _: (call.begin(), None))
    answer = api.post("/v1/chat/completions", json=ASKED | {"stream": True})
    assert '"ZeroDivisionError"' in answer.text and answer.text.rstrip().endswith("[DONE]")
    (span,) = spans.get_finished_spans()
    assert span.attributes["error.type"] == "ZeroDivisionError" and not span.status.is_ok


def test_a_call_that_is_turned_away_has_a_span_that_ends(assistant: Assistant, spans: Any) -> None:
    api = TestClient(create_app(assistant, Settings(hosts=("*",), answers=0, waiting=0)))
    for path, body in (("chat/completions", ASKED), ("completions", {"prompt": SECRET})):
        assert api.post(f"/v1/{path}", json=body).status_code == 429
    assert [span.attributes["error.type"] for span in spans.get_finished_spans()] == ["HTTPException"] * 2


def test_without_opentelemetry_all_works(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "api", None)
    assert api.post("/v1/chat/completions", json=ASKED).status_code == 200


def test_spans_are_sent_where_the_environment_says_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    made: list[Any] = []
    monkeypatch.setattr(tracing.api.trace, "set_tracer_provider", made.append)
    for name in tracing._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracing.start()
    assert made == []
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    tracing.start()
    assert made[0].resource.attributes["service.name"] == "hmt-memory"
    made[0].shutdown()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(MissingDependencyError, match=r"hmt-memory\[otel\]"):
        tracing.start()


# --- lines --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(logs.LogFormat))
def written(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The form of the lines, and what reads those that were written."""
    chosen = logs.settings(request.param)  # `dictConfig` itself would close the handlers of pytest
    handler, root, calls = logging.StreamHandler(io.StringIO()), logging.getLogger(), logging.getLogger(logs.CALLS)
    handler.setFormatter(logging.config.DictConfigurator(chosen).configure_formatter(chosen["formatters"]["line"]))
    before = root.level, calls.level
    root.addHandler(handler)
    root.setLevel(chosen["root"]["level"])
    calls.setLevel(chosen["loggers"][logs.CALLS]["level"])
    yield request.param, handler.stream.getvalue
    root.removeHandler(handler)
    root.setLevel(before[0])
    calls.setLevel(before[1])


def test_lines_say_nothing_that_was_said(
    api: TestClient, assistant: Assistant, written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, lines = written
    assert api.post("/v1/chat/completions", json=ASKED, headers=NAMED).status_code == 200
    api.post("/v1/completions", json={"prompt": SECRET})
    api.post("/v1/embeddings", json={"input": SECRET})
    api.get(f"/v1/sessions/{SECRET}-session/recall", params={"query": SECRET})
    api.get("/v1/sessions/nobody", params={"x": SECRET})
    api.post("/v1/chat/completions", json={"messages": SECRET})

    def fails(*given: Any, **options: Any) -> Any:
        try:
            raise ValueError(f"{SECRET} cannot be read")
        except ValueError as error:
            raise RuntimeError(f"of {SECRET}") from error

    def damaged(*given: Any, **options: Any) -> Any:
        raise StoreError(f"session {SECRET!r} is damaged")

    monkeypatch.setattr(assistant, "reply", fails)
    assert api.post("/v1/chat/completions", json=ASKED).status_code == 500
    monkeypatch.setattr(assistant, "reply", damaged)
    assert api.post("/v1/chat/completions", json=ASKED).status_code == 500
    monkeypatch.setattr(assistant.store, "unused", damaged)
    tidy(assistant, 0.0)
    logging.getLogger("hmt_memory.server").error("Exception in ASGI application\n", exc_info=raised(fails))
    text = lines()
    assert SECRET not in text, text
    assert "builtins.ValueError" in text and "builtins.RuntimeError" in text and "in fails" in text
    assert text.count("hmt_memory.errors.StoreError") == 2 and "in damaged" in text
    if form is logs.LogFormat.json:
        rows = [json.loads(line) for line in text.splitlines()]
        calls = [row for row in rows if row["logger"] == logs.CALLS]
        assert [row["status"] for row in calls] == [200, 200, 400, 200, 404, 400, 500, 500]
        assert calls[3]["route"] == "/v1/sessions/{name:path}/recall" and calls[3]["seconds"] >= 0 and calls[3]["time"]
        assert rows[-1]["level"] == "error" and rows[-1]["message"].startswith("Exception in ASGI")
    else:
        lines_of = [line for line in text.splitlines() if line.startswith(("ERROR", "WARNING"))]
        assert lines_of[0] == "ERROR: a call failed" and lines_of[2].startswith("ERROR: Exception in ASGI application")
        assert len(lines_of) == 3, "nothing else is worth a line"


def raised(work: Any) -> Any:
    try:
        work()
    except Exception as error:
        return type(error), error, error.__traceback__


def test_groups_of_errors_are_told_by_their_types() -> None:
    group = getattr(builtins, "ExceptionGroup", None)
    if group is None:
        pytest.skip("Python 3.10 has none")
    lines = list(logs._trace(group(SECRET, [ValueError(SECRET), KeyError(SECRET)])))
    assert lines == ["builtins.ExceptionGroup\n", "builtins.ValueError\n", "builtins.KeyError\n"]
