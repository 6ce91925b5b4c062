"""Backbones that are placed by a `device_map`: on one device, and in parts, some of which accelerate keeps on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, byte_tokenizer, random_ids, tiny_causal_lm

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.engine import checkpoint
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.errors import BackboneError, CheckpointError

TEXT = "The door code is 4711. Bread rises slowly. " * 4
PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def loaded(folder: Path, **options: Any) -> HMTModel:
    chosen = {"config": SMALL, "dtype": "float32", "device": "cpu"} | options
    return HMTModel.from_pretrained(folder, **{name: value for name, value in chosen.items() if value is not None})


def placed(folder: Path, *on_disk: str, **options: Any) -> HMTModel:
    places = {part: "disk" if part in on_disk else "cpu" for part in PARTS}
    return loaded(folder, device_map=places, offload_folder=str(folder.parent / "offloaded"), **options)


def check_alike(model: HMTModel, expected: HMTModel) -> None:
    """The same memory, the same logits, the same answer, the same model."""
    with torch.no_grad():
        assert torch.equal(model(random_ids(40)[None]).logits, expected(random_ids(40)[None]).logits)
    states = [each.read(TEXT) for each in (model, expected)]
    assert torch.equal(states[0].memory, states[1].memory)
    answers = [
        each.generate("code?", state=state, max_new_tokens=8).finish()
        for each, state in zip((model, expected), states, strict=True)
    ]
    assert answers[0].text == answers[1].text
    assert fingerprint(model).digest == fingerprint(expected).digest


def test_a_map_to_one_device_is_that_device(folder: Path) -> None:
    model = loaded(folder, device_map={"": "cpu"}, device="auto" if not torch.cuda.is_available() else "cpu")
    assert {value.device.type for value in model.parameters()} == {"cpu"}
    check_alike(model, loaded(folder))


@pytest.mark.parametrize("on_disk", [("model.layers.1",), ("model.layers.0", "model.norm", "lm_head")])
def test_weights_may_stay_on_a_disk(folder: Path, tmp_path: Path, on_disk: tuple[str, ...]) -> None:
    model = placed(folder, *on_disk)
    assert "meta" in {value.device.type for value in model.backbone.parameters()}
    check_alike(model, loaded(folder))
    with MemoryStore(tmp_path / "store") as store:
        store.session("alice", model).add({"role": "user", "content": TEXT})
        assert store.session("alice", loaded(folder)).recall("the door code")  # another model would be refused


def test_weights_on_a_disk_are_left_to_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(checkpoint, "CONVERTED", (1, 10**9))
    monkeypatch.setenv("HMT_DTYPE", "float32")
    monkeypatch.delenv("HMT_ENGINE", raising=False)
    assert placed(folder, "model.layers.1", dtype="auto").backbone.engine == "torch"
    with pytest.raises(BackboneError, match="OpenVINO converts weights that are in memory"):
        placed(folder, "model.layers.1", engine="openvino")


def test_what_weights_on_a_disk_cannot_do_is_refused(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    with pytest.raises(BackboneError, match=r"input embeddings of .* on no device. Give them one"):
        placed(folder, "model.embed_tokens")
    causal_lm = get_peft_model(tiny_causal_lm(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    HMTModel.wrap(causal_lm, byte_tokenizer(), SMALL).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"does not load: device_map keeps some .* elsewhere. Run hmt"):
        placed(folder, "model.layers.1", adapter=tmp_path / "adapter", config=None)
