"""Another LangChain chat model as the one that answers, from what a reader has read. Knows its messages and its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.messages.utils import convert_to_messages
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableBinding
from pydantic import model_validator

from hmt_memory.assistant import DEFAULT_MODEL

from .engine import Decoder, Decoding, Sessioned
from .errors import HMTInvalidRequestError
from .messages import text_of

if TYPE_CHECKING:
    from hmt_memory import Assistant
    from hmt_memory.assistant import Answer, Ending


class Answered(Decoder):
    """Fields of a chat model that another LangChain chat model may answer for, given as `model`: a reader reads for it."""

    answerer: BaseChatModel | None = None
    """The LangChain chat model that was given as `model`, and answers."""

    @model_validator(mode="before")
    @classmethod
    def _take_a_chat_model(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        model = values.get("model", values.get("model_name"))
        if model is None or isinstance(model, str):
            return values
        if not isinstance(model, BaseChatModel) or isinstance(model, Answered):
            raise HMTInvalidRequestError(
                f"model is the name of a local model, or a LangChain chat model that answers, not {type(model).__name__}. For "
                f"another {cls.__name__} pass its engine=; bind options to this one instead of to that model."
            )
        for name, field in Decoding.model_fields.items():
            if name != "stop_sequences" and values.get(name, field.default) != field.default:
                raise HMTInvalidRequestError(f"{name} belongs to the model that answers: {type(model).__name__}({name}=...).")
        rest = {name: value for name, value in values.items() if name not in ("model", "model_name")}
        return {**rest, "model_name": name_of(model), "answerer": model}

    def view(self) -> dict[str, Any]:
        """Return the fields of `HMTConfig` that are not left to the model that reads; another that answers has its own."""
        return super().view() if self.answerer is None else Sessioned.view(self)

    def _of_answerer(self, stop: Sequence[str], options: dict[str, Any], *, in_pieces: bool) -> dict[str, Any] | None:
        """Return the options of `Assistant.reply` by which another chat model answers; None if there is none.

        Args:
            stop: texts that end the answer.
            options: of the call, as that model takes them; `namespace` is taken out.
            in_pieces: whether to ask for pieces.
        """
        if self.answerer is None:
            return None
        from hmt_memory import ViewConfig

        whose = options.pop("namespace", None) or self.namespace or self._own.key
        view = ViewConfig(recent_tokens=self.recent_tokens, note_tokens=self.replay_tokens, pinned_tokens=self.pinned_tokens)
        speaker = Speaker(self.answerer, stop, options, streaming=in_pieces)
        return {"answerer": speaker, "view": view, "namespace": whose}

    def _named(self) -> dict[str, Any]:
        named = super()._named()
        if self.answerer is None:
            return named
        if self.reader == "same":
            raise HMTInvalidRequestError('reader="same" needs a model that runs here. Name another reader, or leave it out.')
        return {**named, "model_name": self.reader or DEFAULT_MODEL, "reader": self.reader and "same"}

    def _told_by(self, engine: Assistant) -> dict[str, Any]:
        told = super()._told_by(engine)
        return told if self.answerer is None else {**told, "reader": engine._reader.settings.model}

    def _is_of(self, engine: Assistant | None) -> bool:
        if self.answerer is None or engine is None:
            return super()._is_of(engine)
        told = {**super()._told_by(engine), "reader": self.reader and "same"}
        own = self._named() | {"store": self.store}
        return engine._reader is engine._weights and own in (told, {**told, "store": None})


def name_of(model: BaseChatModel) -> str:
    """Return the name of a chat model, as it calls itself; else that of its class."""
    given = (getattr(model, name, None) for name in ("model_name", "model"))
    return next((name for name in given if isinstance(name, str) and name), type(model).__name__)


def tools_of(model: BaseChatModel, tools: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Return the options of a call by which a chat model is given tools, as its own `bind_tools` writes them.

    Args:
        model: the chat model.
        tools: as of `bind_tools`.
        **options: of `bind_tools`.

    Raises:
        HMTInvalidRequestError: it takes no tools, or makes another object of itself for them.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        bound = model.bind_tools(tools, **given)
    except NotImplementedError as error:
        raise HMTInvalidRequestError(f"{type(model).__name__} takes no tools. Answer with a model that does.") from error
    if not isinstance(bound, RunnableBinding) or bound.bound is not model:
        raise HMTInvalidRequestError(f"the tools of {type(model).__name__} cannot be passed through. Use it without a session.")
    return dict(bound.kwargs)


class Speaker:
    """A LangChain chat model that answers one call in a session: `hmt_memory.assistant.ChatModel`.

    The call is one run, that of our own model: callbacks hear of every piece and of the tokens once.

    Args:
        model: the chat model.
        stop: texts that end the answer.
        options: of the call, as the model takes them.
        streaming: whether to ask for pieces.
    """

    def __init__(self, model: BaseChatModel, stop: Sequence[str], options: Mapping[str, Any], *, streaming: bool) -> None:
        self._model, self._stop, self._options = model, list(stop) or None, dict(options)
        self._streaming = streaming
        self.message = AIMessageChunk(content="")  # what it has said so far

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str | Ending]:
        """Answer messages, piece by piece.

        Args:
            messages: those that the session shows.
            **options: none; those of the call are this object's.
        """
        if options:
            raise HMTInvalidRequestError(f"give {', '.join(options)} to {type(self._model).__name__} itself.")
        given = convert_to_messages([dict(message) for message in messages])
        for number, chunk in enumerate(self._chunks(given)):
            self.message = chunk if number == 0 else self.message + chunk
            if text := text_of(chunk.content):
                yield text
        yield self._ending()

    def _chunks(self, messages: list[BaseMessage]) -> Iterator[AIMessageChunk]:
        model = self._model
        if model.rate_limiter is not None:
            model.rate_limiter.acquire(blocking=True)
        if self._streaming and model._should_stream(async_api=False, stream=True, **self._options):
            for piece in model._stream(messages, stop=self._stop, **self._options):
                yield _chunk(piece.message, piece.generation_info or {})
            return
        result = model._generate(messages, stop=self._stop, **self._options)
        first = result.generations[0]
        yield _chunk(first.message, {**(result.llm_output or {}), **(first.generation_info or {})})

    def _ending(self) -> Ending:
        from hmt_memory import ToolCall
        from hmt_memory.assistant import Ending

        calls = [ToolCall(call["name"], call["args"], call["id"] or "") for call in self.message.tool_calls]
        usage, about = self.message.usage_metadata, self.message.response_metadata
        told = (about.get(name) for name in ("finish_reason", "done_reason", "stop_reason"))
        reason = next((str(reason) for reason in told if reason), "tool_calls" if calls else "stop")
        return Ending(reason, calls, *((usage["input_tokens"], usage["output_tokens"]) if usage else ()))

    def last(self, reply: Answer, about: Mapping[str, Any]) -> ChatGenerationChunk:
        """Make the chunk that has everything but the text.

        Args:
            reply: the whole answer.
            about: what to tell of the session.
        """
        said = self.message
        told = {"model_name": name_of(self._model), "finish_reason": reply.finish_reason}
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                additional_kwargs=said.additional_kwargs,
                tool_call_chunks=said.tool_call_chunks,
                usage_metadata=said.usage_metadata,
                response_metadata={**told, **said.response_metadata, "hmt": dict(about)},
            )
        )


def _chunk(message: BaseMessage, about: Mapping[str, Any]) -> AIMessageChunk:
    """Return a message, or a piece of one, as a piece."""
    if not isinstance(message, AIMessageChunk):
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        failed = message.invalid_tool_calls if isinstance(message, AIMessage) else []
        written: list[tuple[str | None, str | None, str | None]]
        written = [(call["name"], json.dumps(call["args"], ensure_ascii=False), call["id"]) for call in calls]
        written += [(call["name"], call["args"], call["id"]) for call in failed]
        message = AIMessageChunk(
            content=message.content,
            additional_kwargs=message.additional_kwargs,
            response_metadata=message.response_metadata,
            usage_metadata=getattr(message, "usage_metadata", None),
            tool_call_chunks=[
                tool_call_chunk(name=name, args=args, id=call_id, index=index)
                for index, (name, args, call_id) in enumerate(written)
            ],
        )
    return message.model_copy(update={"response_metadata": {**about, **message.response_metadata}})
