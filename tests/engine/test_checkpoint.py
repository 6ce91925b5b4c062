"""Checkpoints: save, load, equal, exactly these files; whatever is wrong with one is said by name."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import same
from safetensors.torch import load_file, save_file
from tiny import SMALL, byte_tokenizer, random_ids, randomize, tiny_causal_lm

from hmt_memory import HMTConfig, HMTModel
from hmt_memory.engine import places, weights
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.errors import BackboneError, CheckpointError, ConfigError, MissingDependencyError, ModelNotFoundError


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> HMTModel:
    return HMTModel.from_pretrained(folder, dtype="float32", device="cpu", **options)


@pytest.fixture
def saved(backbone_folder: Path, tmp_path: Path) -> tuple[HMTModel, Path]:
    config = replace(SMALL, memory_input="mapped", memory_tokens=2)
    model = randomize(load(backbone_folder, config=config))
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_save_load_equal_and_exactly_these_files(saved: tuple[HMTModel, Path], backbone_folder: Path) -> None:
    model, folder = saved
    assert sorted(file.name for file in folder.iterdir()) == ["hmt_config.json", "hmt_memory.safetensors"]
    assert {name: tuple(t.shape) for name, t in load_file(folder / "hmt_memory.safetensors").items()} == {
        "summary_prompt": (1, 32),
        "initial_memory": (2, 32),
        "recall.query.weight": (32, 32),
        "recall.key.weight": (32, 32),
        "memory_input.gain": (1,),
        "memory_input.map.weight": (32, 32),
    }
    for again in (load(folder), load(backbone_folder, adapter=folder)):
        assert again.config == model.config and again.is_trained
        assert same(again.read(random_ids(90)), model.read(random_ids(90)), 0)
    assert json.loads((folder / "hmt_config.json").read_text())["hmt_memory_version"]


def test_untrained_parameters_stay_untrained_through_a_checkpoint(backbone_folder: Path, tmp_path: Path) -> None:
    fresh = load(backbone_folder, config=SMALL)
    fresh.save_pretrained(tmp_path)
    assert not fresh.is_trained and not load(tmp_path).is_trained
    with torch.no_grad():
        fresh.recall.query.weight[0, 1] = 1e-3
    assert fresh.is_trained


def test_a_loaded_backbone_is_frozen_and_in_eval_mode(saved: tuple[HMTModel, Path]) -> None:
    model = load(saved[1])
    assert not any(value.requires_grad for value in model.backbone.parameters()) and not model.training
    assert all(value.requires_grad for value in model.memory_parameters().values())


def test_a_peft_adapter_travels_with_the_checkpoint(backbone_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = load(backbone_folder, config=SMALL)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = get_peft_model(plain.backbone.causal_lm, lora).eval()
    model = randomize(HMTModel.wrap(wrapped, plain.backbone.tokenizer, SMALL))
    model.backbone.name = str(backbone_folder)
    ids = random_ids(70)[None]
    model(ids, labels=ids).loss.backward()  # type: ignore[union-attr]
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert any("lora_" in name for name in trainable)
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert set(model.memory_parameters()) == {"summary_prompt", "initial_memory", "recall.query.weight", "recall.key.weight"}
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "backbone_adapter" / "adapter_model.safetensors").is_file()
    again = load(tmp_path / "adapter")
    assert same(again.read(random_ids(90)), model.read(random_ids(90)), 1e-5)  # merged: rounded once more
    assert not same(again.read(random_ids(90)), randomize(load(backbone_folder, config=SMALL)).read(random_ids(90)), 1e-3)


def peft_model(backbone_folder: Path, config: Any, name: str = "default") -> HMTModel:
    from peft import get_peft_model

    plain = load(backbone_folder, config=SMALL)
    wrapped = get_peft_model(plain.backbone.causal_lm, config, adapter_name=name).eval()
    model = randomize(HMTModel.wrap(wrapped, plain.backbone.tokenizer, SMALL))
    model.backbone.name = str(backbone_folder)
    return model


def test_named_adapters_and_trained_embeddings_travel_too(backbone_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    for name, options in (("mine", {}), ("default", {"modules_to_save": ["embed_tokens"]})):
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options)
        model = peft_model(backbone_folder, lora, name)
        if options:
            with torch.no_grad():
                model.backbone.embedding.weight.add_(0.1)
        model.save_pretrained(tmp_path / name)
        assert same(load(tmp_path / name).read(random_ids(90)), model.read(random_ids(90)), 1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_a_merged_adapter_is_the_same_model(backbone_folder: Path, tmp_path: Path, targets: Any) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False)
    peft_model(backbone_folder, lora).save_pretrained(tmp_path / "one")
    merged, beside = load(tmp_path / "one"), load(tmp_path / "one", merge=False)
    assert merged.backbone.merged is not None and beside.backbone.has_adapter and not merged.backbone.has_adapter
    assert same(merged.read(random_ids(90)), beside.read(random_ids(90)), 1e-5)
    assert fingerprint(merged) == fingerprint(beside)
    assert merged.backbone.identity() == beside.backbone.identity()
    merged.save_pretrained(tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        one, two = (tmp_path / folder / "backbone_adapter" / name for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert fingerprint(load(tmp_path / "two")) == fingerprint(merged)


@pytest.mark.parametrize(
    "more", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 1}}], ids=str
)
def test_an_adapter_that_is_more_than_lora_is_left_to_peft(backbone_folder: Path, tmp_path: Path, more: Any) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **more)
    model = peft_model(backbone_folder, lora)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.backbone.merged is None and again.backbone.has_adapter
    assert same(again.read(random_ids(90)), model.read(random_ids(90)), 1e-6)


def test_a_merged_adapter_needs_no_peft(backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import LoraConfig

    peft_model(backbone_folder, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert load(tmp_path).backbone.merged is not None
    with pytest.raises(MissingDependencyError, match="hmt-memory\\[train\\]"):
        load(tmp_path, merge=False)


@pytest.mark.parametrize("damage", ["torn", "other", "gone"])
def test_a_damaged_adapter_is_named(backbone_folder: Path, tmp_path: Path, damage: str) -> None:
    from peft import LoraConfig

    peft_model(backbone_folder, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    path = tmp_path / "backbone_adapter/adapter_model.safetensors"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "gone":
        path.unlink()
    else:
        save_file({name: value[..., :1].contiguous() for name, value in load_file(path).items()}, path)
    with pytest.raises(CheckpointError, match="backbone_adapter"):
        load(tmp_path)


def test_a_bundled_model_brings_its_adapter(backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = randomize(HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), replace(SMALL, memory_tokens=2)))
    trained.save_pretrained(tmp_path / "adapters/some-model")
    monkeypatch.setattr(places, "ADAPTERS", tmp_path / "adapters")
    monkeypatch.setitem(places.BUNDLED, "some-model", "a-package")
    monkeypatch.setattr(weights, "local_folder", lambda name: backbone_folder)
    by_default, untrained = load(Path("Some-Model")), load(Path("some-model"), adapter="none", config=SMALL)
    assert by_default.is_trained and by_default.config.memory_tokens == 2
    assert not untrained.is_trained and untrained.config.memory_tokens == 1
    assert not load(Path("some-model"), config=SMALL).is_trained
    assert not load(backbone_folder, config=SMALL).is_trained


def test_an_old_adapter_does_not_outlive_the_checkpoint_it_belongs_to(backbone_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft_model(backbone_folder, lora).save_pretrained(tmp_path)
    plain = randomize(load(backbone_folder, config=SMALL))
    plain.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hmt_config.json", "hmt_memory.safetensors"]
    assert same(load(tmp_path).read(random_ids(90)), plain.read(random_ids(90)), 0)


def test_prompt_learning_adapters_are_refused(backbone_folder: Path) -> None:
    from peft import PromptTuningConfig

    with pytest.raises(BackboneError, match="Use LoRA"):
        peft_model(backbone_folder, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


def test_a_checkpoint_finds_its_backbone_from_anywhere(
    backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(backbone_folder.parent)
    model = HMTModel.from_pretrained(backbone_folder.name, config=SMALL, dtype="float32", device="cpu")
    model.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir("/")
    assert load(tmp_path / "adapter").read(random_ids(90)).segments == 5
    edit(tmp_path / "adapter", lambda content: content["backbone"].update(name="/gone/away"))
    with pytest.raises(ModelNotFoundError, match=r"from_pretrained\(model, adapter=folder\)"):
        load(tmp_path / "adapter")
    assert load(backbone_folder, adapter=tmp_path / "adapter").config == model.config


def test_derived_budgets_stay_derived_through_a_checkpoint(backbone_folder: Path, tmp_path: Path) -> None:
    model = load(backbone_folder, config=HMTConfig(segment_length=16, sensory_length=2, summary_length=8))
    model.save_pretrained(tmp_path)
    assert load(tmp_path).with_config(segment_length=64).config == model.with_config(segment_length=64).config


def edit(folder: Path, change: Any) -> None:
    path = folder / "hmt_config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", 64), ("model_type", "gpt2"), ("vocab_size", 9), ("weights_digest", "0" * 16)]
)
def test_another_backbone_is_refused(saved: tuple[HMTModel, Path], key: str, value: Any) -> None:
    edit(saved[1], lambda content: content["backbone"].update({key: value}))
    with pytest.raises(CheckpointError, match=f"its {key} is {value}"):
        load(saved[1])


def test_the_same_architecture_with_other_weights_is_another_backbone(saved: tuple[HMTModel, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_causal_lm(seed=5).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    with pytest.raises(CheckpointError, match="weights_digest"):
        load(other, adapter=saved[1])


def test_precision_does_not_make_another_backbone(saved: tuple[HMTModel, Path]) -> None:
    assert HMTModel.from_pretrained(saved[1], dtype="bfloat16").backbone.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(saved: tuple[HMTModel, Path], size: int) -> None:
    path = saved[1] / "hmt_memory.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved[1])


def test_missing_foreign_misshapen_and_nan_tensors_are_named(saved: tuple[HMTModel, Path]) -> None:
    path = saved[1] / "hmt_memory.safetensors"
    good = load_file(path)
    for tensors, message in (
        ({"lm_head.weight": torch.zeros(2)}, "lacks initial_memory"),
        (good | {"extra": torch.zeros(2)}, "unknown tensors extra"),
        (good | {"initial_memory": torch.zeros(1, 32)}, r"initial_memory is \(1, 32\)"),
        (good | {"summary_prompt": torch.full((1, 32), float("nan"))}, "summary_prompt holds NaN"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            load(saved[1])


def test_damaged_or_foreign_configurations_are_refused(saved: tuple[HMTModel, Path], tmp_path: Path) -> None:
    edit(saved[1], lambda content: content["config"].update(segment_length="x"))
    with pytest.raises(ConfigError, match="segment_length='x'"):
        load(saved[1])
    (saved[1] / "hmt_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved[1])
    (saved[1] / "hmt_config.json").write_text('{"config": ' + "[" * 100_000)
    with pytest.raises(CheckpointError, match="damaged"):
        load(saved[1])
    for content in ('{"a": 1}', "[]", '{"config": [], "backbone": {}}', '{"config": {}, "backbone": "x"}'):
        (saved[1] / "hmt_config.json").write_text(content)
        with pytest.raises(CheckpointError, match="lacks 'config' or 'backbone'"):
            load(saved[1])
    with pytest.raises(CheckpointError, match="is a file"):
        saved[0].save_pretrained(saved[1] / "hmt_config.json")
    with pytest.raises(ModelNotFoundError, match="no adapter folder"):
        load(saved[1], adapter=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it has no hmt_config"):
        load(saved[1].parent / "adapter", adapter=tmp_path)


def test_what_a_newer_version_has_added_is_named_and_left_out(saved: tuple[HMTModel, Path]) -> None:
    edit(saved[1], lambda content: content["config"].update(forgetting="slow"))
    with pytest.warns(UserWarning, match=r"does not know forgetting and loads without\. Update hmt-memory"):
        assert load(saved[1]).config == saved[0].config


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded and nothing made: what is wrong shows before."""

    def never(*_args: Any, **_options: Any) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr(weights, "load", never)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"recall_dim": 30_000_000}, r"recall_dim=30000000 must be at most"),
        ({"recall_dim": 1_000_000}, r"recall.query.weight is \(32, 32\), the configuration says \(1000000, 32\)"),
        ({"memory_tokens": 1_000_000}, r"initial_memory is \(2, 32\), the configuration says \(1000000, 32\)"),
        *(
            ({name: 10**9}, f"{name}=1000000000 must be at most")
            for name in ("segment_length", "recall_window", "memory_tokens")
        ),
        *(({name: 10**9}, f"{name}=1000000000 must be at most") for name in ("recall_dim", "summary_length", "recent_tokens")),
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused_before_anything_is_made(
    saved: tuple[HMTModel, Path], sizes: dict[str, int], message: str, unread: None
) -> None:
    edit(saved[1], lambda content: content["config"].update(sizes))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load(saved[1])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{{{{",
        b"\xff\xfe",
        b"[]",
        b'{"a":' + b"[" * 100_000,
        {"shape": [10**9, 32]},
        {"shape": [2**40, 2**40]},
        {"shape": [-1]},
        {"dtype": "X9"},
        {"data_offsets": [8, 0]},
        {"data_offsets": [0, 10**12]},
    ],
    ids=lambda header: str(header)[:30],
)
def test_a_hostile_header_is_refused(saved: tuple[HMTModel, Path], header: Any, unread: None) -> None:
    content = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | header if isinstance(header, dict) else None
    written = header if content is None else json.dumps({"summary_prompt": content}).encode()
    for length in (len(written), 1 << 60):
        (saved[1] / "hmt_memory.safetensors").write_bytes(length.to_bytes(8, "little") + written + b"\0" * 8)
        with pytest.raises(CheckpointError, match="damaged"):
            load(saved[1])


def test_tensors_of_no_rows_or_no_floats_are_refused(saved: tuple[HMTModel, Path]) -> None:
    path = saved[1] / "hmt_memory.safetensors"
    good = load_file(path)
    for tensors, message in (
        (good | {"recall.query.weight": torch.zeros(10**9, 0)}, "is .1000000000, 0."),
        (good | {"summary_prompt": torch.tensor(1.0)}, "summary_prompt is "),
        (good | {"summary_prompt": torch.zeros(1, 32, dtype=torch.int64)}, "no floating-point numbers"),
        (good | {"memory_input.gain": torch.zeros(1, dtype=torch.float8_e5m2)}, "no floating-point numbers"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            load(saved[1])


def lora_folder(backbone_folder: Path, folder: Path, **options: Any) -> Path:
    from peft import LoraConfig

    peft_model(backbone_folder, LoraConfig(r=2, target_modules=["q_proj"], **options)).save_pretrained(folder)
    return folder / "backbone_adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, r"r=1000000000, but no tensor of .* is larger than 2"),
        ({"r": 3}, "r=3, but no tensor"),
        ({"r": 1}, "of rank r=1"),
        ({"r": "2"}, "of rank r=2"),
        ({"r": None}, "of rank r=None"),
        ({"lora_alpha": "x"}, "does not load"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan is no number"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern=1000000000"),
        ({"use_dora": True, "r": 10**9}, "r=1000000000"),
        ({"peft_type": "VERA", "r": 10**9}, "r=1000000000"),
        ({"peft_type": "XLORA", "adapters": {"1": "some/other"}}, "peft_type='XLORA' is not loaded"),
        ({"peft_type": "SHADOW", "shadow_model": "some/other"}, "peft_type='SHADOW' is not loaded"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}, "is not loaded. Use LORA"),
        ({"peft_type": ["LORA"]}, "is not loaded"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_config names code to import"),
    ],
    ids=str,
)
def test_an_adapter_is_no_more_than_its_tensors(
    backbone_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = lora_folder(backbone_folder, tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=f"backbone_adapter does not load: .*{message}|{message}"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", "{" + '"a":[' * 100_000, "7"], ids=lambda content: content[:4])
def test_a_damaged_configuration_of_an_adapter_is_named(backbone_folder: Path, tmp_path: Path, content: str) -> None:
    (lora_folder(backbone_folder, tmp_path) / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="backbone_adapter does not load"):
        load(tmp_path)


def test_tensors_of_an_adapter_that_fit_nothing_are_refused(backbone_folder: Path, tmp_path: Path) -> None:
    path = lora_folder(backbone_folder, tmp_path) / "adapter_model.safetensors"
    good = load_file(path)
    low = next(name for name in good if "lora_A" in name)
    for tensor in (torch.zeros(10**9, 0), torch.zeros(64), torch.zeros(2, 32, dtype=torch.int64), torch.zeros(2, 31)):
        save_file(good | {low: tensor}, path)
        with pytest.raises(CheckpointError, match="backbone_adapter does not load"):
            load(tmp_path)


def test_an_adapter_that_is_a_pickle_is_refused(backbone_folder: Path, tmp_path: Path) -> None:
    files = lora_folder(backbone_folder, tmp_path)
    torch.save(load_file(files / "adapter_model.safetensors"), files / "adapter_model.bin")
    (files / "adapter_model.safetensors").unlink()
    for merge in (True, False):
        with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle, which can run code and is not loaded"):
            load(tmp_path, merge=merge)


def test_an_adapter_of_another_kind_travels_too(backbone_folder: Path, tmp_path: Path) -> None:
    from peft import IA3Config, LoHaConfig, LoKrConfig, VeraConfig

    for config in (
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
        LoHaConfig(r=3, target_modules=["q_proj"], init_weights=False),
        LoKrConfig(r=64, target_modules=["q_proj"], init_weights=False),
        VeraConfig(r=40, target_modules=["q_proj"], init_weights=False),
    ):
        model = peft_model(backbone_folder, config)
        model.save_pretrained(tmp_path)
        assert same(load(tmp_path).read(random_ids(90)), model.read(random_ids(90)), 1e-6)


def test_a_failed_save_leaves_the_old_checkpoint(saved: tuple[HMTModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    model, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    randomize(model, seed=7)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_saving_again_does_not_touch_a_file_that_is_being_read(saved: tuple[HMTModel, Path]) -> None:
    model, folder = saved
    path = folder / "hmt_memory.safetensors"
    before = path.read_bytes()
    with path.open("rb") as reader:
        randomize(model, seed=7).save_pretrained(folder)
        assert reader.read() == before != path.read_bytes()


def test_defaults_are_saved_resolved(backbone_folder: Path, tmp_path: Path) -> None:
    load(backbone_folder, config=HMTConfig(segment_length=16, sensory_length=2)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "hmt_config.json").read_text())["config"]["summary_length"] == 8


def test_an_adapter_tells_nothing_of_the_machine(backbone_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = HMTModel.from_pretrained(backbone_folder, config=SMALL)
    causal_lm = get_peft_model(plain.backbone.causal_lm, LoraConfig(r=2, target_modules="all-linear"))
    backbone = Backbone(causal_lm, plain.backbone.tokenizer, name="some-model")
    HMTModel(backbone, SMALL).save_pretrained(tmp_path / "adapter")
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        *("hmt_config.json", "hmt_memory.safetensors", "adapter_config.json", "adapter_model.safetensors")
    }
    assert not any(str(tmp_path.parent).encode() in path.read_bytes() for path in files)
    held = json.loads((tmp_path / "adapter/backbone_adapter/adapter_config.json").read_text())
    assert held["base_model_name_or_path"] == "some-model"
