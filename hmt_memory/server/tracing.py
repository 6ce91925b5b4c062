"""Spans of answers by OpenTelemetry's conventions for generative AI: models, tokens, times. Nothing that was said, no names.

Without OpenTelemetry, or where nobody has set it up, none are made. `start` sets it up as its environment variables say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import MissingDependencyError

api: Any  # `opentelemetry`; None: it is not installed
try:
    import opentelemetry.propagate
    import opentelemetry.trace

    api = opentelemetry
except ImportError:
    api = None

if TYPE_CHECKING:
    from ..engine.generate import Usage

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NAME = "hmt_memory"
# Fields of a body that say how to write; `stop` may hold what was said.
_ASKED = ("max_tokens", "temperature", "top_p", "seed", "stream")


def start() -> None:
    """Send spans to where the environment says, as OTEL_EXPORTER_OTLP_ENDPOINT; nowhere if it says nothing.

    Raises:
        MissingDependencyError: it does, and the extra is not installed.
    """
    wanted = any(os.environ.get(name) for name in _ENDPOINTS)
    if not wanted or os.environ.get("OTEL_SDK_DISABLED") == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(
            f"{_ENDPOINTS[0]} asks for traces, which need {error.name}. Run: pip install 'hmt-memory[otel]', or unset it."
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "hmt-memory")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    api.trace.set_tracer_provider(provider)


class Span:
    """The span of one call that the model works for; a child of the caller's own, if its headers name one.

    Args:
        operation: `chat`, `text_completion` or `embeddings`.
        model: that works.
        headers: of the call.
        asked: fields of its body.
        view: whether the tokens of the view count as input, rather than those of the call.
    """

    def __init__(
        self, operation: str, model: str, headers: Mapping[str, str], asked: Any = None, *, view: bool = False
    ) -> None:
        self._view, self._open, self._span = view, True, None
        if api is None:
            return
        tracer = api.trace.get_tracer(_NAME, __version__)
        self._span = tracer.start_span(f"{operation} {model}", context=api.propagate.extract(headers))
        self._set(
            operation__name=operation, provider__name=_NAME, request__model=model, response__model=model, output__type="text"
        )
        given = {f"request__{name}": getattr(asked, name, None) for name in _ASKED}
        self._set(**{name: value for name, value in given.items() if value is not None})

    def first(self, seconds: float) -> None:
        """Note the time to the first piece of an answer."""
        self._set(response__time_to_first_chunk=seconds)

    def ends(self, usage: Usage, reason: str | None = None) -> None:
        """Note that the work is done.

        Args:
            usage: its tokens.
            reason: why an answer ended.
        """
        asked = usage.view_tokens if self._view else usage.prompt_tokens
        self._set(usage__input_tokens=asked, usage__output_tokens=usage.completion_tokens)
        if reason is not None:
            self._set(response__finish_reasons=[reason])
        self._close()

    def fails(self, error: type[BaseException] | None) -> None:
        """Note that the work was given up, if it is not done."""
        if self._open and self._span is not None:
            self._span.set_attribute("error.type", "unfinished" if error is None else error.__qualname__)
            self._span.set_status(api.trace.StatusCode.ERROR)
        self._close()

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.fails(kind)

    def _set(self, **attributes: Any) -> None:
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute("gen_ai." + name.replace("__", "."), value)

    def _close(self) -> None:
        if self._open and self._span is not None:
            self._span.end()
        self._open = False
