"""`HMTLLM`: text in, text out, for chains that use no messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables import Runnable

from .engine import Decoder, pieces
from .errors import as_langchain


class HMTLLM(Decoder, BaseLLM):
    """A text model on a local model with HMT memory. With a session, prompts and answers are remembered in order.

    A model with a chat template gets each prompt in it, as a user's turn.
    """

    @property
    def _llm_type(self) -> str:
        return "hmt-llm"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider="hmt", ls_model_type="llm", ls_model_name=self.model_name)

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        """Answer several prompts, each in the session that its config names.

        Args:
            inputs: prompts.
            config: of all calls, or one for each.
            **kwargs: options of the calls.
        """
        return Runnable.batch(self, inputs, config, **kwargs)  # the base's own would drop each item's session

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[str]:
        """Answer several prompts, each in the session that its config names, off the event loop.

        Args:
            inputs: prompts.
            config: of all calls, or one for each.
            **kwargs: options of the calls.
        """
        return await Runnable.abatch(self, inputs, config, **kwargs)

    def generate(self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any) -> LLMResult:
        """Answer several prompts. With a session, no cache answers.

        Args:
            prompts: texts.
            stop: texts that end an answer.
            callbacks: of LangChain.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(None, kwargs)
        return BaseLLM.generate(self._chosen(options), prompts, stop, callbacks, **options)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Answer several prompts, off the event loop. With a session, no cache answers.

        Args:
            prompts: texts.
            stop: texts that end an answer.
            callbacks: of LangChain.
            **kwargs: other options of LangChain and of the call.
        """
        options = self.with_session(None, kwargs)
        return await BaseLLM.agenerate(self._chosen(options), prompts, stop, callbacks, **options)

    def _chosen(self, options: dict[str, Any]) -> HMTLLM:
        """Return a copy without the cache if the call has options of its own, which the base's cache ignores."""
        return self.without_cache() if set(options) - {"tags", "metadata", "run_name", "run_id"} else self

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        generations = []
        for prompt in prompts:
            *chunks, last = self._stream(prompt, stop, **kwargs)
            text = "".join(chunk.text for chunk in chunks) + last.text
            generations.append([Generation(text=text, generation_info=last.generation_info)])
        return LLMResult(generations=generations, llm_output={"model_name": self.model_name})

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        session_id: str | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        options = self.decoding(stop, kwargs)
        with as_langchain():
            options |= self.remembering(self.assistant(), session_id, "incremental")
            reply = self.assistant().reply({"role": "user", "content": prompt}, **options)
        for piece in pieces(reply):
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        about = {
            "recalled": [passage.to_dict() for passage in reply.recalled],
            "completion_tokens": reply.usage.completion_tokens,
        }
        yield GenerationChunk(text="", generation_info={"finish_reason": reply.finish_reason, "hmt": about})
