"""Training started by `accelerate launch` itself, as the guide and the example of its configuration say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices_worker import RECIPE
from places import ROOT, SUPPORT
from safetensors.torch import load_file
from terminal_input import run

pytestmark = pytest.mark.slow  # each starts processes that train

SHORT = replace(RECIPE, stages=(replace(RECIPE.stages[0], steps=2),), recall_questions=0)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = load_file(folder / "adapter/backbone_adapter/adapter_model.safetensors")
    return {**load_file(folder / "adapter/hmt_memory.safetensors"), **adapter}


@pytest.fixture(scope="module")
def given(layered: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What `hmt train` is given, but for the folder of the run."""
    folder = tmp_path_factory.mktemp("launching")
    (folder / "a.txt").write_text("the quick brown fox jumps over the lazy dog " * 60)
    (folder / "recipe.json").write_text(SHORT.to_json())
    command = ["train", str(folder / "a.txt"), "--recipe", str(folder / "recipe.json"), "--model", layered]
    return [*command, "--device", "cpu", "--dtype", "float32", "--out"]


@pytest.fixture(scope="module")
def alone(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that one process makes."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert run(*given, str(out)) == 0
    return weights_of(out)


@pytest.mark.parametrize(
    ("options", "sharded"),
    [(["--multi_gpu"], 0), (["--config_file", str(ROOT / "docs/examples/fsdp.yaml")], 1)],
    ids=["copies", "parts"],
)
def test_launched_processes_train_the_adapter_of_one(
    given: list[str], alone: dict[str, torch.Tensor], tmp_path: Path, options: list[str], sharded: int
) -> None:
    port = str(20_000 + os.getpid() % 20_000)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    launcher += ["--num_processes", "2", "--main_process_port", port, str(SUPPORT / "launched_worker.py"), str(tmp_path)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "HF_HOME": str(tmp_path / "none")}
    done = subprocess.run(
        [*launcher, *given, str(tmp_path / "run")], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert told == [{"processes": 2, "sharded": sharded}] * 2
    torch.testing.assert_close(weights_of(tmp_path / "run"), alone, rtol=1e-3, atol=1e-5)
