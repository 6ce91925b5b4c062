"""Replicas of the server on Ray Serve, behind a front that keeps a session's calls on one of them.

A replica is the server of one process: `create_app` around an `Assistant`. All share the store, whose locks make it safe that
another one takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging.config
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..assistant import Assistant
from ..errors import InputError
from ..server import logs, tracing
from ..server.app import create_app
from .asgi import Sent, answered
from .connection import check_place, connect

if TYPE_CHECKING:
    from ..server.settings import Settings
    from ..server.tokens import Tokens

APPLICATION = "hmt-memory"
_REPLICAS = "Replica"  # the name of their deployment
_RING = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_LAST_WORDS = 60.0  # seconds that answers may still take when everything is stopped
_LONGEST_ANSWER = 3600.0  # and when a replica is one too many
_AVERAGED = (11.0, 30.0)  # seconds over which Ray counts calls, at least and at most; it hears of them every ten
_POLL_SECONDS = 0.1
_NODE_SECONDS = 60.0  # for which a node may say nothing
_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # addresses of calls say what is searched for


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each takes.

    Args:
        least: replicas at least.
        most: replicas at most; the more calls are under way, the more there are.
        cpus: of a replica.
        gpus: of a replica.
        calls: under way, waiting ones included, for which there is one replica each; None: as many as it answers at once.
        up_after: seconds for which there are more calls, before there are more replicas.
        down_after: seconds for which there are fewer, before there are fewer.

    Raises:
        InputError: there are none, or more at least than at most; or no calls, or negative times.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    calls: float | None = None
    up_after: float = 30.0
    down_after: float = 600.0

    @classmethod
    def of(
        cls,
        replicas: str,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        calls: float | None = None,
        up_after: float = 30.0,
        down_after: float = 600.0,
    ) -> Scale:
        """Return the scale of a number, or of two.

        Args:
            replicas: such as "2" or "1-4".
            cpus: as in `Scale`, and so the others.
            gpus: likewise.
            calls: likewise.
            up_after: likewise.
            down_after: likewise.

        Raises:
            InputError: it is neither, or another value is impossible.

        >>> Scale.of("1-4", calls=2)
        Scale(least=1, most=4, cpus=1.0, gpus=0.0, calls=2, up_after=30.0, down_after=600.0)
        """
        least, dash, most = replicas.partition("-")
        most = most if dash else least
        if not least.isdecimal() or not most.isdecimal():
            raise InputError(f"{replicas!r} is no number of replicas: give a number, or two such as 1-4.")
        return cls(int(least), int(most), cpus, gpus, calls, up_after, down_after)

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InputError(f"{self.least} to {self.most} replicas cannot be: give a number from 1, or two such as 1-4.")
        if self.calls is not None and not self.calls > 0:
            raise InputError(f"replicas for {self.calls:g} calls each cannot be: give a number above 0.")
        if not min(self.up_after, self.down_after) >= 0:
            raise InputError("replicas cannot come or go before calls do: give seconds from 0.")


class Replica:
    """A server without a port.

    Args:
        assistant: answers.
        settings: what is allowed.
        tokens: one of which every caller has to show; None: nobody needs one.
        form: of the lines it writes to its log.
    """

    def __init__(self, assistant: Assistant, settings: Settings, tokens: Tokens | None, form: logs.LogFormat) -> None:
        logging.config.dictConfig(logs.settings(form))
        tracing.start()
        self._assistant = assistant
        self._app = create_app(assistant, settings, tokens=tokens)
        self._begun: asyncio.Future[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        assistant.load()  # nobody is sent here before

    async def answer(self, call: Sent) -> AsyncGenerator[list[Any], None]:
        """Answer a call; yield what ASGI sends, as soon as it is there."""
        await self._alive()
        async for messages in answered(self._app, call):
            yield messages

    async def metrics(self) -> bytes:
        """Return what is counted here."""
        text: bytes = self._app.state.metrics.text(self._assistant.store)
        return text

    def process(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    async def _alive(self) -> None:
        """Begin the life of the application, once; it ends in the task that it began in."""
        if self._begun is None:
            self._begun = asyncio.get_running_loop().create_future()
            self._life = asyncio.ensure_future(self._live(self._begun))
        await asyncio.shield(self._begun)

    async def _live(self, begun: asyncio.Future[None]) -> None:
        try:
            async with self._app.router.lifespan_context(self._app):
                begun.set_result(None)
                await self._stopping.wait()
        except Exception as error:
            if begun.done():
                raise
            begun.set_exception(error)

    async def __del__(self) -> None:
        """End the life of the application, when all is answered, also in the background. Ray Serve awaits it."""
        await self._app.state.door.background.finished()
        self._stopping.set()
        if self._life is not None:
            await asyncio.wait({self._life})
        self._assistant.store.close()


def serve(
    assistant: Assistant,
    settings: Settings,
    *,
    tokens: Tokens | None = None,
    scale: Scale | None = None,
    host: str = "127.0.0.1",
    port: int = 8399,
    form: logs.LogFormat = logs.LogFormat.text,
) -> None:
    """Start replicas on the cluster, and a front at an address; return when they answer.

    Args:
        assistant: of names, not of model objects: each replica loads its own.
        settings: what is allowed, on each replica.
        tokens: one of which every caller has to show; None: nobody needs one.
        scale: how many replicas there are.
        host: to listen at, on each machine of the cluster.
        port: to listen at.
        form: of the lines that replicas write to their logs.

    Raises:
        MissingDependencyError: the extra `ray` is not installed.
        InputError: the store is a folder and the cluster has several machines.
    """
    ray = connect()
    from ray import serve as ray_serve

    scale = scale or Scale()
    check_place(ray, assistant.folder)
    ray_serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
    one_replica = ray_serve.deployment(Replica, name=_REPLICAS).options(
        **_size(scale, settings),
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        max_ongoing_requests=settings.answers + settings.looking,
        max_queued_requests=settings.waiting,
        request_router_config={"request_router_class": _RING},
        graceful_shutdown_timeout_s=_LONGEST_ANSWER,
        health_check_period_s=2.0,
    )
    at_once = 2 * scale.most * (settings.answers + settings.looking) + settings.waiting
    one_front = ray_serve.deployment(ray_serve.ingress(_front_of(settings, tokens))(), name="Front").options(
        max_replicas_per_node=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=at_once,
        graceful_shutdown_timeout_s=_LAST_WORDS,
    )
    behind, fronts = one_replica.bind(assistant, settings, tokens, form), 0
    _hear(ray)
    while fronts != (alive := len(_nodes(ray))) or not _answers():
        if fronts != alive:  # one on each; a node that dies meanwhile would be waited for without end
            fronts = alive
            application = one_front.options(num_replicas=fronts).bind(behind)
            target = ray_serve.RunTarget(application, name=APPLICATION, logging_config=_QUIET)
            ray_serve.run_many([target], wait_for_applications_running=False)
        time.sleep(_POLL_SECONDS)


def _nodes(ray: Any) -> list[str]:
    """Return the nodes that Ray takes for alive."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _hear(ray: Any) -> None:
    """Wait until each node answers, or is known as dead: Ray notices late that one has died."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nothing = ray.remote(num_cpus=0, max_retries=0)(lambda: None)
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in _nodes(ray)]
    answers = [nothing.options(scheduling_strategy=place).remote() for place in places]
    ray.wait(answers, num_returns=len(answers), timeout=_NODE_SECONDS)


def _answers() -> bool:
    """Return whether everything that was started is there.

    Raises:
        RuntimeError: it cannot be started.
    """
    from ray import serve as ray_serve

    application = ray_serve.status().applications[APPLICATION]
    if application.status == "DEPLOY_FAILED":
        raise RuntimeError(f"the replicas could not be started: {application.message}")
    return bool(application.status == "RUNNING")


def stop() -> None:
    """Stop the replicas when they have answered what they are answering, and Ray Serve if nothing else runs on it.

    Answers that take longer than a minute are ended.
    """
    from ray import serve as ray_serve

    ray_serve.delete(APPLICATION, _blocking=False)
    deadline = time.monotonic() + _LAST_WORDS
    while APPLICATION in ray_serve.status().applications:
        if time.monotonic() > deadline:
            _end_all()
        time.sleep(_POLL_SECONDS)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def _end_all() -> None:
    """End every replica at once."""
    import ray

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["name"].startswith(f"SERVE_REPLICA::{APPLICATION}#"):
            with contextlib.suppress(ValueError):  # it has ended
                ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))


def told_to_stop() -> threading.Event:
    """Connect, and return what is set when this process is told to stop; Ray's own handlers would end it at once."""
    connect()
    told = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: told.set())
    return told


def _size(scale: Scale, settings: Settings) -> dict[str, Any]:
    if scale.least == scale.most:
        return {"num_replicas": scale.least}
    shortest, longest = _AVERAGED
    by_need = {
        "min_replicas": scale.least,
        "max_replicas": scale.most,
        "target_ongoing_requests": settings.answers if scale.calls is None else scale.calls,
        "upscale_delay_s": scale.up_after,
        "downscale_delay_s": scale.down_after,
        "look_back_period_s": min(max(shortest, scale.up_after), longest),
    }
    return {"autoscaling_config": by_need}


def _front_of(settings: Settings, tokens: Tokens | None) -> Any:
    """Return a function that makes the front in the process that it runs in."""

    def make() -> Any:
        from ray import serve as ray_serve

        from .front import front

        replicas = ray_serve.get_deployment_handle(_REPLICAS, app_name=APPLICATION)

        def answering(key: str, call: Sent) -> AsyncIterator[list[Any]]:
            answers: AsyncIterator[list[Any]] = replicas.options(stream=True, session_id=key).answer.remote(call)
            return answers

        async def measured() -> list[bytes]:
            counted: list[bytes] = await replicas.broadcast("metrics").results_async()
            return counted

        return front(answering, measured, settings, tokens)

    return make
