"""Completions: texts that the model continues, as OpenAI's older protocol has it. Stateless: what lasts is a conversation."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import model_validator

from ..assistant.continuing import continued
from ..engine.generate import Usage
from ..errors import InputError
from .bodies import Completed
from .calls import Call, Event, Written
from .chat import SESSION_HEADERS, usage_of
from .description import shows

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from typing_extensions import Self

    from ..assistant import Assistant
    from .settings import Settings

_USUAL = 16  # tokens of an answer where nothing is said, as OpenAI has it
_MOST_PROMPTS = 64


class CompletionRequest(Completed):
    """The body of a call of Completions."""

    model_config = shows({"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 16})
    usual: ClassVar[dict[str, Any]] = {**Completed.usual, "best_of": 1}

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    suffix: str | None = None
    best_of: int = 1
    logprobs: int | None = None

    @model_validator(mode="after")
    def _text(self) -> Self:
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not given or len(given) > _MOST_PROMPTS:
            raise ValueError(f"prompt has {len(given)} texts. Send 1 to {_MOST_PROMPTS}.")
        if not all(isinstance(text, str) for text in given):
            raise ValueError("prompt has token ids, of whichever tokenizer. Send text.")
        if not all(given):
            raise ValueError("a prompt is empty: there is nothing to continue. Send text.")
        if self.suffix:
            raise ValueError("suffix cannot be given: a text is continued at its end. Leave it out.")
        if self.logprobs is not None:
            raise ValueError("logprobs cannot be given: leave it out.")
        return self

    @property
    def texts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else [text for text in self.prompt if isinstance(text, str)]


class Piece(NamedTuple):
    """A piece of one of several texts."""

    number: int  # of the text
    text: str
    finish_reason: str | None  # once it is whole


class Continuation(Iterator[Piece]):
    """The continuations of several texts, one after the other, as an iterator of pieces.

    Args:
        assistant: whose model continues them.
        texts: the prompts.
        echo: whether each is given out before its continuation.
        options: fields of `Decoding`.
    """

    def __init__(self, assistant: Assistant, texts: list[str], *, echo: bool, options: dict[str, Any]) -> None:
        self._prompts, self._echo = texts, echo
        self._begun = (continued(assistant, text, **options) for text in texts)
        self._writing = next(self._begun)  # what is wrong with the first shows at once
        self.whole = [Piece(0, "", None)]  # the texts so far
        self.finish_reason: str | None = None  # once all are finished
        self.usage = Usage(0, 0, 0)

    @property
    def is_whole(self) -> bool:
        """Whether all texts are finished."""
        return self.finish_reason is not None

    def __next__(self) -> Piece:
        if self.finish_reason is not None:
            raise StopIteration
        if self.whole[-1].finish_reason is not None:
            self._writing = next(self._begun)
            self.whole.append(Piece(len(self.whole), "", None))
        number, before, _ = self.whole[-1]
        if self._echo and not before:
            piece = Piece(number, self._prompts[number], None)
        else:
            text = next(self._writing, "")
            piece = Piece(number, text, self._writing.finish_reason)
        self.whole[-1] = piece._replace(text=before + piece.text)
        if piece.finish_reason is not None:
            self.usage = _sum(self.usage, self._writing.usage)
            self.finish_reason = piece.finish_reason if len(self.whole) == len(self._prompts) else None
        return piece


class CompletionCall(Call[CompletionRequest]):
    """A call of Completions.

    Args:
        assistant: whose model continues the texts.
        settings: what is allowed.
        body: of the call.
        headers: of the call.

    Raises:
        InputError: a session is named.
    """

    operation = "text_completion"

    def __init__(self, assistant: Assistant, settings: Settings, body: CompletionRequest, headers: Headers) -> None:
        if any(name in headers for name in SESSION_HEADERS) or "session_id" in (body.metadata or {}):
            raise InputError("a text that is completed belongs to no session. Use /v1/chat/completions, or name none.")
        super().__init__(assistant, settings, body)

    def begin(self) -> Texts:
        """Begin the first text."""
        body, options = self.body, self.body.options(_USUAL, self._settings.longest)
        answer = Continuation(self._assistant, body.texts, echo=body.echo, options=options)
        return Texts(answer, self.model, usage=body.with_usage)

    def again(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield all chunks of texts that are whole already."""
        return _chunks(whole, whole["choices"], usage=whole["usage"] if self.body.with_usage else None)


class Texts(Written[Piece]):
    """Texts as Completions has them.

    Args:
        answer: being written.
        model: its name.
        usage: whether the last chunk of a stream has its counts.
    """

    answer: Continuation

    def __init__(self, answer: Continuation, model: str, *, usage: bool) -> None:
        self.answer, self._usage = answer, usage
        self._about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def input_tokens(self) -> int:
        """The tokens of the prompts."""
        return self.answer.usage.prompt_tokens

    def whole(self) -> dict[str, Any]:
        """Return the body of texts that are finished."""
        return {**self._about, "choices": [_choice(text) for text in self.answer.whole], "usage": usage_of(self)}

    def piece(self, piece: Piece) -> Iterator[Event]:
        """Yield the chunk of a piece of a text."""
        return _chunks(self._about, [_choice(piece)])

    def closing(self, whole: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the counts, if they are wanted."""
        return _chunks(self._about, [], usage=whole["usage"] if self._usage else None)


def _chunks(
    about: Mapping[str, Any], choices: Iterable[Mapping[str, Any]], usage: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield a chunk of each choice, and one of the counts if there are any."""
    same = {name: about[name] for name in ("id", "object", "created", "model")}
    for choice in choices:
        yield json.dumps({**same, "choices": [choice]})
    if usage is not None:
        yield json.dumps({**same, "choices": [], "usage": usage})


def _choice(piece: Piece) -> dict[str, Any]:
    return {"index": piece.number, "text": piece.text, "finish_reason": piece.finish_reason, "logprobs": None}


def _sum(one: Usage, other: Usage) -> Usage:
    asked, answered = one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens
    return Usage(asked, answered, 0, one.cached_tokens + other.cached_tokens)
