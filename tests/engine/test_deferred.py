"""A converted backbone without torch's weights: the same answers, the same memory, and the weights where they are asked for."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, byte_tokenizer, else_long, random_ids, tiny_causal_lm

from hmt_memory import HMTModel
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.deferred import DeferredBackbone
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.engine.modes import eval_mode
from hmt_memory.errors import BackboneError, CheckpointError, ModelNotFoundError

pytest.importorskip("openvino")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HMT_ENGINE", raising=False)
    return saved(tmp_path / "model")


def saved(folder: Path, family: str = "llama") -> Path:
    tiny_causal_lm(family, layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, **options: Any) -> HMTModel:
    options = {"dtype": "float32", "engine": "openvino", **({} if "adapter" in options else {"config": SMALL}), **options}
    return HMTModel.from_pretrained(folder, **options)


def deferred(folder: Path, **options: Any) -> DeferredBackbone:
    backbone = loaded(folder, **options).backbone
    assert isinstance(backbone, DeferredBackbone) and not backbone.loaded
    return backbone


def with_lora(folder: Path) -> Path:
    """Save a checkpoint with a LoRA adapter that changes much."""
    from peft import LoraConfig, get_peft_model

    causal_lm = get_peft_model(tiny_causal_lm(layers=1), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, value in causal_lm.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) / 4)
    HMTModel.wrap(causal_lm, byte_tokenizer(), SMALL).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama", "lora", "gpt2", "shards"])
def test_the_second_time_a_model_is_the_same_without_its_weights(folder: Path, tmp_path: Path, kind: str) -> None:
    """GPT-2 has other names for the fields of its configuration."""
    options: dict[str, Any] = {"adapter": with_lora(tmp_path / "adapter")} if kind == "lora" else {}
    if kind == "gpt2":
        folder = saved(tmp_path / "other", kind)
    elif kind == "shards":
        (folder / "model.safetensors").unlink()
        tiny_causal_lm(layers=1).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    first = loaded(folder, **options)
    assert type(first.backbone) is Backbone
    second = loaded(folder, **options)
    text = "Bread rises slowly. " * 5
    answers, memories = [], []
    for model in (first, second):
        state = model.read(text)
        memories.append(state.memory)
        answer = model.generate("and then", state=state, max_new_tokens=8)
        answers.append((list(answer), answer.ids))
    assert answers[0] == answers[1]
    assert torch.equal(*memories)
    assert fingerprint(first) == fingerprint(second)
    assert first.backbone.identity() == second.backbone.identity()
    assert first.backbone.end_ids == second.backbone.end_ids and first.backbone.positions == second.backbone.positions
    assert list(first.memory_parameters()) == list(second.memory_parameters())
    assert isinstance(second.backbone, DeferredBackbone) and not second.backbone.loaded, "nothing asked for the weights"
    second.save_pretrained(tmp_path / "again")
    assert loaded(folder, adapter=tmp_path / "again", engine="torch").backbone.has_adapter == first.backbone.has_adapter


ASKING: dict[str, Callable[[DeferredBackbone], Any]] = {
    "parameters": lambda backbone: list(backbone.parameters()),
    "modules": lambda backbone: list(backbone.modules()),
    "state_dict": lambda backbone: backbone.state_dict(),
    "causal_lm": lambda backbone: backbone.causal_lm,
    "apply": lambda backbone: backbone.apply(lambda _: None),
    "half": lambda backbone: backbone.to(torch.bfloat16),
    "learning": lambda backbone: backbone.body(torch.zeros(1, 3, backbone.hidden_size)),
    "logits": lambda backbone: backbone.head(torch.zeros(1, backbone.hidden_size)),
}


@pytest.mark.parametrize("asking", else_long(ASKING, "parameters", "causal_lm", "half", "logits"))
def test_whoever_asks_for_the_weights_has_them(folder: Path, asking: str) -> None:
    first = loaded(folder).backbone
    backbone = deferred(folder)
    written = backbone.written()
    ASKING[asking](backbone)
    assert backbone.loaded and backbone.written() != written
    for (name, value), (other, expected) in zip(backbone.named_parameters(), first.named_parameters(), strict=True):
        assert name == other and not value.requires_grad
        assert torch.equal(value, expected.to(value.dtype))
    assert backbone.identity() == first.identity()


@torch.no_grad()
def test_once_the_weights_have_changed_torch_computes(folder: Path) -> None:
    loaded(folder)
    backbone = deferred(folder)
    given = backbone.embed(random_ids(8)[None])
    before = backbone.body(given)
    list(backbone.parameters())
    assert torch.equal(backbone.body(given), before), "they are as they were: OpenVINO goes on"
    for value in backbone.parameters():
        value.mul_(1.5)
    assert float((backbone.body(given) - before).norm() / before.norm()) > 0.1


CHANGES = ("touched", "replaced", "other adapter", "tokenizer", "damaged", "engine", "options")


@pytest.mark.parametrize("change", else_long(CHANGES, "replaced", "other adapter", "damaged"))
def test_what_was_kept_counts_for_the_same_files_only(folder: Path, tmp_path: Path, change: str) -> None:
    adapter = with_lora(tmp_path / "adapter")
    options: dict[str, Any] = {"adapter": adapter}
    loaded(folder, **options)
    deferred(folder, **options)
    if change == "touched":
        os.utime(folder / "model.safetensors")
    elif change == "replaced":
        shutil.copytree(folder, tmp_path / "new")
        shutil.rmtree(folder)
        (tmp_path / "new").rename(folder)
    elif change == "other adapter":
        path = adapter / "backbone_adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1}))
    elif change == "tokenizer":
        (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    elif change == "damaged":
        for kept in (tmp_path / "cache").glob("openvino-*/*.json"):
            kept.write_text("{}")
    else:
        options |= {"engine": "torch"} if change == "engine" else {"attn_implementation": "eager"}
    assert type(loaded(folder, **options).backbone) is Backbone


def test_weights_that_have_changed_meanwhile_are_not_taken(folder: Path) -> None:
    loaded(folder)
    backbone = deferred(folder)
    tiny_causal_lm(seed=1, layers=1).save_pretrained(folder)
    with pytest.raises(BackboneError, match="changed since it was loaded"):
        list(backbone.parameters())
    shutil.rmtree(folder)
    with pytest.raises(ModelNotFoundError, match="no longer there"):
        list(backbone.parameters())


def test_what_changes_while_a_model_is_converted_is_not_kept_as_that_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = with_lora(tmp_path / "adapter")
    convert = Backbone.use_openvino

    def while_another_is_written(backbone: Backbone, bits: int = 8) -> None:
        convert(backbone, bits)
        path = adapter / "backbone_adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 1}))

    monkeypatch.setattr(Backbone, "use_openvino", while_another_is_written)
    loaded(folder, adapter=adapter)
    monkeypatch.undo()
    assert not list((tmp_path / "cache").glob("openvino-*/*.json"))


def test_an_adapter_may_lie_beside_other_files_and_be_named_from_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = with_lora(tmp_path / "adapter") / "backbone_adapter"
    monkeypatch.chdir(tmp_path)
    loaded(folder, adapter="adapter")
    (adapter / "notes").mkdir()
    (adapter / "README.md").write_text("mine")
    backbone = deferred(folder, adapter="adapter")
    monkeypatch.chdir("/")
    list(backbone.parameters())


def test_many_threads_load_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(folder)
    backbone = deferred(folder)
    load, calls = backbone._load, []
    monkeypatch.setattr(backbone, "_load", lambda: calls.append(1) or time.sleep(0.2) or load())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: backbone.causal_lm, range(8)))
    assert len(calls) == 1 and len(set(map(id, found))) == 1


def test_what_is_loaded_in_eval_mode_goes_back_to_training(folder: Path) -> None:
    loaded(folder)
    backbone = deferred(folder).train()
    with eval_mode(backbone):
        assert not backbone.causal_lm.training
    assert all(module.training for module in backbone.modules())


def test_a_checkpoint_of_another_backbone_is_refused_all_the_same(folder: Path, tmp_path: Path) -> None:
    other = HMTModel.wrap(tiny_causal_lm(seed=1, layers=1), byte_tokenizer(), SMALL)
    other.save_pretrained(tmp_path / "adapter")
    loaded(folder)
    deferred(folder)
    with pytest.raises(CheckpointError, match="weights_digest"):
        loaded(folder, adapter=tmp_path / "adapter")


def test_embeddings_that_are_scaled_keep_their_weights(folder: Path, tmp_path: Path) -> None:
    gemma = saved(tmp_path / "gemma", "gemma3")
    for _ in range(2):
        assert type(loaded(gemma).backbone) is Backbone
