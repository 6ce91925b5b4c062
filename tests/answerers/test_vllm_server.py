"""vLLM's server as writer, against one that records what it gets: what is sent, what is refused, what comes back."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from measuring import same
from tiny import SMALL, byte_tokenizer, random_ids, tiny_model
from writers import recording_vllm

from hmt_memory import HMTModel
from hmt_memory.answerers import VLLMServer
from hmt_memory.answerers.embeddings import checked, encoded
from hmt_memory.errors import AnswererError, BackboneError, BudgetError, InputError

MODEL = tiny_model(tokenizer=byte_tokenizer())


def served(app: Any, **options: Any) -> VLLMServer:
    http = TestClient(app, base_url="http://testserver")
    return VLLMServer("http://testserver/v1", http_client=http, **options)


def test_answers_are_those_of_the_model_itself() -> None:
    app = recording_vllm(MODEL)
    elsewhere, state = MODEL.with_writer(served(app)), MODEL.read(random_ids(75))
    asked: dict[str, Any] = {"state": state, "max_new_tokens": 30, "min_new_tokens": 30, "logprobs": 1}
    own, answer = (model.generate(random_ids(6), **asked).finish() for model in (MODEL, elsewhere))
    assert answer.ids == own.ids and answer.text == own.text and same(answer.state, own.state)
    assert [len(chance.likeliest) for chance in answer.chances] == [1] * len(own.chances)
    body = app.state.calls[-1]
    assert body["model"] == "merged" and body["prompt"] is None and body["stream"] and body["ignore_eos"]
    assert body["stop_token_ids"] == sorted(MODEL.backbone.end_ids) and body["temperature"] == 0 and "seed" not in body


def test_what_is_sent_is_a_plain_tensor_and_nothing_beside_it() -> None:
    whole = torch.randn(50, 32)
    sent = base64.b64decode(encoded(checked(whole[10:14], 32)))
    assert torch.equal(torch.load(io.BytesIO(sent), weights_only=True), whole[10:14])
    assert len(sent) < 4096 < whole.nbytes, "a part of a tensor is sent without the rest"


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        (torch.zeros(3, 31), BackboneError, "32 wide"),
        (torch.zeros(32), InputError, r"\[tokens, width\]"),
        (torch.zeros(0, 32), InputError, r"\[tokens, width\]"),
        (torch.zeros(3, 32, dtype=torch.long), InputError, "int64"),
        (torch.full((3, 32), float("nan")), InputError, "NaN"),
        (torch.full((3, 32), float("inf"), dtype=torch.float16), InputError, "infinity"),
    ],
)
def test_embeddings_that_could_harm_are_not_sent(embeddings: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked(embeddings, 32)


def test_a_view_that_has_no_room_is_not_sent() -> None:
    app = recording_vllm(MODEL, card={"max_model_len": 30})
    elsewhere = MODEL.with_writer(served(app))
    before = len(app.state.calls)
    with pytest.raises(BudgetError, match="--max-model-len"):
        elsewhere.generate(random_ids(40), max_new_tokens=30).finish()
    assert len(app.state.calls) == before


def test_the_width_is_that_of_the_folder_that_is_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 48}))
    app = recording_vllm(MODEL, card={"root": str(tmp_path)})
    assert served(app).width == 48 and served(app, hidden_size=32).width == 32 and served(recording_vllm(MODEL)).width is None
    with pytest.raises(BackboneError, match="48 wide"):
        MODEL.with_writer(served(app))
    assert not app.state.calls


def test_other_weights_are_refused() -> None:
    with pytest.raises(BackboneError, match="hmt export"):
        MODEL.with_writer(served(recording_vllm(tiny_model(tokenizer=byte_tokenizer(), seed=7))))


def test_an_answer_that_breaks_off_is_an_error() -> None:
    app = recording_vllm(MODEL, cut=3)
    with pytest.raises(AnswererError, match="before its end"):
        MODEL.with_writer(served(app)).generate(random_ids(5), max_new_tokens=9, min_new_tokens=9).finish()


def test_merged_weights_are_those_that_answer(tmp_path: Path, peft_model: HMTModel) -> None:
    folder = tmp_path / "merged"
    peft_model.save_merged(folder)
    merged = HMTModel.from_pretrained(folder, config=SMALL, dtype="float32", device="cpu", engine="torch")
    peft_model.with_writer(served(recording_vllm(merged)))
    with peft_model.backbone.without_adapter(), pytest.raises(BackboneError, match="something else"):
        peft_model.with_writer(served(recording_vllm(merged)))
    assert peft_model.backbone.has_adapter, "it learns on"
    with pytest.raises(BackboneError, match="holds something already"):
        peft_model.save_merged(folder)


@pytest.fixture
def peft_model() -> HMTModel:
    from peft import LoraConfig, get_peft_model

    from hmt_memory.engine.checkpoint import without_advice

    inner = tiny_model(tokenizer=byte_tokenizer())
    with without_advice():
        adapted = get_peft_model(inner.backbone.causal_lm, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    return HMTModel.wrap(adapted, inner.backbone.tokenizer, inner.config).eval()
