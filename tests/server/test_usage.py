"""The tokens of an answer that an earlier one had read, as Chat Completions and Completions count them."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from hmt_memory.engine.generate import Usage

PIRATE = {"role": "system", "content": "Talk like a pirate, and be brief about whatever is asked."}


def usage(client: OpenAI, said: str, *, stream: bool = False, **named: Any) -> Any:
    messages: Any = [PIRATE, {"role": "user", "content": said}]
    asked: dict[str, Any] = {"model": client.models.list().data[0].id, "messages": messages, **named}
    if not stream:
        return client.chat.completions.create(**asked).usage
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    return last.usage


@pytest.mark.parametrize("session", [None, "alice"])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_were_read_before_are_counted(client: OpenAI, saying: Any, session: str | None, stream: bool) -> None:
    named = {"extra_headers": {"X-HMT-Session": session}} if session else {}
    first, second = (usage(client, said, stream=stream, **named) for said in ("Hi.", "Hi again."))
    assert first.prompt_tokens_details.cached_tokens == 0 < second.prompt_tokens_details.cached_tokens
    assert second.prompt_tokens_details.cached_tokens == saying.latest.usage.cached_tokens < second.prompt_tokens
    assert second.total_tokens == second.prompt_tokens + second.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_given_again_has_the_counts_of_the_first_time(client: OpenAI, stream: bool) -> None:
    first, again = (usage(client, "Hi.", stream=stream, extra_headers={"Idempotency-Key": "one"}) for _ in range(2))
    assert first == again and again.prompt_tokens_details.cached_tokens == 0
    other = usage(client, "Hi.", stream=stream, extra_headers={"Idempotency-Key": "two"})
    assert other.prompt_tokens_details.cached_tokens > 0, "only that one was answered anew"


@pytest.mark.parametrize("stream", [False, True])
def test_texts_have_the_sum_of_theirs(client: OpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    class Known:
        finish_reason, usage = "stop", Usage(5, 1, 5, cached_tokens=3)

        def __next__(self) -> str:
            return "a"

    monkeypatch.setattr("hmt_memory.server.completions.continued", lambda *_, **__: Known())
    asked: dict[str, Any] = {"model": client.models.list().data[0].id, "prompt": ["one", "two"]}
    if stream:
        *_, answer = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    else:
        answer = client.completions.create(**asked)
    assert answer.usage.prompt_tokens_details.cached_tokens == 6 and answer.usage.prompt_tokens == 10
