"""vLLM's server as the writer of answers: views are sent as embeddings, tokens come back. Knows no memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..engine.decoding import Decoding
from ..engine.writing import Choice
from ..errors import AnswererError
from .connection import Connection
from .embeddings import check_room, checked, encoded

_TOKEN = "token_id:"  # before the number of a token


class VLLMServer:
    """A vLLM server with the weights of a model that reads here, for `HMTModel.with_writer`.

    It is started as `vllm serve FOLDER --enable-prompt-embeds` with a folder that `hmt export` writes. Such a server has to be
    open to nobody but its own callers: embeddings are loaded there as they come.

    Args:
        address: `http://host:port/v1`, with `#name` behind it where several models are served.
        model: the name of the model, if the address has none.
        hidden_size: the size of its input embeddings; None: as its folder says, if that is on this machine.
        api_key: None: $HMT_API_KEY.
        timeout: the seconds after which a server that says nothing is given up.
        http_client: an `httpx.Client` to call it by; None: a new one.

    Raises:
        MissingDependencyError: the client is not installed.
    """

    def __init__(
        self,
        address: str,
        model: str | None = None,
        *,
        hidden_size: int | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
        http_client: Any = None,
    ) -> None:
        self._connection = Connection(address, model, api_key=api_key, timeout=timeout, http_client=http_client)
        self._hidden_size = hidden_size

    def __repr__(self) -> str:
        return f"vLLM at {self._connection.url}"

    @cached_property
    def width(self) -> int | None:
        """The size of an input embedding: as given, or as the folder says that it serves; None: not known."""
        if self._hidden_size is not None:
            return self._hidden_size
        root = getattr(self._connection.card, "root", None)
        try:
            content = json.loads((Path(str(root)) / "config.json").read_text(encoding="utf-8"))
            return int(content["hidden_size"])
        except (OSError, ValueError, KeyError, TypeError):  # it lies elsewhere, or says something else
            return None

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
        sent, connection = checked(embeddings, self.width), self._connection
        limit = getattr(connection.card, "max_model_len", None)
        check_room(len(sent), most, limit if isinstance(limit, int) else None)
        body: dict[str, Any] = {
            "prompt_embeds": encoded(sent),
            "top_k": decoding.top_k,
            "repetition_penalty": decoding.repetition_penalty,
            "min_tokens": least,
            "ignore_eos": True,  # the ends are ours
            "stop_token_ids": sorted(end_ids),
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        body |= {name: value for name, value in (("seed", decoding.seed), ("logprobs", decoding.logprobs)) if value is not None}
        with connection.errors():
            stream = connection.client.completions.create(
                model=connection.model,
                prompt=None,
                stream=True,
                max_tokens=most,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                extra_body=body,
            )
            with stream:
                yield from _choices(stream)


def _choices(stream: Iterator[Any]) -> Generator[Choice]:
    last = None
    for chunk in stream:
        for choice in chunk.choices:
            tokens = getattr(choice, "token_ids", None)
            if tokens is None:
                raise AnswererError("the server does not tell the tokens that it writes. Use vLLM 0.10.2 or newer.")
            told = choice.logprobs
            for place, token in enumerate(tokens):
                last = token
                yield Choice(token, None if told is None else _logprobs(told, place, token))
            stop = getattr(choice, "stop_reason", None)
            if isinstance(stop, int) and stop != last:
                yield Choice(stop)


def _logprobs(told: Any, place: int, token: int) -> dict[int, float]:
    """Return log-probabilities by the numbers of tokens."""
    likeliest: Mapping[str, float] = ((told.top_logprobs or {}) and told.top_logprobs[place]) or {}
    numbers = {int(name.removeprefix(_TOKEN)): value for name, value in likeliest.items()}
    return numbers | {token: told.token_logprobs[place]}
