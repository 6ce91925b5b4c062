"""What Open Responses (openresponses.org, 2026-04-24) requires of a response and of the events of a stream."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class Citation(Strict):
    type: Literal["url_citation"]
    url: str
    title: str
    start_index: int
    end_index: int


class InputText(Strict):
    type: Literal["input_text"]
    text: str


class OutputText(Strict):
    type: Literal["output_text"]
    text: str
    annotations: list[Citation]
    logprobs: list[Any]


Part = Annotated[InputText | OutputText, Field(discriminator="type")]
Status = Literal["in_progress", "completed", "incomplete"]


class Message(Strict):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["user", "assistant", "system", "developer"]
    content: list[Part]


class FunctionCall(Strict):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class FunctionCallOutput(Strict):
    type: Literal["function_call_output"]
    id: str
    call_id: str
    output: str
    status: Status


Item = Annotated[Message | FunctionCall | FunctionCallOutput, Field(discriminator="type")]


class Tool(Strict):
    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class Format(Strict):
    type: Literal["text", "json_object", "json_schema"]


class Text(Strict):
    format: Format


class Cached(Strict):
    cached_tokens: int


class Reasoned(Strict):
    reasoning_tokens: int


class Usage(Strict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: Cached
    output_tokens_details: Reasoned


class Reason(Strict):
    reason: str


class Failure(Strict):
    code: str
    message: str


class Response(Strict):
    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    incomplete_details: Reason | None
    model: str
    previous_response_id: str | None
    instructions: str | None
    output: list[Item]
    error: Failure | None
    tools: list[Tool]
    tool_choice: str | dict[str, Any]
    truncation: Literal["auto", "disabled"]
    parallel_tool_calls: bool
    text: Text
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    temperature: float
    reasoning: None
    usage: Usage | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    store: bool
    background: bool
    service_tier: str
    metadata: dict[str, str]
    safety_identifier: str | None
    prompt_cache_key: str | None


class Numbered(Strict):
    sequence_number: int


class Snapshot(Numbered):
    type: Literal[
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.cancelled",  # not of Open Responses
    ]
    response: Response


class OfItem(Numbered):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: Item


class OfPart(Numbered):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int
    content_index: int
    part: Part


class TextDelta(Numbered):
    type: Literal["response.output_text.delta"]
    item_id: str
    output_index: int
    content_index: int
    delta: str


class TextDone(Numbered):
    type: Literal["response.output_text.done"]
    item_id: str
    output_index: int
    content_index: int
    text: str


class AnnotationAdded(Numbered):
    type: Literal["response.output_text.annotation.added"]
    item_id: str
    output_index: int
    content_index: int
    annotation_index: int
    annotation: Citation


class ArgumentsDelta(Numbered):
    type: Literal["response.function_call_arguments.delta"]
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Numbered):
    type: Literal["response.function_call_arguments.done"]
    item_id: str
    output_index: int
    arguments: str


class Broken(Numbered):
    type: Literal["error"]
    code: str
    message: str
    param: None


Event = Annotated[
    Snapshot | Broken | OfItem | OfPart | TextDelta | TextDone | AnnotationAdded | ArgumentsDelta | ArgumentsDone,
    Field(discriminator="type"),
]
_EVENT: TypeAdapter[Any] = TypeAdapter(Event)


def events_of(answer: httpx.Response, first: int = 0) -> list[dict[str, Any]]:
    """Read the events of a stream as the public suite does: lines that end in a line feed alone, `[DONE]` last.

    Args:
        answer: a stream.
        first: number of its first event.
    """
    events, name = [], ""
    lines = answer.text.split("\n")
    assert [line for line in lines if line][-1] == "data: [DONE]"
    for line in lines:
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:") and line[5:].strip() != "[DONE]":
            event = json.loads(line[5:])
            assert event["type"] == name
            _EVENT.validate_python(event)
            events.append(event)
        assert not line.endswith("\r")
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    return events
