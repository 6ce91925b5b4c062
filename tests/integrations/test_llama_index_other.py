"""Any LlamaIndex LLM answers in a session: ours around it reads, recalls and remembers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.hmt import HMTLLM
from pydantic import BaseModel, Field
from told import READER

from hmt_memory import Assistant
from hmt_memory.retrieval.notes import HEADING

CALL = ToolCallBlock(tool_call_id="call-1", tool_name="add", tool_kwargs={"a": 1, "b": 2})


def add(a: int, b: int) -> int:
    """Add."""
    return a + b


class Hosted(FunctionCallingLLM):
    """An LLM of another package: it keeps what it is given, and says what it is told to."""

    model: str = "hosted-7b"
    answers: list[Any] = Field(default=["It is zanzibar."])
    seen: list[Any] = Field(default=[])

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.model, is_chat_model=True, is_function_calling_model=True, context_window=9000)

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        self.seen.append((list(messages), kwargs))
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        blocks = [TextBlock(text=answer)] if isinstance(answer, str) else [answer]
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
        counts = {"prompt_tokens": 70, "completion_tokens": 3}
        return ChatResponse(message=message, raw={"id": "r1", "finish_reason": "end"}, additional_kwargs=counts)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        whole, said = self.chat(messages, **kwargs), ""
        for word in (whole.message.content or "").split(" "):
            said += f"{word} "
            # Some integrations give the text so far and no delta.
            yield ChatResponse(message=ChatMessage(role="assistant", content=said), delta=None if said == "It " else f"{word} ")
        if "broken" in said:
            raise RuntimeError("the line is broken")
        yield whole.model_copy(update={"delta": ""})

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, tool_required: bool = False, **kwargs: Any
    ) -> Any:
        asked = [ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg] if user_msg else []
        names = [tool.metadata.name for tool in tools]
        return {"messages": [*(chat_history or []), *asked], "tools": names, "required": tool_required}

    def get_tool_calls_from_response(self, response: Any, error_on_no_tool_call: bool = True, **kwargs: Any) -> Any:
        return HMTLLM.get_tool_calls_from_response(HMTLLM(), response, error_on_no_tool_call)

    async def achat(self, *_: Any, **__: Any) -> Any: ...
    async def astream_chat(self, *_: Any, **__: Any) -> Any: ...
    def complete(self, *_: Any, **__: Any) -> Any: ...
    def stream_complete(self, *_: Any, **__: Any) -> Any: ...
    async def acomplete(self, *_: Any, **__: Any) -> Any: ...
    async def astream_complete(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture
def hosted() -> Hosted:
    return Hosted()


@pytest.fixture
def llm(hosted: Hosted, tmp_path: Path) -> HMTLLM:
    return HMTLLM(model=hosted, engine=Assistant(READER, store=tmp_path / "memories"), session_id="alice")  # type: ignore[arg-type]


def asked(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def contents(llm: HMTLLM) -> list[str]:
    return [message.content for message in llm.assistant().session("alice").messages()]


def test_it_is_given_the_system_prompt_turns_and_notes(llm: HMTLLM, hosted: Hosted) -> None:
    llm.chat([ChatMessage(role="system", content="Be brief."), *asked("The secret word is zanzibar.")])
    llm.chat(asked("Nothing else. " * 100))
    response = llm.chat(asked("Which secret word?"), num_ctx=9)
    given, options = hosted.seen[-1]
    assert [message.role.value for message in given] == ["system", "user"] and options == {"num_ctx": 9}
    assert given[1].content.startswith(HEADING) and given[1].content.endswith("is zanzibar.\n\nWhich secret word?")
    assert response.message.content == "It is zanzibar." == contents(llm)[-1] and contents(llm)[-2] == "Which secret word?"
    assert len(response.raw["hmt"]["message_ids"]) == 2 and response.raw["hmt"]["view_tokens"] == 70
    assert "The secret word is zanzibar." in [passage["text"] for passage in response.raw["hmt"]["recalled"]]
    assert response.raw["id"] == "r1" and response.raw["finish_reason"] == "end" and response.raw["model"] == "hosted-7b"
    assert response.additional_kwargs == {"prompt_tokens": 70, "completion_tokens": 3}


async def test_every_way_of_calling_remembers(llm: HMTLLM, hosted: Hosted) -> None:
    pieces = list(llm.stream_chat(asked("One?")))
    assert [one.delta for one in pieces] == ["It ", "is ", "zanzibar. ", ""] and "hmt" in pieces[-1].raw
    assert [one async for one in await llm.astream_chat(asked("Two?"))][-1].message.content == "It is zanzibar. "
    assert (await llm.achat(asked("Three?"))).message.content == llm.complete("Four?").text == "It is zanzibar."
    assert contents(llm)[::2] == ["One?", "Two?", "Three?", "Four?"]
    llm.chat(asked("Five?"), session_id="bob")
    assert llm.assistant().store.sessions() == ["alice", "bob"]
    hosted.seen.clear()
    plain = llm.model_copy(update={"session_id": None}).chat(asked("Six?"))
    assert hosted.seen[-1][0] == asked("Six?") and "message_ids" not in plain.raw["hmt"] and "Six?" not in contents(llm)


def test_an_answer_that_is_left_or_fails_leaves_nothing(llm: HMTLLM, hosted: Hosted) -> None:
    stream = llm.stream_chat(asked("Which?"))
    assert next(stream).delta == "It "
    stream.close()  # type: ignore[attr-defined]
    hosted.answers = ["The line is broken"]
    with pytest.raises(RuntimeError, match="broken"):
        list(llm.stream_chat(asked("Which?")))
    hosted.answers = [RuntimeError("no route")]
    with pytest.raises(RuntimeError, match="no route"):
        llm.chat(asked("Which?"))
    assert contents(llm) == []


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_tools_are_the_llm_s_own(llm: HMTLLM, hosted: Hosted) -> None:
    hosted.answers = [CALL, "Three."]
    tool = FunctionTool.from_defaults(add)
    response = llm.chat_with_tools([tool], "1 + 2?", tool_required=True)
    assert hosted.seen[-1][1] == {"tools": ["add"], "required": True}
    assert [(one.tool_id, one.tool_kwargs) for one in llm.get_tool_calls_from_response(response)] == [
        ("call-1", {"a": 1, "b": 2})
    ]
    result = ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "call-1"})
    assert llm.chat([*asked("1 + 2?"), response.message, result]).message.content == "Three."
    assert hosted.seen[-1][0] == [*asked("1 + 2?"), response.message, result]
    hosted.seen.clear()
    said = await FunctionAgent(tools=[tool], llm=llm.model_copy(update={"session_id": "agent"})).run("1 + 2?")
    assert str(said).strip() == "Three."

    class Sum(BaseModel):
        a: int
        b: int

    hosted.seen.clear()
    hosted.answers = [ToolCallBlock(tool_call_id="c", tool_name="Sum", tool_kwargs={"a": 1, "b": 2})]
    assert llm.structured_predict(Sum, PromptTemplate("1 and 2")) == Sum(a=1, b=2)


def test_an_llm_without_tools(tmp_path: Path) -> None:
    mock = HMTLLM(model=MockLLM(max_tokens=3), engine=Assistant(READER, store=tmp_path), session_id="alice")  # type: ignore[arg-type]
    assert not mock.metadata.is_function_calling_model and mock.metadata.is_chat_model
    assert mock.chat(asked("a b c d e")).message.content and list(mock.stream_chat(asked("a b c d e")))[-1].message.content
    assert len(contents(mock)) == 4
    with pytest.raises(ValueError, match="takes no tools"):
        mock.chat_with_tools([FunctionTool.from_defaults(add)], "1 + 2?")


@pytest.mark.slow
def test_what_it_is_and_what_cannot_be(llm: HMTLLM, hosted: Hosted, plain: str, tmp_path: Path) -> None:
    assert llm.metadata.context_window == 9000 and llm.metadata.model_name == "hosted-7b"
    wide = HMTLLM(model=hosted, context_window=5000)  # type: ignore[arg-type]
    assert wide.metadata.context_window == 5000 and wide.assistant().name == "smollm2-135m-instruct"
    given: dict[str, Any] = {"model": hosted, "reader": plain, "store": tmp_path, "dtype": "float32", "device": "cpu"}
    named = HMTLLM(**given, session_id="alice")
    assert not named.assistant().is_loaded and pickle.loads(pickle.dumps(named)).assistant() is named.assistant()
    assert HMTLLM(**given).assistant() is named.assistant()
    named.chat(asked("Hello."))
    assert named.assistant().session("alice").made_by().parts["backbone"]["name"] == plain  # type: ignore[union-attr]
    for model in (llm, 7):
        with pytest.raises(ValueError, match="name of a local model, or a LlamaIndex LLM"):
            HMTLLM(model=model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"belongs to the model that answers: Hosted\(temperature="):
        HMTLLM(model=hosted, temperature=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Name another reader"):
        HMTLLM(model=hosted, reader="same").chat(asked("Hi"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="formatted prompt"):
        llm.complete("<s>Hi", formatted=True)
    code = (
        "import sys; from llama_index.core.llms.mock import MockLLM; from llama_index.llms.hmt import HMTLLM;"
        "HMTLLM(model=MockLLM()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
