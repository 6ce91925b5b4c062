"""What is told of a model from its files alone: what must be another one is known before anything is loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import SMALL, byte_tokenizer, randomize, tiny_causal_lm

from hmt_memory import HMTConfig, HMTModel
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.engine.fingerprint import fingerprint
from hmt_memory.engine.outline import difference, sources
from hmt_memory.errors import CheckpointError, ModelNotFoundError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapter(backbone: Path, folder: Path, config: HMTConfig = SMALL, *, seed: int = 1) -> Path:
    """A checkpoint with random memory parameters."""
    randomize(HMTModel.from_pretrained(backbone, config=config, dtype="float32", device="cpu"), seed).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_does_not_differ_from_itself(dtype: str, backbone: Path, chatty: str, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "adapter", replace(SMALL, memory_tokens=2, recalled_tokens=1))
    parts = fingerprint(HMTModel.from_pretrained(backbone, adapter=folder, dtype=dtype, device="cpu")).parts
    assert difference(sources(str(backbone), folder), parts) is difference(sources(str(folder), None), parts) is None
    assert difference(sources(str(backbone), "none"), parts) == "its segment_length is 256, not 16"
    untrained = fingerprint(HMTModel.from_pretrained(chatty, dtype=dtype, device="cpu")).parts
    assert difference(sources(chatty, None), untrained) is None


def test_another_model_differs(backbone: Path, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "adapter")
    parts = fingerprint(HMTModel.from_pretrained(folder, dtype="float32", device="cpu")).parts
    other = adapter(backbone, tmp_path / "other", replace(SMALL, recall_window=7))
    assert difference(sources(str(backbone), other), parts) == "its recall_window is 7, not 5"
    retrained = adapter(backbone, tmp_path / "retrained", seed=2)
    assert "its memory was trained otherwise" in str(difference(sources(str(backbone), retrained), parts))
    shutil.copytree(backbone, tmp_path / "deeper")
    config = json.loads((backbone / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    assert difference(sources(str(tmp_path / "deeper"), folder), parts) == "its num_hidden_layers is 9, not 2"
    assert difference(sources(DEFAULT_MODEL, None), parts)


def test_what_the_files_do_not_say_is_left_to_loading(backbone: Path, tmp_path: Path) -> None:
    folder = adapter(backbone, tmp_path / "adapter")
    parts = fingerprint(HMTModel.from_pretrained(folder, dtype="float32", device="cpu")).parts
    shutil.copytree(backbone, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("{")
    assert difference(sources(str(tmp_path / "odd"), folder), parts) is None
    (folder / "hmt_memory.safetensors").write_bytes(b"torn")
    assert difference(sources(str(backbone), folder), parts) is None


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no adapter folder"):
        sources(DEFAULT_MODEL, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="not an HMT checkpoint"):
        difference(sources("some/model", tmp_path), {"backbone": {}, "config": {}, "memory": None})
    assert sources(DEFAULT_MODEL, None).adapter is not None and sources(DEFAULT_MODEL, "none").adapter is None
