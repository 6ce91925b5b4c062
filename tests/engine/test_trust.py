"""A folder of somebody else's runs no code, is no pickle, and asks nobody for leave."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from places import SUPPORT
from safetensors.torch import load_file
from scripts import run_script
from tiny import SMALL, byte_tokenizer, random_ids, tiny_causal_lm

from hmt_memory import HMTModel
from hmt_memory.engine import trust, weights
from hmt_memory.engine.backbone import Backbone
from hmt_memory.errors import BackboneError, InputError, ModelNotFoundError

CODE = """
from pathlib import Path
Path({mark!r}).write_text("imported")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


def change(path: Path, **values: Any) -> None:
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({name: value for name, value in (held | values).items() if value is not None}))


def own_configuration(folder: Path) -> None:
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change(folder / "config.json", model_type="own-llama", auto_map=classes)


def own_model(folder: Path) -> None:
    change(folder / "config.json", model_type="vit", auto_map={"AutoModelForCausalLM": "own.OwnModel"})


def own_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=None, auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})


def own_tokenizer_in_another(folder: Path) -> None:
    """transformers' RagTokenizer loads two others, and hands no argument on to them."""
    change(folder / "config.json", question_encoder={"model_type": "llama"}, generator={"model_type": "llama"})
    change(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    inner = folder / "question_encoder_tokenizer"
    change(inner / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
    shutil.copy(folder / "own.py", inner)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there once the code of a folder has run."""
    return tmp_path / "mark"


@pytest.fixture
def folder(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that brings code, and a person who says yes to everything."""
    from transformers import dynamic_module_utils

    folder = tmp_path / "model"
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return folder


def load(folder: Path, **options: Any) -> HMTModel:
    options = {"config": SMALL} | options
    return HMTModel.from_pretrained(folder, dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("kind", [own_configuration, own_model, own_tokenizer])
def test_a_folder_that_needs_its_own_code_is_refused(kind: Callable[[Path], None], folder: Path, mark: Path) -> None:
    kind(folder)
    for options in ({}, {"trust_remote_code": None}, {"trust_remote_code": "yes"}):
        with pytest.raises(BackboneError, match=r"code of its own.*not run.*trust_remote_code=True"):
            load(folder, **options)
    assert not mark.exists()


def test_a_tokenizer_inside_a_tokenizer_asks_nobody_either(folder: Path, mark: Path) -> None:
    from transformers import AutoTokenizer

    own_tokenizer_in_another(folder)
    with trust.nothing_asked(), pytest.raises(ValueError) as refused:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert "code of its own" in str(trust.needs_code(folder, refused.value))
    with pytest.raises(ModelNotFoundError):
        load(folder)
    assert not mark.exists()


def test_an_adapter_that_names_such_a_model_is_refused(folder: Path, mark: Path, tmp_path: Path) -> None:
    load(folder).save_pretrained(tmp_path / "adapter")
    own_configuration(folder)
    with pytest.raises(BackboneError, match="code of its own"):
        load(tmp_path / "adapter", config=None)
    assert not mark.exists()


def test_code_that_the_library_has_itself_is_used_instead(folder: Path, mark: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"})
    assert load(folder).read(random_ids(40)).segments == 2 and not mark.exists()


@pytest.mark.parametrize("kind", [own_configuration, own_tokenizer])
def test_a_caller_may_trust_a_folder(kind: Callable[[Path], None], folder: Path, mark: Path) -> None:
    kind(folder)
    model = load(folder, trust_remote_code=True)
    assert mark.exists() and model.read("Some text, and more of it.").tokens == 26


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["y\nhello\n", "y\n" * 50], ids=["once", "always"])
def test_a_chat_does_not_take_what_is_typed_for_leave(typed: str, folder: Path, mark: Path, tmp_path: Path) -> None:
    own_tokenizer(folder)
    arguments = ("chat", "--model", str(folder), "--device", "cpu")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HMT_STORE": str(tmp_path / "store")}
    done = run_script(SUPPORT / "hmt_command.py", *arguments, environment=environment, typed=typed)
    assert done.returncode == 1 and not mark.exists()
    assert "code of its own" in done.stderr and "Do you wish" not in done.stdout + done.stderr


def test_what_lies_beside_a_gguf_file_is_not_read(folder: Path, mark: Path, tmp_path: Path) -> None:
    own_tokenizer(folder)
    change(folder / "adapter_config.json", base_model_name_or_path="some/other")
    (folder / "a.gguf").write_bytes(b"GGUF")
    seen: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_from_gguf", lambda file: seen.append(os.listdir(file.parent)) or (None, None))
        patch.setenv("HMT_CACHE", str(tmp_path / "cache"))
        with pytest.raises(AttributeError):  # there is no model to save
            weights.convert_gguf(folder / "a.gguf")
    assert seen == [["a.gguf"]] and not mark.exists()


def test_transformers_asks_others_again_when_the_last_load_is_done() -> None:
    from transformers import dynamic_module_utils as rules

    before, inside, leave = rules.TIME_OUT_REMOTE_CODE, threading.Event(), threading.Event()

    def longer() -> None:
        with trust.nothing_asked():
            inside.set(), leave.wait(30)

    other = threading.Thread(target=longer)
    with trust.nothing_asked():
        other.start(), inside.wait(30)
    assert rules.TIME_OUT_REMOTE_CODE == 0 != before
    leave.set(), other.join()
    assert before == rules.TIME_OUT_REMOTE_CODE


# --- pickles ------------------------------------------------------------------------------------------------------------


class Harm:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.write_text, (self.mark, "unpickled")


def only_a_pickle(folder: Path, harm: Harm) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": harm}, folder / "pytorch_model.bin")


def a_harmless_pickle(folder: Path, harm: Harm) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def a_pickle_in_an_index(folder: Path, harm: Harm) -> None:
    named = dict.fromkeys(load_file(folder / "model.safetensors"), "part.bin")
    (folder / "model.safetensors").unlink()
    change(folder / "model.safetensors.index.json", metadata={}, weight_map=named)
    torch.save({"model.norm.weight": harm}, folder / "part.bin")


def a_pickle_in_the_configuration(folder: Path, harm: Harm) -> None:
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    torch.save({"model.norm.weight": harm}, folder / "adapter_model.bin")


@pytest.mark.parametrize("kind", [only_a_pickle, a_harmless_pickle, a_pickle_in_an_index, a_pickle_in_the_configuration])
def test_a_model_that_is_a_pickle_is_refused(kind: Callable[[Path, Harm], None], folder: Path, mark: Path) -> None:
    kind(folder, Harm(mark))
    with pytest.raises(BackboneError, match=r"a pickle, which can run code and is not loaded\. Get them as safetensors"):
        load(folder)
    assert not mark.exists()


def test_a_caller_may_load_a_pickle_of_tensors(folder: Path, mark: Path) -> None:
    a_harmless_pickle(folder, Harm(mark))
    assert load(folder, use_safetensors=False).read(random_ids(40)).segments == 2


def test_a_model_with_an_adapter_beside_its_weights_is_refused(folder: Path) -> None:
    change(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="some/other")
    with pytest.raises(BackboneError, match="merge_and_unload"):
        load(folder)


# --- templates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ (messages | attr('__class__')).__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('true') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_chat_template_reaches_nothing_of_python(template: str) -> None:
    backbone = Backbone(tiny_causal_lm(), byte_tokenizer(template), name="m")
    try:
        rendered = backbone.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except InputError as error:
        assert "the chat template of m refused" in str(error)
    else:
        assert rendered == ""  # what the sandbox hides is nothing
