"""`HMTMemoryMiddleware`: HMT memory around any chat model of a `create_agent` agent, also one whose weights nobody has.

When a run begins, what its session remembers of the question is recalled; it is shown to the model for that run and never
becomes part of the conversation. The question is remembered then, the answer when the run ends.
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
    """What one middleware knows of a run."""

    recalled: list[dict[str, Any]]  # segment, text and weight of each passage
    asked: str | None  # id of the last message that the run began with


def _merged(before: dict[str, Run] | None, after: dict[str, Run] | None) -> dict[str, Run]:
    return {**(before or {}), **(after or {})}


class HMTMemoryState(AgentState[Any]):
    """The agent's state, and this run by the names of the middlewares; the last annotation is LangGraph's reducer."""

    hmt_runs: NotRequired[Annotated[dict[str, Run], PrivateStateAttr, _merged]]


class HMTMemoryMiddleware(AgentMiddleware[HMTMemoryState, Any, Any]):
    """Recalls into, and remembers around, any chat model.

    Args:
        session_id: of runs that name none. session_key: `(runtime, configurable) -> name`, asked first; subagents share their
            parent's thread, so give them another.
        k: passages recalled. name: of this middleware, where an agent has several.
        options: fields of the other classes, such as store, model and adapter.

    The session is that of `session_key`, the run's `context.session_id`, its configurable `session_id` or `thread_id`, or
    `session_id`; without any, nothing is recalled or remembered. Do not put it around an `HMTChatModel` that finds the same
    session: both would recall.
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
        """Unique in an agent."""
        return self._name

    # --- before -----------------------------------------------------------------------------------------------------

    def before_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Recall for what the user said last, and remember it."""
        return self._begin(state["messages"], self._session(runtime))

    async def abefore_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """As `before_agent`, off the event loop."""
        return await run_in_executor(None, self._begin, state["messages"], self._session(runtime))

    def _begin(self, messages: list[AnyMessage], session: str | None) -> dict[str, Any] | None:
        if session is None:
            return None
        with as_langchain():
            recalled = self._recall(messages, session)
            # What was asked is remembered now: a summary may take its place before the run ends.
            self._assistant.add(session, _said(messages))
        run = Run(recalled=recalled, asked=messages[-1].id if messages else None)
        return {"hmt_runs": {self._name: run}}

    def _recall(self, messages: list[AnyMessage], session: str) -> list[dict[str, Any]]:
        question = next((one.text for one in reversed(messages) if isinstance(one, HumanMessage)), "")
        found = self._assistant.recall_hidden(question, [one.text for one in messages], session=session, top_k=self._k)
        return [{"segment": one.segment, "text": one.text, "weight": one.weight} for one in found]

    # --- around -----------------------------------------------------------------------------------------------------

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]) -> Any:
        """Show the model what was recalled."""
        return handler(self._remembering(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        """As `wrap_model_call`."""
        return await handler(self._remembering(request))

    def _remembering(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        run = self._run(request.state)
        if run is None or not run["recalled"]:
            return request
        from hmt_memory.retrieval.ranking import quoted

        content: list[Any] = [*(request.system_message.content_blocks if request.system_message else ())]
        content.append({"type": "text", "text": quoted([one["text"] for one in run["recalled"]])})
        return request.override(system_message=SystemMessage(content=content))

    # --- after ------------------------------------------------------------------------------------------------------

    def after_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Remember what was answered."""
        self._end(state, self._session(runtime))
        return None

    async def aafter_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """As `after_agent`, off the event loop."""
        await run_in_executor(None, self._end, state, self._session(runtime))
        return None

    def _end(self, state: HMTMemoryState, session: str | None) -> None:
        run, messages = self._run(state), state["messages"]
        if session is None or run is None:
            return
        asked = next((at for at, one in enumerate(messages) if one.id == run["asked"]), -1)
        with as_langchain():
            # Whatever else was said, this is new: it is not compared with what was said before.
            self._assistant.add(session, _said(messages[asked + 1 :]), history="incremental")

    def _run(self, state: Any) -> Run | None:
        found: Run | None = (state.get("hmt_runs") or {}).get(self._name)
        return found

    # --- whose ------------------------------------------------------------------------------------------------------

    def _session(self, runtime: Any) -> str | None:
        configurable: Mapping[str, Any] = get_config().get("configurable") or {}
        named = self._session_key(runtime, configurable) if self._session_key is not None else None
        context = getattr(runtime, "context", None)
        of_context = context.get("session_id") if isinstance(context, Mapping) else getattr(context, "session_id", None)
        found = (named, of_context, first_named(configurable, SESSION_KEYS), self._session_id)
        return next((session_name(one) for one in found if one not in (None, "")), None)


def _said(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """What people and the model said in words; calls, results, pictures and summaries are left out."""
    said = [one for one in messages if isinstance(one, (HumanMessage, AIMessage)) and one.text.strip() and not is_summary(one)]
    roles = ("user" if isinstance(one, HumanMessage) else "assistant" for one in said)
    return [{"role": role, "content": one.text, "id": one.id} for role, one in zip(roles, said, strict=True)]
