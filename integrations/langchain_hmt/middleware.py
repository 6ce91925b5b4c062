"""`HMTMemoryMiddleware`: HMT memory around any chat model of a `create_agent` agent, also one whose weights nobody has.

Before an agent runs, what its session remembers of the question is recalled; it is shown to the model for that run and never
becomes part of the conversation. Afterwards what was said is remembered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables.config import run_in_executor
from langgraph.config import get_config
from typing_extensions import NotRequired

from .engine import Engine
from .messages import to_dicts

SessionKey = Callable[[Any, Mapping[str, Any]], str | None]


class HMTMemoryState(AgentState[Any]):
    """The agent's state, and what was recalled for this run."""

    hmt_recalled: NotRequired[Annotated[list[dict[str, Any]], PrivateStateAttr]]


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
        """Recall for what the user said last."""
        return self._recall(state["messages"], self._session(runtime))

    async def abefore_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """As `before_agent`, off the event loop."""
        return await run_in_executor(None, self._recall, state["messages"], self._session(runtime))

    def _recall(self, messages: list[AnyMessage], session: str | None) -> dict[str, Any] | None:
        question = next((one.text for one in reversed(messages) if isinstance(one, HumanMessage)), "")
        if session is None:
            return None
        known = self._assistant.has_session(session) and self._assistant.session(session).stats()["segments"]
        if not question.strip() or not known:
            return {"hmt_recalled": []}
        shown = {one.text.strip() for one in messages}
        found = self._assistant.recall(question, session=session, top_k=self._k + len(messages))
        hidden = [one for one in found if not all(message.content.strip() in shown for message in one.messages)]
        kept = [{"segment": one.segment, "text": one.text, "weight": one.weight} for one in hidden[: self._k]]
        return {"hmt_recalled": kept}

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
        recalled: list[dict[str, Any]] = request.state.get("hmt_recalled") or []  # type: ignore[assignment]
        if not recalled:
            return request
        text = "\n\n".join(
            ["Recalled from earlier:", *(one["text"] for one in sorted(recalled, key=lambda one: one["segment"]))]
        )
        before = list(request.system_message.content_blocks) if request.system_message else []
        return request.override(system_message=SystemMessage(content=[*before, {"type": "text", "text": text}]))  # type: ignore[list-item]

    # --- after ------------------------------------------------------------------------------------------------------

    def after_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """Remember what was said and is not remembered yet."""
        self._remember(state["messages"], self._session(runtime))
        return None

    async def aafter_agent(self, state: HMTMemoryState, runtime: Any) -> dict[str, Any] | None:
        """As `after_agent`, off the event loop."""
        await run_in_executor(None, self._remember, state["messages"], self._session(runtime))
        return None

    def _remember(self, messages: list[AnyMessage], session: str | None) -> None:
        said = [
            one
            for one in messages
            if isinstance(one, (HumanMessage, AIMessage))
            and one.text.strip()
            and one.additional_kwargs.get("lc_source") != "summarization"
        ]
        if session is not None and said:
            plain = [{**one, "tool_calls": None} for one in to_dicts(said)]
            self._assistant.add(session, [{k: v for k, v in one.items() if v is not None} for one in plain])

    # --- whose ------------------------------------------------------------------------------------------------------

    def _session(self, runtime: Any) -> str | None:
        configurable: Mapping[str, Any] = get_config().get("configurable") or {}
        named = self._session_key(runtime, configurable) if self._session_key is not None else None
        context = getattr(runtime, "context", None)
        of_context = context.get("session_id") if isinstance(context, Mapping) else getattr(context, "session_id", None)
        found = named or of_context or configurable.get("session_id") or configurable.get("thread_id") or self._session_id
        return None if found is None else str(found)
