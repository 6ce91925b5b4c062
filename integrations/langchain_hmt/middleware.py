"""`HMTMemoryMiddleware`: HMT memory around any chat model of a `create_agent` agent, even one whose weights are not public.

When a run begins, the passages of its session that fit the question are recalled. They are shown to the model for that run and
never become part of the conversation. The question is remembered then, the answer when the run ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables.config import run_in_executor
from langgraph.config import get_config
from typing_extensions import NotRequired, TypedDict

from .checks import session_name
from .engine import SESSION_KEYS, Engine, first_named
from .errors import as_langchain
from .messages import is_summary

SessionKey = Callable[[Any, Mapping[str, Any]], str | None]


class Run(TypedDict):
    """The state of a run for one middleware."""

    recalled: list[dict[str, Any]]  # segment, text and weight of each passage
    asked: str | None  # id of the last message that the run began with


def _merged(before: dict[str, Run] | None, after: dict[str, Run] | None) -> dict[str, Run]:
    return {**(before or {}), **(after or {})}


class HMTMemoryState(AgentState[Any]):
    """The agent's state, and the runs by the names of the middlewares; the last annotation is LangGraph's reducer."""

    hmt_runs: NotRequired[Annotated[dict[str, Run], PrivateStateAttr, _merged]]


class HMTMemoryMiddleware(AgentMiddleware[HMTMemoryState, Any, Any]):
    """Memory around any chat model: recalls before a run, remembers after it.

    Args:
        session_id: of runs that name none.
        session_key: `(runtime, configurable) -> name`, asked first; subagents share their parent's thread, so give them
            another.
        k: passages recalled.
        name: of this middleware, if an agent has several.
        options: fields of the other classes, such as store, model and adapter.

    The session comes from `session_key`, the run's `context.session_id`, its configurable `session_id` or `thread_id`, or
    `session_id`, in this order; without any, nothing is recalled or remembered. Do not put it around an `HMTChatModel` that
    finds the same session: both would recall.
    """

    state_schema = HMTMemoryState

    def __init__(
        self,
        *,
        session_id: str | None = None,
        session_key: SessionKey | None = None,
        k: int = 4,
        name: str = "HMTMemoryMiddleware",
        **options: Any,
    ) -> None:
        super().__init__()
        self._session_id, self._session_key, self._k, self._name = session_id, session_key, k, name
        self._assistant = Engine(**options).assistant()

    @property
    def name(self) -> str:
        """The name of this middleware, unique in an agent."""
        return self._name

    def before_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Recall for the user's last message, and remember it."""
        return self._begin(state["messages"], self._session(runtime))

    async def abefore_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Recall for the user's last message, and remember it, off the event loop."""
        return await run_in_executor(None, self._begin, state["messages"], self._session(runtime))

    def _begin(self, messages: list[AnyMessage], session: str | None) -> dict[str, Any] | None:
        if session is None:
            return None
        with as_langchain():
            recalled = self._recall(messages, session)
            # The question is remembered now: a summary may replace it before the run ends.
            self._assistant.add(session, _said(messages))
        run = Run(recalled=recalled, asked=messages[-1].id if messages else None)
        return {"hmt_runs": {self._name: run}}

    def _recall(self, messages: list[AnyMessage], session: str) -> list[dict[str, Any]]:
        question = next((message.text for message in reversed(messages) if isinstance(message, HumanMessage)), "")
        passages = self._assistant.recall_hidden(
            question, [message.text for message in messages], session=session, top_k=self._k
        )
        return [
            {"segment": passage.segment, "text": passage.text, "quote": passage.quote(), "weight": passage.weight}
            for passage in passages
        ]

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]) -> Any:
        """Show the model the recalled passages."""
        return handler(self._remembering(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        """Show the model the recalled passages."""
        return await handler(self._remembering(request))

    def _remembering(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        run = self._run(request.state)
        if run is None or not run["recalled"]:
            return request
        from hmt_memory.assistant import quoted

        content: list[Any] = [*(request.system_message.content_blocks if request.system_message else ())]
        content.append({"type": "text", "text": quoted([passage["quote"] for passage in run["recalled"]])})
        return request.override(system_message=SystemMessage(content=content))

    def after_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Remember the answer."""
        self._end(state, self._session(runtime))
        return None

    async def aafter_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Remember the answer, off the event loop."""
        await run_in_executor(None, self._end, state, self._session(runtime))
        return None

    def _end(self, state: HMTMemoryState, session: str | None) -> None:
        run, messages = self._run(state), state["messages"]
        if session is None or run is None:
            return
        asked = next((place for place, message in enumerate(messages) if message.id == run["asked"]), -1)
        with as_langchain():
            # These messages are new: they are not compared with earlier ones.
            self._assistant.add(session, _said(messages[asked + 1 :]), history="incremental")

    def _run(self, state: Any) -> Run | None:
        run: Run | None = (state.get("hmt_runs") or {}).get(self._name)
        return run

    def _session(self, runtime: Any) -> str | None:
        configurable: Mapping[str, Any] = get_config().get("configurable") or {}
        named = self._session_key(runtime, configurable) if self._session_key is not None else None
        context = getattr(runtime, "context", None)
        of_context = context.get("session_id") if isinstance(context, Mapping) else getattr(context, "session_id", None)
        names = (named, of_context, first_named(configurable, SESSION_KEYS), self._session_id)
        return next((session_name(name) for name in names if name not in (None, "")), None)


def _said(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Return what people and the model said in words, without calls, results, pictures and summaries."""
    said = [
        message
        for message in messages
        if isinstance(message, (HumanMessage, AIMessage)) and message.text.strip() and not is_summary(message)
    ]
    roles = ("user" if isinstance(message, HumanMessage) else "assistant" for message in said)
    return [{"role": role, "content": message.text, "id": message.id} for role, message in zip(roles, said, strict=True)]
