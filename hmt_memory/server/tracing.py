"""Spans of answers by OpenTelemetry's conventions for generative AI: models, tokens, times. Nothing that was said, no names.

Without OpenTelemetry, or where nobody has set it up, none are made. `start` sets it up as its environment variables say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import anyio

from .._version import __version__
from ..errors import MissingDependencyError

api: Any  # `opentelemetry`; None: it is not installed
try:
    import opentelemetry.propagate
    import opentelemetry.trace

    api = opentelemetry
except ImportError:
    api = None

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_SECONDS = 5.0
_NAME = "hmt_memory"


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
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependencyError(
            f"{_ENDPOINTS[0]} asks for traces, which need {error.name}. Run: pip install 'hmt-memory[otel]', or unset it."
        ) from error
    usual = Resource.create({SERVICE_NAME: "hmt-memory", SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=usual.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    api.trace.set_tracer_provider(provider)


async def flush() -> None:
    """Send the spans that wait to be sent, for some seconds at most: whom a signal ends has no other time for it."""
    flushing = None if api is None else getattr(api.trace.get_tracer_provider(), "force_flush", None)
    if flushing is not None:
        with anyio.move_on_after(_FLUSH_SECONDS):
            await anyio.to_thread.run_sync(flushing, abandon_on_cancel=True)


class Span:
    """The span of one call that the model works for; a child of the caller's own, if its headers name one.

    Args:
        operation: as the conventions name it, such as `chat`.
        headers: of the call.
        model: that answers; None: the work is about a memory.
        asked: what is asked for of an answer, by the conventions' names.
    """

    def __init__(
        self, operation: str, headers: Mapping[str, str], *, model: str | None = None, asked: Mapping[str, Any] | None = None
    ) -> None:
        self._open, self._span = True, None
        if api is None:
            return
        tracer = api.trace.get_tracer(_NAME, __version__)
        name = operation if model is None else f"{operation} {model}"
        self._span = tracer.start_span(name, context=api.propagate.extract(headers))
        self._set(operation__name=operation, provider__name=_NAME)
        if model is not None:
            self._set(request__model=model, response__model=model, output__type="text")
        self._set(**{f"request__{name}": value for name, value in (asked or {}).items() if value is not None})

    def first(self, seconds: float) -> None:
        """Note the time to the first piece of an answer."""
        self._set(response__time_to_first_chunk=seconds)

    def ends(self, input_tokens: int, output_tokens: int = 0, reason: str | None = None) -> None:
        """Note that an answer is whole, or texts are embedded.

        Args:
            input_tokens: that were read for it.
            output_tokens: of the answer.
            reason: why an answer ended.
        """
        self._set(usage__input_tokens=input_tokens, usage__output_tokens=output_tokens)
        if reason is not None:
            self._set(response__finish_reasons=[reason])
        self.close()

    def fails(self, error: type[BaseException] | None) -> None:
        """Note that the work was given up, if it is not done."""
        if self._open and self._span is not None:
            self._span.set_attribute("error.type", "unfinished" if error is None else error.__qualname__)
            self._span.set_status(api.trace.StatusCode.ERROR)
        self.close()

    def close(self) -> None:
        """Note that the work is done."""
        if self._open and self._span is not None:
            self._span.end()
        self._open = False

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.fails(kind)

    def _set(self, **attributes: Any) -> None:
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute("gen_ai." + name.replace("__", "."), value)
