"""`HMTLLM`: a LlamaIndex LLM with a memory without end, on a local model; and the base of the memory and retriever classes.

Without a session it is an LLM like any other, whose prompt may be of any length. With one it is a lasting conversation:
messages that an engine sends again are recognised, and turns that scrolled away are recalled. Importing this loads neither
torch nor weights.
"""

from __future__ import annotations

from llama_index_hmt.engine import off_the_loop  # first: it says what to install
from llama_index_hmt.messages import to_dicts
from llama_index_hmt.other import Answered

# isort: split
import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field, PrivateAttr

from hmt_memory.assistant import Namespace
from hmt_memory.errors import BudgetError

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

    from hmt_memory import Generation
    from hmt_memory.assistant import Answer
    from llama_index_hmt.other import Speaker


class HMTLLM(Answered, FunctionCallingLLM):
    """A local model with HMT memory.

    >>> HMTLLM(temperature=0.2).metadata.model_name
    'smollm2-135m-instruct'

    Options of a call: those below, `tools`, `tool_choice`, `schema` (of a JSON answer), and all others of `Session.reply`.
    The passages recalled for an answer are in `response.raw["hmt"]`. With another LLM as `model`, options are that one's.
    """

    session_id: str | None = None
    """The session that remembers the calls; a call's own `session_id=` goes before it."""
    history_mode: Literal["auto", "incremental", "full"] = "auto"
    """The way a call's messages are compared with those of its session: `hmt_memory.assistant.reconcile`."""
    temperature: float = 0.0
    """The randomness in the choice of words; 0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 256
    """The longest answer, in tokens."""
    stop: list[str] | None = None
    seed: int | None = None
    """The seed of sampling: the same seed gives the same words."""
    context_window: int = Field(default=1 << 20, ge=1024)
    """The length that engines may pass. Any length can be read; a smaller number makes them trim, split and refine."""
    namespace: str | None = None
    """The owner of calls without a session: a prompt that was read makes the next one faster in the same namespace only.

    A call may name one as well. None: a namespace of this object and its copies in this process alone.
    """
    _own: Namespace = PrivateAttr(default_factory=Namespace)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in written form."""
        return "HMTLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The properties that engines ask for, known without loading the model."""
        if self.answerer is not None:
            return self._metadata(self.context_window if "context_window" in self.model_fields_set else None)
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation piece by piece; the last response has the calls and the counts."""
        return self._chat_responses(*self._reply(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, off the event loop."""
        return await asyncio.to_thread(self._chat, messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation piece by piece, off the event loop."""
        reply, speaker = await asyncio.to_thread(self._reply, messages, kwargs)
        return off_the_loop(self._chat_responses(reply, speaker))

    def _chat(self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any]) -> ChatResponse:
        reply, speaker = self._reply(messages, kwargs, in_pieces=False)
        return self._whole(reply.finish(), speaker)

    def _reply(
        self, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], *, in_pieces: bool = True
    ) -> tuple[Answer, Speaker | None]:
        """Return an answer that has not begun, and the other LLM that writes it, if there is one."""
        given = dict(kwargs)
        session, history = given.pop("session_id", None) or self.session_id, given.pop("history_mode", None)
        options = {
            "namespace": given.pop("namespace", None) or self.namespace or self._own.key,
            "view": given.pop("view", None),
        }
        speaker = self._speaker(given, in_pieces=in_pieces)
        options |= self.decoding(given) if speaker is None else {"answerer": speaker}
        if session is not None:
            options |= {"session": session, "history": history or self.history_mode}
        try:
            return self.assistant().reply(to_dicts(messages), **options), speaker
        except BudgetError as error:  # a ValueError, which LlamaIndex's synthesizers take for an empty answer
            raise RuntimeError(str(error)) from error

    def decoding(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a call, completed from the fields."""
        ours = {name: getattr(self, name) for name in ("stop", "temperature", "top_p", "seed")}
        options = {**ours, "min_new_tokens": 1, **given}
        most = options.pop("max_tokens", None)
        return options | {"max_new_tokens": self.max_tokens if most is None else most}

    def _chat_responses(self, reply: Answer, speaker: Speaker | None) -> ChatResponseGen:
        for piece in reply:
            yield ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=reply.text), delta=piece)
        yield self._whole(reply, speaker, delta="")

    def _whole(self, reply: Answer, speaker: Speaker | None, *, delta: str | None = None) -> ChatResponse:
        if speaker is not None:
            return speaker.whole(reply, self._raw(reply), delta=delta)
        calls = [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in reply.tool_calls
        ]
        texts = [TextBlock(text=reply.text)] if reply.text or not calls else []
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=[*texts, *calls])
        return ChatResponse(message=message, delta=delta, raw=self._raw(reply))

    def _raw(self, reply: Answer | Generation) -> dict[str, Any]:
        """Return counts and recalled passages. In a session, the view counts as the prompt, whatever the history."""
        stored = getattr(reply, "message_ids", None)
        asked = reply.usage.prompt_tokens if stored is None else reply.usage.view_tokens
        made = reply.usage.completion_tokens
        recalled = [passage.to_dict() for passage in getattr(reply, "recalled", ())]
        about: dict[str, Any] = {"recalled": recalled, "view_tokens": reply.usage.view_tokens}
        if stored is not None:
            about["message_ids"] = stored
        return {
            "model": self.model_name,
            "finish_reason": reply.finish_reason,
            "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
            "hmt": about,
        }

    # Prompts that LlamaIndex makes from templates may be about a conversation, but are not turns of it.

    def _aside(self) -> Any:
        return super(HMTLLM, self.model_copy(update={"session_id": None}))

    def predict(self, *args: Any, **kwargs: Any) -> str:
        """Predict as LlamaIndex does, outside the session."""
        return str(self._aside().predict(*args, **kwargs))

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Stream as LlamaIndex does, outside the session."""
        return self._aside().stream(*args, **kwargs)

    async def apredict(self, *args: Any, **kwargs: Any) -> str:
        """Predict as LlamaIndex does, outside the session."""
        return str(await self._aside().apredict(*args, **kwargs))

    async def astream(self, *args: Any, **kwargs: Any) -> Any:
        """Stream as LlamaIndex does, outside the session."""
        return await self._aside().astream(*args, **kwargs)

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict an object as LlamaIndex does, outside the session."""
        return self._aside().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict an object as LlamaIndex does, outside the session."""
        return await self._aside().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """Stream an object as LlamaIndex does, outside the session; it grows with every piece."""
        return self._aside().stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """Stream an object as LlamaIndex does, outside the session; it grows with every piece."""
        return await self._aside().astream_structured_predict(*args, **kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt as a user's turn, in which special tokens are plain text.

        Args:
            prompt: a text.
            formatted: continue the prompt as it stands, because a chat template has written it and its special tokens are
                meant. Never pass other people's text this way.
            **kwargs: options of the call.
        """
        return self._complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt piece by piece.

        Args:
            prompt: a text.
            formatted: as in `complete`.
            **kwargs: options of the call.
        """
        return self._completions(self._completion(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt, off the event loop.

        Args:
            prompt: a text.
            formatted: as in `complete`.
            **kwargs: options of the call.
        """
        return await asyncio.to_thread(self._complete, prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt piece by piece, off the event loop.

        Args:
            prompt: a text.
            formatted: as in `complete`.
            **kwargs: options of the call.
        """
        return off_the_loop(self._completions(await asyncio.to_thread(self._completion, prompt, formatted, kwargs)))

    def _complete(self, prompt: str, formatted: bool, kwargs: Mapping[str, Any]) -> CompletionResponse:
        reply = self._completion(prompt, formatted, kwargs, in_pieces=False).finish()
        return CompletionResponse(text=reply.text, raw=self._raw(reply))

    def _completion(
        self, prompt: str, formatted: bool, kwargs: Mapping[str, Any], *, in_pieces: bool = True
    ) -> Answer | Generation:
        if not formatted:
            system = [ChatMessage(role=MessageRole.SYSTEM, content=self.system_prompt)] if self.system_prompt else []
            asked = [*system, ChatMessage(role=MessageRole.USER, content=prompt)]
            return self._reply(asked, kwargs, in_pieces=in_pieces)[0]
        if self.answerer is not None:
            raise ValueError("a formatted prompt is for one template: pass it to the model that answers, or formatted=False.")
        options = self.decoding(kwargs)
        options.pop("namespace", None)
        if options.pop("session_id", None) or self.session_id:
            raise ValueError("a formatted prompt is no turn of a session. Pass formatted=False, or use a model without one.")
        return self.assistant().model.generate(prompt, literal=False, **options)

    def _completions(self, reply: Answer | Generation) -> CompletionResponseGen:
        for piece in reply:
            yield CompletionResponse(text=reply.text, delta=piece)
        yield CompletionResponse(text=reply.text, delta="", raw=self._raw(reply))

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if self.answerer is not None:
            return self._caller()._prepare_chat_with_tools_compat(
                tools, user_msg, chat_history, verbose, allow_parallel_tool_calls, tool_required, **_given(tool_choice, kwargs)
            )
        asked = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        choice = "required" if tool_choice is None and tool_required else tool_choice
        return {
            "messages": [*(chat_history or ()), *([] if asked is None else [asked])],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools] or None,
            "tool_choice": choice,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls in an answer.

        Args:
            response: the answer.
            error_on_no_tool_call: whether an answer without a call is an error.
            **kwargs: ignored.

        Raises:
            ValueError: there is no call, and `error_on_no_tool_call` is set.
        """
        if self.answerer is not None:
            return self._caller().get_tool_calls_from_response(response, error_on_no_tool_call, **kwargs)
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool. It said: {(response.message.content or '')[:200]!r}")
        return [_selected(call) for call in calls]

    # LlamaIndex streams objects by hoping that the model makes a call. An answer in JSON grows with every piece instead.

    def _structured_stream_call(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        if self.answerer is not None:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        stream = self.stream_chat(messages, schema=output_cls.model_json_schema(), **(llm_kwargs or {}))
        growing = _Growing(output_cls)
        return (growing.with_more(response) for response in stream)

    async def _structured_astream_call(self, output_cls: Any, prompt: Any, llm_kwargs: Any = None, **prompt_args: Any) -> Any:
        if self.answerer is not None:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        stream = await self.astream_chat(messages, schema=output_cls.model_json_schema(), **(llm_kwargs or {}))
        growing = _Growing(output_cls)
        return (growing.with_more(response) async for response in stream)


def _selected(call: ToolCallBlock) -> ToolSelection:
    arguments = call.tool_kwargs
    known = dict(json.loads(arguments)) if isinstance(arguments, str) else arguments
    return ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=known)


def _given(tool_choice: Any, options: dict[str, Any]) -> dict[str, Any]:
    return options if tool_choice is None else {"tool_choice": tool_choice, **options}


class _Growing:
    """An object whose JSON is still being written: its rest is guessed until it is whole."""

    def __init__(self, output_cls: Any) -> None:
        self._output_cls = output_cls
        self._latest: Any = None

    def with_more(self, response: ChatResponse) -> Any:
        """Return the object as far as it is written. Raises pydantic's ValidationError if the whole answer is not one."""
        from llama_index.core.program.utils import process_streaming_objects

        if response.raw is not None:  # the last
            return self._output_cls.model_validate_json(response.message.content or "")
        before = None if self._latest is None else [self._latest]
        self._latest = process_streaming_objects(response, self._output_cls, cur_objects=before)
        return self._latest
