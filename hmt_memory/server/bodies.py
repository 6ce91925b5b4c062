"""The bodies of OpenAI's Chat Completions and Models, as far as they mean something here. Knows fields; no model, no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import InputError
from .description import shows

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_STOPS = 4  # as OpenAI has it
_TEXT = ("text", "input_text", "output_text", "refusal")


class Open(BaseModel):
    """A body in which fields that mean nothing here are let pass: clients send many."""

    model_config = ConfigDict(extra="ignore")


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Function(Open):
    """The function of a call."""

    name: str
    arguments: str


class Call(Open):
    """A call of a function, in a message of the assistant's."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(Open):
    """A message of a conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the message with its content as one text.

        Raises:
            InputError: a part is no text.
        """
        own = self.model_dump(exclude_none=True, exclude={"content"})
        return own | {"content": text_of(self.content)}


def text_of(content: str | Sequence[Part] | None) -> str | None:
    """Join the text parts of a content.

    Raises:
        InputError: a part is no text.
    """
    if content is None or isinstance(content, str):
        return content
    other = next((part.type for part in content if part.type not in _TEXT), None)
    if other is not None:
        raise InputError(f"a part of type {other!r} cannot be read: this memory holds text. Send text parts.")
    return "\n".join(part.text or str(getattr(part, "refusal", "")) for part in content)


class ResponseFormat(Open):
    """The form that an answer has to have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None

    def schema_of(self) -> Mapping[str, Any] | None:
        """Return the JSON schema that the answer is held to; None: it is text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.get("schema", self.json_schema)


class StreamOptions(Open):
    """The options of an answer that is streamed."""

    include_usage: bool | None = False


class Asked(Open):
    """The body of a call that clients write whole, with nulls where they want nothing else than usual."""

    @field_validator("*", mode="before")
    @classmethod
    def _null(cls, value: Any, info: Any) -> Any:
        """Let a null stand for the usual value, as clients send it."""
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True) if value is None and not field.is_required() else value


class Answered(Asked):
    """The fields that say how an answer is to be written."""

    usual: ClassVar[dict[str, Any]] = {"frequency_penalty": 0.0, "presence_penalty": 0.0}  # and no other value is possible
    limits: ClassVar[tuple[str, ...]]  # the fields with the tokens of an answer at most; the first that is given counts

    model: str | None = None
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    stream: bool = False
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, usual in self.usual.items():
            if getattr(self, name) != usual:
                raise ValueError(f"{name}={getattr(self, name)} cannot be given: leave it out. Only {usual} is possible here.")
        return self

    @property
    def most(self) -> int | None:
        """The tokens of an answer at most; None: nothing is said."""
        return next((most for name in self.limits if (most := getattr(self, name)) is not None), None)

    def requested(self) -> dict[str, Any]:
        """Return what is asked for without a word of what is said, by the names that traces have for it."""
        named = {"max_tokens": self.most, "temperature": self.temperature, "top_p": self.top_p}
        return {**named, "seed": self.seed, "stream": self.stream}

    def options(self, usual: int, longest: int) -> dict[str, Any]:
        """Return the options of `Assistant.reply` that this asks for.

        Args:
            usual: tokens of an answer at most, where nothing is said.
            longest: the same, whatever is said.
        """
        most = min(self.most or usual, longest)
        return {"max_new_tokens": most, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}


class Completed(Answered):
    """The fields that Chat Completions and Completions share."""

    usual: ClassVar[dict[str, Any]] = {**Answered.usual, "n": 1}
    limits = ("max_completion_tokens", "max_tokens")

    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    n: int = 1
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _possible_in_text(self) -> Self:
        if self.logit_bias:
            raise ValueError("logit_bias cannot be given: leave it out.")
        if isinstance(self.stop, list) and len(self.stop) > _MOST_STOPS:
            raise ValueError(f"stop has {len(self.stop)} strings, more than {_MOST_STOPS}.")
        return self

    @property
    def with_usage(self) -> bool:
        """Whether the last chunk of a stream has the counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, usual: int, longest: int) -> dict[str, Any]:
        """Return the options of `Assistant.reply` that this asks for; of a text, the fields of `Decoding`."""
        return super().options(usual, longest) | ({"stop": self.stop} if self.stop else {})


class ChatRequest(Completed):
    """The body of a call of Chat Completions."""

    model_config = shows(
        {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "My sister Ida grows roses."}],
            "max_tokens": 64,
            "metadata": {"session_id": "alice"},
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @model_validator(mode="after")
    def _tellable(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true.")
        if self.logprobs and self.tools:
            raise ValueError("logprobs cannot be given with tools, whose calls are no text: leave one of them out.")
        return self

    def options(self, usual: int, longest: int) -> dict[str, Any]:
        """Return the options of `Assistant.reply` that this asks for."""
        return {
            **super().options(usual, longest),
            "tools": self.tools or None,
            "tool_choice": self.tool_choice if self.tools else None,
            "schema": None if self.response_format is None else self.response_format.schema_of(),
            **({"logprobs": self.top_logprobs or 0} if self.logprobs else {}),
        }
