"""vLLM in this process as the writer of answers: views are given as embeddings, tokens come back. Knows no memory."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Collection, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..engine.decoding import Decoding
from ..engine.writing import Choice
from ..errors import AnswererError, InputError, MissingDependencyError
from .embeddings import check_room, checked

if TYPE_CHECKING:
    from typing_extensions import Self


class VLLMEngine:
    """vLLM with the weights of a model that reads here, for `HMTModel.with_writer`. Answers in several threads share its steps.

    A script that makes one has to be guarded by `if __name__ == "__main__":`, because vLLM starts processes.

    Args:
        folder: as `hmt export` writes it.
        **options: of `vllm.AsyncEngineArgs`, such as dtype, max_model_len or gpu_memory_utilization.

    Raises:
        MissingDependencyError: vLLM is not installed.
        AnswererError: it does not start.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise MissingDependencyError(f"this needs {error.name}. Run: pip install 'hmt-memory[vllm]'") from error
        self._vllm, self._folder = vllm, str(folder)
        given = {"skip_tokenizer_init": True, "disable_log_stats": True, **options}
        arguments = vllm.AsyncEngineArgs(model=self._folder, enable_prompt_embeds=True, **given)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._numbers = itertools.count()
        try:
            self._engine = asyncio.run_coroutine_threadsafe(_started(vllm, arguments), self._loop).result()
        except Exception as error:  # whatever vLLM raises
            self._stop()
            raise AnswererError(f"vLLM does not start with {self._folder}: {error}. Its log says more.") from error
        config = self._engine.model_config
        self._width, self._limit = int(config.get_hidden_size()), int(config.max_model_len)

    def __repr__(self) -> str:
        return f"vLLM with {self._folder}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def width(self) -> int:
        """The size of an input embedding."""
        return self._width

    def write(
        self, embeddings: Tensor, decoding: Decoding, *, end_ids: Collection[int], most: int, least: int = 0
    ) -> Generator[Choice]:
        """Write tokens, as `Writer` says.

        Args:
            embeddings: as there, like the rest.
            decoding: of which the repetition penalty counts the answer's own words only, since the last view.
            end_ids: tokens that end an answer.
            most: how many, at most.
            least: how many come before an end token.
        """
        given = checked(embeddings, self._width)
        check_room(len(given), most, self._limit)
        try:
            sampling = self._sampling(decoding, end_ids, most, least)
        except ValueError as error:
            raise InputError(f"vLLM refuses the call: {error}") from error
        written: queue.SimpleQueue[Choice | BaseException | None] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._pump(given, sampling, written), self._loop)
        try:
            while (choice := written.get()) is not None:
                if isinstance(choice, BaseException):
                    raise AnswererError(f"vLLM breaks off: {choice}. Its log says more.") from choice
                yield choice
        finally:
            work.cancel()

    def _sampling(self, decoding: Decoding, end_ids: Collection[int], most: int, least: int) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=most,
            min_tokens=least,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            repetition_penalty=decoding.repetition_penalty,
            seed=decoding.seed,
            logprobs=decoding.logprobs,
            ignore_eos=True,  # the ends are ours
            stop_token_ids=sorted(end_ids),
            detokenize=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.DELTA,
        )

    async def _pump(self, embeddings: Tensor, sampling: Any, written: queue.SimpleQueue[Any]) -> None:
        """Put what the engine writes into a queue; cancelled, the engine stops."""
        try:
            prompt = {"prompt_embeds": embeddings}
            async for output in self._engine.generate(prompt, sampling, f"hmt-{next(self._numbers)}"):
                part = output.outputs[0]
                for place, token in enumerate(part.token_ids):
                    told = None if part.logprobs is None else part.logprobs[place]
                    logprobs = None if told is None else {number: entry.logprob for number, entry in told.items()}
                    written.put(Choice(token, logprobs))
        except Exception as error:
            written.put(error)
        finally:
            written.put(None)

    def close(self) -> None:
        """Stop vLLM and its processes."""
        if self._loop.is_closed():
            return
        self._engine.shutdown()
        self._engine = None  # whatever it does at the end of its life it does now
        self._stop()

    def _stop(self) -> None:
        asyncio.run_coroutine_threadsafe(_without_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _started(vllm: Any, arguments: Any) -> Any:
    return vllm.AsyncLLMEngine.from_engine_args(arguments)  # inside the loop that it works in


async def _without_others() -> None:
    """Cancel what else the loop does, and wait for it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
