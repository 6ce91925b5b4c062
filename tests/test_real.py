"""What only a real model can show: SmolLM2-135M-Instruct reads, answers, chats, and keeps its cost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from measuring import counting_tokens

from hmt_memory import HMTModel, HMTState, MemoryStore

pytestmark = pytest.mark.real

USER = "user"


def test_it_answers_and_keeps_the_conversation(smollm2: HMTModel) -> None:
    """What was asked and answered stands in the state, in order, whatever the words are."""
    asked = "What is the capital of France?", "And what is the capital of Italy?"
    first = smollm2.generate([{"role": USER, "content": asked[0]}], max_new_tokens=12).finish()
    second = smollm2.generate([{"role": USER, "content": asked[1]}], state=first.state, max_new_tokens=12).finish()
    kept = smollm2.backbone.decode(torch.cat([second.state.recent_ids, second.state.open_ids]).tolist())
    places = [kept.find(text) for text in (asked[0], first.text, asked[1], second.text)]
    assert first.text and second.text and -1 not in places and places == sorted(places)
    assert {first.finish_reason, second.finish_reason} <= {"stop", "length"}


@pytest.mark.slow
def test_what_it_has_read_makes_the_answer_likelier(smollm2: HMTModel) -> None:
    """The same text with one of two names: each name is likelier, by far, where it was read."""
    names, filler = ("Ahab", "Nemo"), "The weather was calm and the road was long. " * 15
    read = [smollm2.read(f"{filler}The name of the ship's captain was {name}. ") for name in names]
    assert read[0].segments >= 2
    loss = [[surprise(smollm2, state, "The name of the ship's captain was", f" {name}") for name in names] for state in read]
    assert loss[0][0] + 1 < loss[0][1] and loss[1][1] + 1 < loss[1][0]


def surprise(model: HMTModel, state: HMTState, before: str, text: str) -> float:
    """Return the mean negative log-probability of the tokens of `text` after what was read and `before`."""
    start, rest = model.backbone.encode(before), model.backbone.encode(text)
    labels = torch.tensor([[-100] * len(start) + rest])
    with torch.no_grad():
        loss = model(torch.tensor([start + rest]), labels=labels, state=state).loss
    assert loss is not None
    return float(loss)


def test_text_survives_its_tokens(smollm2: HMTModel) -> None:
    for text in ("Grüße aus Köln", "日本語の文章", "🙂👩‍👩‍👧 emoji", "  spaces\n\n\ttabs ", "code: if x: return {'a': 1}"):
        assert smollm2.backbone.decode(smollm2.backbone.encode(text)) == text


def test_streamed_pieces_join_to_the_answer(smollm2: HMTModel) -> None:
    answer = smollm2.generate([{"role": USER, "content": "Repeat: 日本語 🙂"}], max_new_tokens=16)
    pieces = list(answer)
    assert "".join(pieces) == answer.text and "\N{REPLACEMENT CHARACTER}" not in answer.text


@pytest.mark.long
def test_the_cost_of_an_answer_does_not_grow_with_what_was_read(smollm2: HMTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.backbone, "_engine", None)  # what torch computes can be counted
    model, costs, state = smollm2.with_config(recent_tokens=128), [], None
    for chunk in (192, 320):  # 3 and 8 segments: both have filled the recent tokens
        state = model.read(torch.arange(chunk) % 40000 + 100, state)
        with counting_tokens(model) as seen:
            list(itertools.islice(model.generate("Go on", state=state, max_new_tokens=5), 3))
        costs.append(seen[0] + seen[1])  # the query's summary and the view, until the first token
    assert costs[0] == costs[1]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_hidden_fact_is_brought_back(smollm2: HMTModel, tmp_path: Path) -> None:
    model = smollm2.with_config(recent_tokens=128, replay_tokens=160)
    with MemoryStore(tmp_path) as store:
        session = store.session("office", model)
        session.add(
            [{"role": USER, "content": "The door code of the office is 4071."}, {"role": "assistant", "content": "I see."}]
        )
        for subject in ("rice", "bicycles", "rivers", "the moon", "Italy"):
            session.add({"role": USER, "content": f"I like {subject}. " * 8})
            session.add({"role": "assistant", "content": f"That is good to know about {subject}. " * 4})
        reply = session.reply({"role": USER, "content": "What is the door code of the office?"}, max_new_tokens=12).finish()
        assert any("The door code of the office is 4071." in one.text for one in reply.recalled)
        assert reply.text and [message.role for message in session.messages()[-2:]] == [USER, "assistant"]
