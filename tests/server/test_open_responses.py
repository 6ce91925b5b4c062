"""The public compliance tests of Open Responses, ported: the same calls, the same demands. Pictures are refused."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from open_responses import Response, events_of


def said(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


WEATHER = {
    "input": [said("user", "What's the weather like in San Francisco?")],
    "tools": [
        {
            "type": "function",
            "name": "get_weather",
            "description": "Get the current weather for a location",
            "parameters": {
                "type": "object",
                "properties": {"location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"}},
                "required": ["location"],
            },
        }
    ],
}
CALL = '<tool_call>{"name":"get_weather","arguments":{"location":"San Francisco, CA"}}</tool_call>'
TALKS = {
    "basic-response": [said("user", "Say hello in exactly 3 words.")],
    "streaming-response": [said("user", "Count from 1 to 5.")],
    "system-prompt": [said("system", "You are a pirate. Always respond in pirate speak."), said("user", "Say hello.")],
    "multi-turn": [
        said("user", "My name is Alice."),
        said("assistant", "Hello Alice! Nice to meet you. How can I help you today?"),
        said("user", "What is my name?"),
    ],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TALKS)
def test_a_talk_is_answered(http: TestClient, saying: Any, name: str, stream: bool) -> None:
    answer = http.post("/v1/responses", json={"model": saying.name, "input": TALKS[name], "stream": stream})
    assert answer.status_code == 200
    body = events_of(answer)[-1]["response"] if stream else answer.json()
    assert Response.model_validate(body).status == "completed" and body["output"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_is_called(http: TestClient, saying: Any, stream: bool) -> None:
    saying.says = CALL
    answer = http.post("/v1/responses", json={"model": saying.name, **WEATHER, "stream": stream})
    assert answer.status_code == 200
    events = events_of(answer) if stream else []
    body = events[-1]["response"] if stream else answer.json()
    (call,) = Response.model_validate(body).output
    assert call.type == "function_call" and call.arguments == '{"location": "San Francisco, CA"}'
    if stream:
        kinds = [event["type"] for event in events]
        assert kinds[2:] == [
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert events[2]["item"]["type"] == events[5]["item"]["type"] == "function_call"


def test_a_picture_is_refused(http: TestClient, saying: Any) -> None:
    parts = [
        {"type": "input_text", "text": "What do you see in this image? Answer in one sentence."},
        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="},
    ]
    answer = http.post("/v1/responses", json={"model": saying.name, "input": [said("user", parts)]})
    error = answer.json()["error"]
    assert answer.status_code == 400 and "'input_image' cannot be read" in error["message"]
    assert error["type"] == "invalid_request_error" and saying.store.sessions() == []
