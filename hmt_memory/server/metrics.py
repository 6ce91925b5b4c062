"""Counts and times of a server for Prometheus. Nothing that was said, no name of a session, nothing that tells who calls."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .logs import CALLS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ..engine.generate import Usage
    from ..sessions.memory_store import MemoryStore
    from .tracing import Span

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger(CALLS)
_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.calls = Counter("hmt_calls", "Calls by route and status.", ("route", "status"), registry=self._registry)
        self.answering = Gauge("hmt_answering", "Answers that are being written.", registry=self._registry)
        self.first = Histogram(
            "hmt_first_token_seconds", "From a call to the first word of its answer.", registry=self._registry, buckets=_SECONDS
        )
        self.whole = Histogram(
            "hmt_answer_seconds", "From a call to the end of its answer.", registry=self._registry, buckets=_SECONDS
        )
        self.written = Counter("hmt_answer_tokens", "Tokens of answers.", registry=self._registry)
        self.hot = Gauge("hmt_hot_bytes", "Bytes kept in memory, by kind.", ("kind",), registry=self._registry)
        self.uses = Gauge("hmt_index_uses", "Uses of indexes, by the tier they were in.", ("tier",), registry=self._registry)
        self.read = Counter("hmt_prompt_tokens", "Tokens that calls have added.", registry=self._registry)

    def text(self, store: MemoryStore) -> bytes:
        """Return all of them as Prometheus reads them, with those of a store."""
        self.hot.clear()  # of kinds that are gone
        for kind, size in store.hot.by_kind().items():
            self.hot.labels(kind).set(size)
        for tier, count in store.open_indexes.uses.items():
            self.uses.labels(tier).set(count)
        return generate_latest(self._registry)


class Counted:
    """Counts calls by the route that took them.

    Args:
        app: what is behind it.
        metrics: where they are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun, since = False, time.perf_counter()

        def count(status: int) -> None:
            # A route's own form, such as /v1/sessions/{name}: what stands in an address may have been said.
            mounted = "/mcp/{name}" if scope["path"].startswith("/mcp/") else "other"
            route = getattr(scope.get("route"), "path", mounted)
            self._metrics.calls.labels(route, str(status)).inc()
            seconds = round(time.perf_counter() - since, 4)
            _log.info("call", extra={"call": {"method": scope["method"], "route": route, "status": status, "seconds": seconds}})

        async def noted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            if not begun:
                count(500)
            raise


class Timed:
    """Times one answer, from its call on; counts it while it is being written.

    Args:
        metrics: where it is counted.
        span: of its call.
    """

    def __init__(self, metrics: Metrics, span: Span) -> None:
        self._metrics, self._span, self._begun, self._ended = metrics, span, time.perf_counter(), False

    def __enter__(self) -> Timed:
        """Begin to write."""
        self._metrics.answering.inc()
        return self

    def __exit__(self, *_: object) -> None:
        """End, whether it is whole or not."""
        self._metrics.answering.dec()

    def first(self) -> None:
        """Note that the first word is there."""
        seconds = time.perf_counter() - self._begun
        self._metrics.first.observe(seconds)
        self._span.first(seconds)

    def ends(self, usage: Usage, input_tokens: int, reason: str | None) -> bool:
        """Note that the answer is whole. Returns whether that is news.

        Args:
            usage: the tokens that the call has added, and those of the answer.
            input_tokens: those that it is answered from.
            reason: why it ended.
        """
        if self._ended:
            return False
        self._ended = True
        self._metrics.whole.observe(time.perf_counter() - self._begun)
        self._metrics.read.inc(usage.prompt_tokens)
        self._metrics.written.inc(usage.completion_tokens)
        self._span.ends(input_tokens, usage.completion_tokens, reason)
        return True
