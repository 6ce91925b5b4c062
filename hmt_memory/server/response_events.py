"""A response as it is streamed: events in the order that Open Responses asks for. Knows bodies; no answer, no store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sse_starlette import ServerSentEvent

from .items import output_text

_ANNOTATION = "response.output_text.annotation.added"
_ENDS = ("response.content_part.done", "response.output_item.done", "response.completed", "response.incomplete")


class Events:
    """The events of one response.

    Args:
        begun: its body, as it is before anything is written.
        message: id of the message that its text is in.
    """

    def __init__(self, begun: Mapping[str, Any], message: str) -> None:
        self._begun, self._message = begun, message
        self._sent, self._opened = 0, False

    def queued(self) -> Iterator[ServerSentEvent]:
        """Yield that the response is there, and waits for its turn."""
        waiting = {**self._begun, "status": "queued"}
        yield self._event("response.created", response=waiting)
        yield self._event("response.queued", response=waiting)

    def opening(self) -> Iterator[ServerSentEvent]:
        """Yield that the response is there, unless that is said already, and being written."""
        if not self._sent:
            yield self._event("response.created", response=self._begun)
        yield self._event("response.in_progress", response=self._begun)

    def piece(self, text: str) -> Iterator[ServerSentEvent]:
        """Yield a piece of text; before the first, the item that it is in."""
        if not self._opened:
            self._opened = True
            yield from self._opened_message()
        if text:
            yield self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def closing(self, whole: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        """Yield the end of each item, calls of functions whole, and the response."""
        for place, item in enumerate(whole["output"]):
            if item["type"] == "message":
                yield from self._message_end(item)
            else:
                yield from self._call(place, item)
        yield self._event(f"response.{whole['status']}", response=whole)

    def again(self, whole: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        """Yield all events of a response that is whole already."""
        yield from self.opening()
        for item in whole["output"]:
            if item["type"] == "message":
                yield from self.piece(item["content"][0]["text"])
        yield from self.closing(whole)

    def failure(self, message: str, code: str) -> ServerSentEvent:
        """Return that the response failed.

        Args:
            message: what is wrong, and what to do.
            code: a name for programs.
        """
        failed = {**self._begun, "status": "failed", "error": {"code": code, "message": message}}
        return self._event("response.failed", response=failed)

    def cancelled(self) -> ServerSentEvent:
        """Return that the response was cancelled."""
        return self._event("response.cancelled", response={**self._begun, "status": "cancelled"})

    def deleted(self) -> ServerSentEvent:
        """Return that the response was deleted, and nothing that was said."""
        message = "the response was deleted while it was written."
        return self._event("error", code="response_not_found", message=message, param=None)

    def _opened_message(self) -> Iterator[ServerSentEvent]:
        item = {"type": "message", "id": self._message, "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._part_event("response.content_part.added", part=output_text(""))

    def _message_end(self, item: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        (part,) = item["content"]
        yield from self.piece("")  # an answer of no words has an item, too
        for number, annotation in enumerate(part["annotations"]):
            yield self._part_event(_ANNOTATION, annotation_index=number, annotation=annotation)
        yield self._part_event("response.output_text.done", text=part["text"], logprobs=[])
        yield self._part_event("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _call(self, place: int, item: Mapping[str, Any]) -> Iterator[ServerSentEvent]:
        about = {"item_id": item["id"], "output_index": place}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=place, item=begun)
        yield self._event("response.function_call_arguments.delta", **about, delta=item["arguments"])
        yield self._event("response.function_call_arguments.done", **about, name=item["name"], arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=place, item=item)

    def _part_event(self, kind: str, **about: Any) -> ServerSentEvent:
        return self._event(kind, item_id=self._message, output_index=0, content_index=0, **about)

    def _event(self, kind: str, **about: Any) -> ServerSentEvent:
        data = {"type": kind, "sequence_number": self._sent, **about}
        self._sent += 1
        return ServerSentEvent(json.dumps(data), event=kind, sep="\n")


def without_recalled(event: ServerSentEvent) -> ServerSentEvent | None:
    """Return an event without what was recalled; None: it tells of nothing else."""
    if event.event == _ANNOTATION:
        return None
    if event.event not in _ENDS:
        return event
    data = json.loads(event.data or "")
    response = data.get("response", {})
    items = [*response.get("output", ()), *([data["item"]] if "item" in data else ())]
    for part in [*([data["part"]] if "part" in data else ()), *(part for item in items for part in item.get("content", ()))]:
        part["annotations"] = []
    if "hmt" in response:
        response["hmt"]["recalled"] = []
    return ServerSentEvent(json.dumps(data), event=event.event, sep="\n")
