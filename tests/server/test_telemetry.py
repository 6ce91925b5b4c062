"""Spans over the wire: what `hmt serve` sends to a collector that OpenTelemetry's own variables name."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from collector import collecting
from serving_apart import serving

from hmt_memory.server import tracing

pytestmark = pytest.mark.enable_socket
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARIES = ("zebra", "walrus", "heron", "lynx")
SYSTEM, SAID, SESSION, STOP = CANARIES


def plain(attributes: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""

    def value(given: Any) -> Any:
        kind = given.WhichOneof("value")
        return [value(each) for each in given.array_value.values] if kind == "array_value" else getattr(given, kind)

    return {each.key: value(each.value) for each in attributes}


@pytest.mark.slow
def test_the_spans_of_calls_reach_a_collector_and_nothing_that_was_said(chatty: str, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"My {SAID} sleeps."}]
    body = {"messages": messages, "max_tokens": 24, "seed": 3, "temperature": 0.5, "stop": [STOP]}
    headers = {"X-HMT-Session": f"{SESSION}-session", "traceparent": f"00-{TRACE}-{PARENT}-01", "baggage": f"who={SESSION}"}
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=abc",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,deployment.environment.name=tests",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # only the end of the server sends
        }
        with serving(tmp_path, chatty, **environment) as (api, _):
            whole = api.post("/v1/chat/completions", json=body, headers=headers).json()
            streamed = api.post("/v1/chat/completions", json=body | {"stream": True}, headers=headers).text
            api.get(f"/v1/sessions/{SESSION}-session/recall", params={"query": SAID})
            refused = api.post("/v1/chat/completions", json=body | {"messages": [messages[0]]})
            assert refused.status_code == 400 and not collector.bodies
        sent = b"".join(collector.bodies)
        requests = [ExportTraceServiceRequest.FromString(each) for each in collector.bodies]
        (heard,) = collector.headers
    assert (heard["path"], heard["x-key"], heard["content-type"]) == ("/v1/traces", "abc", "application/x-protobuf")
    (resource,) = (each for request in requests for each in request.resource_spans)
    about = plain(resource.resource.attributes)
    assert about["service.name"] == "ours" and about["deployment.environment.name"] == "tests" and about["service.version"]
    (scope,) = resource.scope_spans
    assert scope.scope.name == "hmt_memory" and scope.scope.version == about["service.version"]
    (first, second, recall, failed), name = scope.spans, whole["model"]
    for span in (first, second):
        assert span.name == f"chat {name}" and span.kind == Span.SPAN_KIND_INTERNAL
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        assert span.start_time_unix_nano < span.end_time_unix_nano and span.status.code == Status.STATUS_CODE_UNSET
        assert not span.events and not span.links
    told = plain(first.attributes)
    assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 60
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "hmt_memory",
        "gen_ai.request.model": name,
        "gen_ai.response.model": name,
        "gen_ai.output.type": "text",
        "gen_ai.request.max_tokens": 24,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stream": False,
        "gen_ai.usage.input_tokens": whole["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": whole["usage"]["completion_tokens"],
        "gen_ai.response.finish_reasons": [whole["choices"][0]["finish_reason"]],
    }
    assert plain(second.attributes)["gen_ai.request.stream"] is True
    assert recall.name == "search_memory" and not recall.parent_span_id and recall.trace_id != first.trace_id
    assert failed.status.code == Status.STATUS_CODE_ERROR and plain(failed.attributes)["error.type"] == "InputError"
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    spoken = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    for secret in (*CANARIES, spoken, whole["choices"][0]["message"]["content"]):
        assert len(secret) > 3 and secret.encode() not in sent


async def test_a_collector_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Stuck:
        force_flush = staticmethod(released.wait)

    pytest.importorskip("opentelemetry.trace")
    monkeypatch.setattr(tracing.api.trace, "get_tracer_provider", Stuck)
    monkeypatch.setattr(tracing, "_FLUSH_SECONDS", 0.01)
    try:
        await tracing.flush()
    finally:
        released.set()
