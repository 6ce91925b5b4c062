"""`HMTLLM`: text in, text out, for chains that use no messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import Field

from .engine import Engine, pieces, stops
from .errors import as_langchain
from .messages import recalled_as_json


class HMTLLM(Engine, BaseLLM):
    """A text model on a local model with HMT memory. With a session, prompts and answers are remembered, one after the other.

    A model with a chat template is asked in it, as a user would.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    stop_sequences: list[str] | None = Field(default=None, alias="stop")
    seed: int | None = None

    @property
    def _llm_type(self) -> str:
        return "hmt-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model_name", "adapter", "dtype", "temperature", "top_p", "max_tokens", "stop_sequences", "seed")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider="hmt", ls_model_type="llm", ls_model_name=self.model_name)

    def get_token_ids(self, text: str) -> list[int]:
        """The tokens of a text, by the model's own tokenizer."""
        return self.custom_get_token_ids(text) if self.custom_get_token_ids else self.assistant().token_ids(text)

    # --- the session of a call --------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any) -> str:
        return super().invoke(input, config, stop=stop, **self.with_session(config, kwargs))

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> str:
        return await super().ainvoke(input, config, stop=stop, **self.with_session(config, kwargs))

    def stream(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> Iterator[str]:
        return super().stream(input, config, stop=stop, **self.with_session(config, kwargs))

    def astream(
        self, input: Any, config: RunnableConfig | None = None, *, stop: list[str] | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        return super().astream(input, config, stop=stop, **self.with_session(config, kwargs))

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        return Runnable.batch(self, inputs, config, **kwargs)  # the base's own would drop each item's session

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        return await Runnable.abatch(self, inputs, config, **kwargs)

    def generate(self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any) -> LLMResult:
        return BaseLLM.generate(self._without_cache(kwargs), prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        return await BaseLLM.agenerate(self._without_cache(kwargs), prompts, stop, callbacks, **kwargs)

    def _without_cache(self, options: dict[str, Any]) -> HMTLLM:
        """The base's cache looks at no argument of a call, so it is left out where a call has any."""
        own = set(options) - {"tags", "metadata", "run_name", "run_id"}
        self.assistant()  # made before the copy, so that both have it
        return self.model_copy(update={"cache": False}) if own else self

    # --- answering --------------------------------------------------------------------------------------------------

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        found = []
        for prompt in prompts:
            *chunks, last = self._stream(prompt, stop, **kwargs)
            text = "".join(chunk.text for chunk in chunks) + last.text
            found.append([Generation(text=text, generation_info=last.generation_info)])
        return LLMResult(generations=found, llm_output={"model_name": self.model_name})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        session_id: str | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        options: dict[str, Any] = {
            "stop": stops(stop, self.stop_sequences),
            "max_new_tokens": kwargs.get("max_tokens") or self.max_tokens,
            "min_new_tokens": 1,
            **{name: kwargs.get(name, getattr(self, name)) for name in ("temperature", "top_p", "seed")},
        }
        if session_id is not None:
            options |= {"session": session_id, "history": "incremental"}
        with as_langchain():
            reply = self.assistant().reply({"role": "user", "content": prompt}, **options)
        for piece in pieces(reply):
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        about = {"recalled": recalled_as_json(reply.recalled), "completion_tokens": reply.usage.completion_tokens}
        yield GenerationChunk(text="", generation_info={"finish_reason": reply.finish_reason, "hmt": about})
