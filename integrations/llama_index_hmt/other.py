"""Another LlamaIndex LLM as the one that answers, from what a reader has read. Knows its messages and its responses."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from pydantic import model_validator

from hmt_memory.assistant import DEFAULT_MODEL

from .engine import HMTEngine
from .messages import from_dict, to_dicts

if TYPE_CHECKING:
    from hmt_memory import Assistant
    from hmt_memory.assistant import Answer, Ending

_OWN = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 256, "stop": None, "seed": None}  # of a model that runs here


class Answered(HMTEngine):
    """Fields of an LLM that another LlamaIndex LLM may answer for, given as `model`: a reader reads for it."""

    answerer: Any = None
    """The LlamaIndex LLM that was given as `model`, and answers."""

    @model_validator(mode="before")
    @classmethod
    def _take_an_llm(cls, values: Any) -> Any:
        model = values.get("model", values.get("model_name")) if isinstance(values, Mapping) else None
        if model is None or isinstance(model, str):
            return values
        if not isinstance(model, LLM) or isinstance(model, HMTEngine):
            raise ValueError(
                f"model is the name of a local model, or a LlamaIndex LLM that answers, not {type(model).__name__}. For "
                f"another {cls.__name__} pass its engine=."
            )
        for name, usual in _OWN.items():
            if values.get(name, usual) != usual:
                raise ValueError(f"{name} belongs to the model that answers: {type(model).__name__}({name}=...).")
        rest = {name: value for name, value in values.items() if name not in ("model", "model_name")}
        return {**rest, "model_name": _name_of(model), "answerer": model}

    def _named(self) -> dict[str, Any]:
        named = super()._named()
        if self.answerer is None:
            return named
        if self.reader == "same":
            raise ValueError('reader="same" needs a model that runs here. Name another reader, or leave it out.')
        return {**named, "model": self.reader or DEFAULT_MODEL, "reader": self.reader and "same"}

    def _told_by(self, engine: Assistant) -> dict[str, Any]:
        told = super()._told_by(engine)
        return told if self.answerer is None else {**told, "model": self.model_name, "reader": engine._reader.settings.model}

    def _is_of(self, engine: Assistant) -> bool:
        if self.answerer is None:
            return super()._is_of(engine)
        told = {**super()._told_by(engine), "reader": self.reader and "same"}
        return engine._reader is engine._weights and (self._named(), self._folder()) == (told, engine.folder)

    def _speaker(self, options: dict[str, Any], *, in_pieces: bool) -> Speaker | None:
        """Return what answers a call with these options; None if it is our own model."""
        return None if self.answerer is None else Speaker(self.answerer, options, in_pieces=in_pieces)

    def _metadata(self, context_window: int | None) -> LLMMetadata:
        """Return the properties of the other LLM.

        A prompt has to fit into its window; a conversation need not, but engines know no difference.
        """
        own: LLMMetadata = self.answerer.metadata
        changes = {"model_name": self.model_name, "is_chat_model": True}
        return own.model_copy(update=changes | ({} if context_window is None else {"context_window": context_window}))

    def _caller(self) -> FunctionCallingLLM:
        """Return the other LLM as one that calls functions.

        Raises:
            ValueError: it does not.
        """
        if not isinstance(self.answerer, FunctionCallingLLM):
            raise ValueError(f"{type(self.answerer).__name__} takes no tools. Answer with an LLM that does.")
        return self.answerer

    def __getstate__(self) -> dict[Any, Any]:
        pickle.dumps(self.answerer)  # left out silently if it could not be pickled, and its name taken for a local model's
        return super().__getstate__()


class Speaker:
    """A LlamaIndex LLM that answers one call in a session: `hmt_memory.assistant.ChatModel`.

    Args:
        llm: the LLM.
        options: of the call, as the LLM takes them.
        in_pieces: whether to ask for pieces.
    """

    def __init__(self, llm: LLM, options: Mapping[str, Any], *, in_pieces: bool) -> None:
        self._llm, self._options, self._in_pieces = llm, dict(options), in_pieces
        self.response = ChatResponse(message=ChatMessage())  # the latest

    def answer(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[str | Ending]:
        """Answer messages, piece by piece.

        Args:
            messages: those that the session shows.
            **options: none; those of the call are this object's.
        """
        if options:
            raise ValueError(f"give {', '.join(options)} to {type(self._llm).__name__} itself.")
        given = [from_dict(message) for message in messages]
        if not self._in_pieces:
            self.response = self._llm.chat(given, **self._options)
            yield self.response.message.content or ""
        else:
            said = ""
            for response in self._llm.stream_chat(given, **self._options):
                self.response = response
                piece = response.delta
                if piece is None:
                    piece = (response.message.content or "").removeprefix(said)
                said += piece
                yield piece
        yield self._ending()

    def _ending(self) -> Ending:
        from hmt_memory import ToolCall
        from hmt_memory.assistant import Ending, called

        calls = to_dicts([self.response.message], text_only=True)[0].get("tool_calls", ())
        made = [ToolCall(*called(call), call["id"]) for call in calls]
        usage = self.response.additional_kwargs
        return Ending("tool_calls" if made else "stop", made, usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def whole(self, reply: Answer, told: Mapping[str, Any], *, delta: str | None = None) -> ChatResponse:
        """Return the whole answer as a response.

        Args:
            reply: the answer.
            told: what our own model tells of an answer; what the LLM tells itself counts more.
            delta: of the response.
        """
        said = self.response.message
        others = [block for block in said.blocks if not isinstance(block, TextBlock)]
        texts = (
            [TextBlock(text=reply.text)] if reply.text or not any(isinstance(block, ToolCallBlock) for block in others) else []
        )
        raw = self.response.raw
        own = dict(raw) if isinstance(raw, Mapping) else {} if raw is None else {"response": raw}
        return ChatResponse(
            message=ChatMessage(role=said.role, blocks=[*texts, *others], additional_kwargs=said.additional_kwargs),
            delta=delta,
            raw={**told, **own, "hmt": told["hmt"]},
            additional_kwargs=self.response.additional_kwargs,
        )


def _name_of(llm: LLM) -> str:
    given = getattr(llm, "model", None)
    return given if isinstance(given, str) and given else llm.metadata.model_name
