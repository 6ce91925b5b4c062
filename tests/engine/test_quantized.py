"""Quantised backbones: they read, answer, learn with LoRA and are told apart; what is not installed is named."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from stored import memory_of, user
from tiny import REMEMBERING, SMALL, byte_tokenizer, random_ids, randomize, tiny_causal_lm

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.cli import doctor
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.engine.outline import quantization
from hmt_memory.engine.quantized import kind_of
from hmt_memory.errors import BackboneError, CheckpointError, ConfigError, MissingDependencyError, ModelMismatchError
from hmt_memory.train.prepare import prepare
from hmt_memory.train.recipe import Recipe, Stage

# What the libraries say of one another.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")]
IDS = random_ids(100)


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


def _int8(**options: Any) -> Any:
    return transformers.BitsAndBytesConfig(load_in_8bit=True, **{"llm_int8_threshold": 0.0, **options})


def _nf4() -> Any:
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def needs(library: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


each_kind = pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param(_torchao, "torchao Int8WeightOnlyConfig", marks=needs("torchao")),
        pytest.param(_int8, "bitsandbytes int8", marks=needs("bitsandbytes")),
        pytest.param(_nf4, "bitsandbytes nf4", marks=needs("bitsandbytes")),
    ],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone that is not quantised."""
    path = tmp_path_factory.mktemp("backbone")
    tiny_causal_lm(layers=1).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def load(folder: str | Path, config: Any = SMALL, **options: Any) -> HMTModel:
    return randomize(HMTModel.from_pretrained(folder, config=config, device="cpu", **options))


@each_kind
def test_it_reads_and_answers_by_the_laws(folder: str, config: Callable[[], Any], kind: str) -> None:
    model, plain = load(folder, quantization_config=config()), load(folder)
    assert (model.backbone.quantization, model.backbone.engine, plain.backbone.quantization) == (kind, "torch", None)
    memory = model.read(IDS).memory
    close = torch.nn.functional.cosine_similarity(memory, plain.read(IDS).memory, dim=-1)
    assert close.mean() > 0.5 and close.max() < 0.99999
    torch.testing.assert_close(model.read(IDS[37:], model.read(IDS[:37])).memory, memory, atol=2e-3, rtol=2e-3)
    alone = model(IDS[None, :40]).logits
    beside = model(torch.stack([IDS[:40], 299 - IDS[:40]])).logits
    torch.testing.assert_close(beside[:1], alone, atol=2e-3, rtol=2e-3)
    assert model.generate("hello", max_new_tokens=4).finish().text


@each_kind
def test_lora_learns_around_it_and_comes_back(folder: str, tmp_path: Path, config: Callable[[], Any], kind: str) -> None:
    source = load(folder, quantization_config=config()).backbone
    source.save(tmp_path / "quantised")
    recipe = Recipe(config=SMALL, stages=(Stage(segments=2, steps=1),), lora_rank=2)
    model = randomize(prepare(str(tmp_path / "quantised"), recipe, device="cpu")).eval()
    assert model.backbone.quantization == kind and model.backbone.has_adapter
    assert model.backbone.identity()["weights_digest"] == source.identity()["weights_digest"]
    learning = [value for name, value in model.backbone.causal_lm.named_parameters() if "lora_" in name]
    before = model(IDS[None], labels=IDS[None]).loss
    before.backward()
    assert learning and all(value.grad is not None for value in learning)
    torch.optim.SGD(learning, 0.1).step()
    assert model(IDS[None], labels=IDS[None]).loss < before
    model.save_pretrained(tmp_path / "adapter")
    again = HMTModel.from_pretrained(tmp_path / "quantised", adapter=tmp_path / "adapter", device="cpu")
    assert again.backbone.has_adapter, "it is not merged into weights that would round it away"
    assert fingerprint(again).digest == fingerprint(model).digest
    assert torch.equal(again.read(IDS).memory, model.read(IDS).memory)
    unquantised = HMTModel.from_pretrained(folder, adapter=tmp_path / "adapter", device="cpu", engine="torch")
    assert unquantised.backbone.merged is not None, "it fits the weights that these were made from, too"
    with pytest.raises(ConfigError, match=r"cannot learn\. Train LoRA"):
        prepare(str(tmp_path / "quantised"), replace(recipe, lora_rank=0), device="cpu")


@each_kind
def test_a_checkpoint_of_it_is_the_same_model_and_no_other(
    folder: str, tmp_path: Path, config: Callable[[], Any], kind: str
) -> None:
    model = load(folder, REMEMBERING, quantization_config=config())
    model.backbone.save(tmp_path / "quantised")
    with MemoryStore(tmp_path / "store") as store:
        session = store.session("alice", model)
        session.add(user("the boat is called Ada and lies in the harbour"))
        again = load(tmp_path / "quantised", REMEMBERING)  # its config.json says how it is quantised
        assert again.backbone.quantization == kind and fingerprint(again).digest == fingerprint(model).digest
        assert (memory_of(store.session("alice", again)) == memory_of(session)).all()
        with pytest.raises(ModelMismatchError, match=rf"weights were {kind}, these are not quantised\).*rebuild"):
            store.session("alice", load(folder, REMEMBERING))
        session.export(tmp_path / "alice.hmt")
        assert store.import_session(tmp_path / "alice.hmt", name="bob", model=again).made_by() == session.made_by()
    with pytest.raises(BackboneError, match=f"quantised .{kind}.*or with engine='torch'"):
        load(tmp_path / "quantised", engine="openvino")
    assert kind_of(quantization(str(tmp_path / "quantised"))) == kind
    found = doctor.examine(str(tmp_path / "quantised")).chosen
    assert found is not None and f"({kind}), which torch computes" in found.weights


@needs("bitsandbytes")
def test_kinds_differ(folder: str) -> None:
    models = [load(folder, quantization_config=config) for config in (_int8(), _nf4())] + [load(folder)]
    assert len({fingerprint(model).digest for model in models}) == 3


@needs("bitsandbytes")
def test_outliers_of_a_batch_are_refused(folder: str) -> None:
    """By them a token's numbers depend on its neighbours: reading in pieces would leave another memory."""
    with pytest.raises(BackboneError, match=r"llm_int8_threshold=6\.0.*Set it to 0"):
        load(folder, quantization_config=_int8(llm_int8_threshold=6.0))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"\(gptq 4-bit\).*optimum"),
        ({"quant_method": "awq", "bits": 4}, r"\(awq 4-bit\).*gptqmodel"),
    ],
)
def test_what_cannot_be_loaded_here_is_named(folder: str, tmp_path: Path, said: dict[str, Any], message: str) -> None:
    """Of GPTQ and AWQ this is all that a machine without their kernels can check."""
    for file in Path(folder).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": said}), encoding="utf-8")
    with pytest.raises((MissingDependencyError, BackboneError), match=message):
        load(tmp_path)
    found = doctor.examine(str(tmp_path)).chosen
    assert found is not None and kind_of(said) in found.weights


def test_other_weights_are_said_to_be_so(folder: str) -> None:
    found = doctor.examine(folder)
    assert found.chosen is not None and "not quantised" in found.chosen.weights
    assert doctor.examine().chosen is None


def test_an_adapter_of_other_weights_is_refused_as_before(folder: str, tmp_path: Path) -> None:
    other = HMTModel.wrap(tiny_causal_lm(seed=5, layers=1), byte_tokenizer(), SMALL)
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="weights_digest"):
        HMTModel.from_pretrained(folder, adapter=tmp_path / "adapter")
