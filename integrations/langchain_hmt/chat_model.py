"""`HMTChatModel`: a LangChain chat model with a memory without end, on a local model.

Without a session it is a chat model like any other. With one, named in a call's config, it is a lasting conversation: messages
that a framework sends again are recognised, and turns that scrolled away are recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import model_validator

from .engine import pieces
from .errors import HMTInvalidRequestError, as_langchain
from .messages import call_chunks, is_summary, to_dicts
from .other import Answered, tools_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from hmt_memory.assistant import HistoryMode


class HMTChatModel(Answered, BaseChatModel):
    """A chat model on a local model with HMT memory.

    >>> HMTChatModel(temperature=0.2).model_name
    'smollm2-135m-instruct'

    `invoke(messages, config={"configurable": {"session_id": "alice"}})` remembers the conversation in `store`. `thread_id`, a
    `session_id=` argument and the constructor's `session_id` do the same. The passages recalled for an answer are in
    `response_metadata["hmt"]`.

    `model` may also be another LangChain chat model, such as `ChatOllama(model=...)`: it answers, from notes of what `reader`
    has read. Options of a call, and tools, are then that model's.
    """

    streaming: bool = False
    """Whether `invoke` reports each piece of text to callbacks as it is written."""
    history_mode: Literal["auto", "incremental", "full"] = "auto"
    """The way a call's messages are compared with those of its session: `hmt_memory.assistant.reconcile`."""

    @model_validator(mode="after")
    def _set_hmt_memory_version(self) -> Self:
        from hmt_memory import __version__

        self._add_version("hmt-memory", __version__)
        return self

    @property
    def _llm_type(self) -> str:
        return "hmt-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        if self.answerer is not None:
            return self.answerer._get_ls_params(stop=stop, **kwargs)
        params = LangSmithParams(
            ls_provider="hmt",
            ls_model_type="chat",
            ls_model_name=str(kwargs.get("model") or self.model_name),
            ls_temperature=_number(kwargs.get("temperature"), self.temperature),
            ls_max_tokens=int(_number(kwargs.get("max_tokens"), self.max_tokens)),
        )
        if chosen := self.stops(stop):
            params["ls_stop"] = chosen
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        # Reading has no end; frameworks that trim or summarise at a share of this number need not.
        if self.answerer is not None:
            told = self.answerer.profile or ModelProfile()
            return told | ModelProfile(max_input_tokens=1 << 20, image_inputs=False, audio_inputs=False)
        return ModelProfile(
            max_input_tokens=1 << 20,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Count the tokens that the model's chat template makes of messages and tools."""
        described = [convert_to_openai_tool(tool) for tool in tools or ()]
        with as_langchain():
            return self.assistant().count_message_tokens(to_dicts(messages), described or None)

    def stream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, version: Any = "v2", **kwargs: Any
    ) -> Any:
        """Stream events of one call, in the session that it names.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            version: of the event format.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(config, kwargs) if version == "v3" else kwargs  # other versions call stream()
        return super().stream_events(input, config, version=version, **options)

    def astream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, *, version: Any = "v2", **kwargs: Any
    ) -> Any:
        """Stream events of one call, in the session that it names, off the event loop.

        Args:
            input: messages or a prompt.
            config: of the call; its `configurable` may name the session.
            version: of the event format.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(config, kwargs) if version == "v3" else kwargs
        return super().astream_events(input, config, version=version, **options)

    def generate(
        self, messages: list[list[BaseMessage]], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Answer several lists of messages. With a session, no cache answers.

        Args:
            messages: one list for each answer.
            stop: texts that end an answer.
            callbacks: of LangChain.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(None, kwargs)
        chosen = self.without_cache() if "session_id" in options or self.answerer is not None else self
        return BaseChatModel.generate(chosen, messages, stop, callbacks, **options)

    async def agenerate(
        self, messages: list[list[BaseMessage]], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Answer several lists of messages, off the event loop. With a session, no cache answers.

        Args:
            messages: one list for each answer.
            stop: texts that end an answer.
            callbacks: of LangChain.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(None, kwargs)
        chosen = self.without_cache() if "session_id" in options or self.answerer is not None else self
        return await BaseChatModel.agenerate(chosen, messages, stop, callbacks, **options)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, in_pieces=False, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        session_id: str | None = None,
        history_mode: HistoryMode | None = None,
        in_pieces: bool = True,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        other = self._of_answerer(self.stops(stop), kwargs, in_pieces=in_pieces)
        model = None if other else kwargs.pop("model", None)
        assistant = self.assistant(None if model in (None, self.model_name) else model)
        options = self._asked(stop, **kwargs) if other is None else other
        # A summary of earlier turns is not a turn: the session has the turns themselves.
        said = to_dicts(messages if session_id is None else [message for message in messages if not is_summary(message)])
        with as_langchain():
            options |= self.remembering(assistant, session_id, history_mode or self.history_mode)
            reply = assistant.reply(said, **options)
        for piece in pieces(reply):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        about = _about(reply, session_id)
        yield self._last(assistant.name, reply, about) if other is None else other["answerer"].last(reply, about)

    def _asked(
        self,
        stop: list[str] | None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the options of an answer of our own model."""
        schema = None if response_format is None else _schema_of(response_format)
        return {"tools": tools or None, "tool_choice": tool_choice, "schema": schema, **self.decoding(stop, kwargs)}

    def _last(self, model: str, reply: Any, about: dict[str, Any]) -> ChatGenerationChunk:
        """Make the chunk that has everything but text: merging adds numbers and joins strings, so only one may have it."""
        asked = reply.usage.view_tokens if "session_id" in about else reply.usage.prompt_tokens
        message = AIMessageChunk(
            content="",
            chunk_position="last",
            tool_call_chunks=call_chunks(reply.tool_calls),
            usage_metadata=UsageMetadata(
                input_tokens=asked,
                output_tokens=reply.usage.completion_tokens,
                total_tokens=asked + reply.usage.completion_tokens,
            ),
            response_metadata={
                "model_name": model,
                "model_provider": "hmt",
                "finish_reason": reply.finish_reason,
                "hmt": about,
            },
        )
        return ChatGenerationChunk(message=message)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call functions. Its calls are held to their schemas.

        Args:
            tools: functions, tools, pydantic classes, or schemas in OpenAI's form.
            tool_choice: None or "auto": the model decides; "none"; "any", "required" or True: it must call one; the name of
                a tool, or {"type": "function", "function": {"name": ...}}: it must call that tool.
            **kwargs: other options of the calls.

        Raises:
            HMTInvalidRequestError: the choice names no tool.
        """
        from hmt_memory.assistant import tool_choice_of

        if self.answerer is not None:
            return self.bind(**tools_of(self.answerer, tools, tool_choice=tool_choice, **kwargs))
        for name in ("strict", "parallel_tool_calls"):  # calls are always strict, and one at a time
            kwargs.pop(name, None)
        described = [convert_to_openai_tool(tool) for tool in tools]
        with as_langchain():
            tool_choice_of(tool_choice, described)
        return self.bind(tools=described, tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Make answers objects of a schema, which every answer is held to.

        Args:
            schema: a pydantic class, a TypedDict, a JSON schema with a title, or an OpenAI tool.
            method: "json_schema" and "json_mode" hold the answer to the schema; "function_calling" makes it a call.
            include_raw: give {"raw", "parsed", "parsing_error"} instead of raising if an answer cannot be parsed.
            strict: accepted for compatibility; answers are always strict.
            **kwargs: of LangChain's own method, with "function_calling" only.

        Raises:
            HMTInvalidRequestError: the method or an argument is unknown.
        """
        if method == "function_calling" or self.answerer is not None:
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        if method not in ("json_schema", "json_mode") or kwargs:
            raise HMTInvalidRequestError(
                f"unsupported: {kwargs or method!r}. Methods: json_schema, json_mode, function_calling."
            )
        wanted = convert_to_json_schema(schema)
        model = self.bind(
            response_format={"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}},
            ls_structured_output_format={"kwargs": {"method": method}, "schema": wanted},
        )
        parser: Any = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            chain: Runnable[LanguageModelInput, Any] = model | parser
            return chain
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _about(reply: Any, session_id: str | None) -> dict[str, Any]:
    """Return what is told of an answer in `response_metadata["hmt"]`."""
    recalled = [passage.to_dict() for passage in reply.recalled]
    about: dict[str, Any] = {"recalled": recalled, "view_tokens": reply.usage.view_tokens}
    return about if session_id is None else about | {"session_id": session_id, "message_ids": reply.message_ids}


def _number(given: Any, own: float) -> float:
    """Return the number that a call asks for, else the object's own. A value that is not a number is refused later."""
    return float(given) if isinstance(given, (int, float)) else float(own)


def _schema_of(response_format: Any) -> dict[str, Any]:
    """Return the JSON schema in OpenAI's `response_format`, in a plain schema, or of a class."""
    if isinstance(response_format, Mapping):
        if response_format.get("type") == "json_object":
            return {"type": "object"}
        held = response_format.get("json_schema", response_format)
        return dict(held.get("schema", held))
    return convert_to_json_schema(response_format)
