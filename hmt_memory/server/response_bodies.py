"""The bodies of Open Responses and OpenAI's Responses, as far as they mean something here. Knows fields; no model, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from typing_extensions import Self

from ..errors import InputError
from .bodies import Answered, Open, Part, ResponseFormat, text_of
from .description import shows

_ROLES = ("user", "assistant", "system", "developer")
_LEFT_OUT = ("reasoning",)  # items that a model here makes nothing of
REFERENCE = "item_reference"
Word = Annotated[str, StringConstraints(max_length=64)]
Metadata = Annotated[dict[Word, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=16)]


class Item(Open):
    """A message, a call of a function, what it has returned, or a reference to one of those."""

    type: str = "message"
    id: str | None = None
    role: str = ""
    content: str | list[Part] | None = None
    call_id: str | None = Field(default=None, min_length=1)
    name: str = ""
    arguments: str = "{}"
    output: str | list[Part] = ""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Let an id alone be a reference, as OpenAI does."""
        alone = (
            isinstance(given, Mapping) and given.get("type") is None and "id" in given and not {"role", "content"} & set(given)
        )
        return {**given, "type": REFERENCE} if alone else given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.type == "message" and (self.role not in _ROLES or self.content is None):
            raise ValueError(f"a message has a role, one of {', '.join(_ROLES)}, and a content.")
        if self.type == "function_call" and not (self.call_id and self.name):
            raise ValueError("a function_call has a call_id, a name and arguments.")
        if self.type == "function_call_output" and not self.call_id:
            raise ValueError("a function_call_output has the call_id of its function_call, and an output.")
        if self.type == REFERENCE and not self.id:
            raise ValueError("an item_reference has the id of an item.")
        return self


def _as_items(given: Any) -> Any:
    """Let a text stand for a message of the user's."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def messages_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return items as messages; calls of one answer stand in one message.

    Raises:
        InputError: an item or a part of it is of a kind that cannot be read.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        if item.type == "message":
            messages.append({"role": item.role, "content": text_of(item.content)})
        elif item.type == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", ()), call]
        elif item.type == "function_call_output":
            messages.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
        elif item.type not in _LEFT_OUT:
            raise InputError(
                f"an item of type {item.type!r} cannot be read: send messages, function_call, function_call_output and "
                f"{REFERENCE}."
            )
    return messages


class FunctionTool(Open):
    """A function that may be called."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _function(self) -> Self:
        if self.type != "function" or not self.name:
            raise ValueError(f"a tool of type {self.type!r} cannot be given: a function with a name can.")
        return self

    def in_chat(self) -> dict[str, Any]:
        """Return the function as Chat Completions has it."""
        own = self.model_dump(exclude={"type"}, exclude_none=True)
        return {"type": "function", "function": own}


class TextFormat(Open):
    """The form that an answer has to have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> Self:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("a format of type json_schema has a schema.")
        return self

    def schema_of(self) -> Mapping[str, Any] | None:
        """Return the JSON schema that the answer is held to; None: it is text."""
        return ResponseFormat(type=self.type, json_schema=self.schema_ and {"schema": self.schema_}).schema_of()

    def told(self) -> dict[str, Any]:
        """Return the form as an answer repeats it."""
        named = {"name": self.name, "description": self.description, "schema": self.schema_, "strict": bool(self.strict)}
        return {"type": self.type} | (named if self.type == "json_schema" else {})


class Text(Open):
    """The text of an answer."""

    format: TextFormat | None = None


class ConversationId(Open):
    """A conversation, named in an object."""

    id: str


class ResponseRequest(Answered):
    """The body of a call of Responses."""

    model_config = shows({"model": "smollm2-135m-instruct", "input": "My sister Ida grows roses.", "max_output_tokens": 64})
    usual: ClassVar[dict[str, Any]] = {**Answered.usual, "top_logprobs": 0}
    limits = ("max_output_tokens",)

    input: Annotated[list[Item], BeforeValidator(_as_items, json_schema_input_type=str | list[Item])] = Field(
        default_factory=list
    )
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    store: bool = True
    tools: list[FunctionTool] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: Text = Field(default_factory=Text)
    max_output_tokens: int | None = Field(default=None, ge=1)
    max_tool_calls: int | None = Field(default=None, ge=1)
    metadata: Metadata = Field(default_factory=dict)
    truncation: Literal["auto", "disabled"] = "disabled"
    background: bool = False
    top_logprobs: int = 0
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _one_past(self) -> Self:
        if self.previous_response_id is not None and self.conversation is not None:
            raise ValueError("previous_response_id and conversation exclude each other: give one of them.")
        return self

    @model_validator(mode="after")
    def _found_again(self) -> Self:
        if self.background and not self.store:
            raise ValueError("background=true needs store=true: or else the answer could not be found again.")
        return self

    @property
    def session(self) -> str | None:
        """The name of the conversation; None: none is named."""
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation

    def options(self, usual: int, longest: int) -> dict[str, Any]:
        """Return the options of `Assistant.reply` that this asks for."""
        tools, choice = self._chosen()
        return {
            **super().options(usual, longest),
            "tools": [tool.in_chat() for tool in tools] or None,
            "tool_choice": choice if tools else None,
            "schema": None if self.text.format is None else self.text.format.schema_of(),
        }

    def _chosen(self) -> tuple[list[FunctionTool], Any]:
        """Return the tools that may be called, and the choice among them."""
        choice = self.tool_choice
        if isinstance(choice, str) or choice.get("type") != "allowed_tools":
            return self.tools, choice
        allowed = [tool.get("name") for tool in choice.get("tools", ()) if isinstance(tool, Mapping)]
        tools = [tool for tool in self.tools if tool.name in allowed]
        if not tools:
            raise InputError("tool_choice allows no tool of this call. Name one of its tools.")
        return tools, choice.get("mode", "auto")

    def told(self) -> dict[str, Any]:
        """Return what an answer repeats of its call."""
        repeated = {"instructions", "previous_response_id", "store", "tool_choice", "parallel_tool_calls", "max_output_tokens"}
        repeated |= {"max_tool_calls", "metadata", "truncation", "background", "top_logprobs", "user", "safety_identifier"}
        repeated |= {"prompt_cache_key", "temperature", "top_p", "frequency_penalty", "presence_penalty"}
        tools = [tool.model_dump() for tool in self.tools]
        format_ = self.text.format or TextFormat()
        return {**self.model_dump(include=repeated), "tools": tools, "text": {"format": format_.told()}}
