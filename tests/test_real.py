"""What only a real model can show: SmolLM2-135M-Instruct reads, answers, chats, and keeps its cost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from measuring import counting_tokens

from hmt_memory import HMTModel, MemoryStore

pytestmark = pytest.mark.real

USER = "user"


def test_it_answers_and_keeps_the_conversation(smollm2: HMTModel) -> None:
    first = smollm2.generate([{"role": USER, "content": "What is the capital of France?"}], max_new_tokens=20).finish()
    assert "Paris" in first.text and first.finish_reason == "stop"
    second = smollm2.generate(
        [{"role": USER, "content": "And what is the capital of Italy?"}], state=first.state, max_new_tokens=20
    ).finish()
    assert "Rome" in second.text


def test_it_answers_from_a_text_it_has_read(smollm2: HMTModel) -> None:
    filler = "The weather was calm and the road was long. " * 80
    state = smollm2.read(filler + "The name of the ship's captain was Ahab. " + filler[:900])
    question = [{"role": USER, "content": "What was the name of the ship's captain?"}]
    assert state.segments >= 3
    assert "Ahab" in smollm2.generate(question, state=state, max_new_tokens=30).finish().text


def test_text_survives_its_tokens(smollm2: HMTModel) -> None:
    for text in ("Grüße aus Köln", "日本語の文章", "🙂👩‍👩‍👧 emoji", "  spaces\n\n\ttabs ", "code: if x: return {'a': 1}"):
        assert smollm2.backbone.decode(smollm2.backbone.encode(text)) == text


def test_streamed_pieces_join_to_the_answer(smollm2: HMTModel) -> None:
    answer = smollm2.generate([{"role": USER, "content": "Repeat: 日本語 🙂"}], max_new_tokens=30)
    pieces = list(answer)
    assert "".join(pieces) == answer.text and "\N{REPLACEMENT CHARACTER}" not in answer.text


def test_the_cost_of_an_answer_does_not_grow_with_what_was_read(smollm2: HMTModel) -> None:
    costs = []
    state = None
    for chunk in (2048, 4096):  # 8 and 24 segments: both have filled the recent tokens
        state = smollm2.read(torch.arange(chunk) % 40000 + 100, state)
        with counting_tokens(smollm2) as seen:
            list(itertools.islice(smollm2.generate("Go on", state=state, max_new_tokens=5), 3))
        costs.append(seen[0] + seen[1])  # the query's summary and the view, until the first token
    assert costs[0] == costs[1]


def test_a_session_is_the_conversation_that_transformers_would_have(tmp_path: Path) -> None:
    """The tokens are the chat template's and the greedy answer is the plain model's, also after reopening."""
    exact = HMTModel.from_pretrained("smollm2-135m-instruct", dtype="float32")  # in bf16 the order of additions may decide
    said = [{"role": USER, "content": "My name is Ada."}, {"role": "assistant", "content": "Nice to meet you, Ada."}]
    question = {"role": USER, "content": "What is my name?"}
    tokenizer, plain = exact.backbone.tokenizer, exact.with_config(mode="plain")
    whole = tokenizer.apply_chat_template([*said, question], tokenize=False, add_generation_prompt=True)
    expected = plain.generate(whole, literal=False, max_new_tokens=12).finish().text
    with MemoryStore(tmp_path) as store:
        store.session("ada", plain).add(said)
    with MemoryStore(tmp_path) as store:
        reply = store.session("ada", plain).reply(question, max_new_tokens=12)
        assert "".join(reply) == expected


def test_a_hidden_fact_is_replayed_and_answered_from(smollm2: HMTModel, tmp_path: Path) -> None:
    model = smollm2.with_config(recent_tokens=128, replay_tokens=160)
    with MemoryStore(tmp_path) as store:
        session = store.session("office", model)
        session.add(
            [{"role": USER, "content": "The door code of the office is 4071."}, {"role": "assistant", "content": "I see."}]
        )
        for subject in ("rice", "bicycles", "rivers", "the moon", "Italy"):
            session.add({"role": USER, "content": f"I like {subject}. " * 8})
            session.add({"role": "assistant", "content": f"That is good to know about {subject}. " * 4})
        reply = session.reply({"role": USER, "content": "What is the door code of the office?"}, max_new_tokens=20).finish()
        assert [one.segment for one in reply.recalled][:1] == [0] and "4071" in reply.recalled[0].text
        assert "4071" in reply.text
