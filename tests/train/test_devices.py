"""Training on several devices: two processes do what one does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from devices_worker import FEW_STEPS, RECIPE, begin, recorded, signalled
from places import SUPPORT
from processes import start
from safetensors.torch import load_file
from scripts import run_script

from hmt_memory.engine.compiled import compile_blocks
from hmt_memory.engine.sharded import shard_blocks
from hmt_memory.errors import BackboneError, CheckpointError, ConfigError
from hmt_memory.train import prepare, projections
from hmt_memory.train.devices import Devices, sharding

pytestmark = pytest.mark.slow  # each starts processes that train


def together(script: Path, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """Run a script in two processes that find each other."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}

    def process(number: str) -> subprocess.CompletedProcess[str]:
        place = os.environ | shared | {"RANK": number, "LOCAL_RANK": number, "GLOO_SOCKET_IFNAME": "lo"}
        return run_script(script, *arguments, environment=place, timeout=400)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(process, "01"))


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """Fit recall in as many steps as the processes do."""
    with mock.patch.object(projections, "_STEPS", FEW_STEPS):
        yield


class Runs(NamedTuple):
    folder: Path
    ended: list[subprocess.CompletedProcess[str]]
    model: str
    data: list[str]


@pytest.fixture(scope="module")
def runs(layered: str, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of one recipe: alone; and of two processes, some of which go on from what one has left."""
    folder = tmp_path_factory.mktemp("devices")
    letters = random.Random(0)
    data = [str(folder / name) for name in ("a.txt", "b.txt")]
    for name in data:
        Path(name).write_text("".join(letters.choice("abcdefgh .") for _ in range(3000)))
    with recorded(folder, "alone"):
        alone = begin(layered, data, folder / "alone")
        list(alone.run(until=2))
        for name in ("joined", "left"):
            shutil.copytree(folder / "alone", folder / name)
        list(alone.run())
    return Runs(folder, together(SUPPORT / "devices_worker.py", layered, str(folder), *data), layered, data)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = load_file(folder / "adapter/backbone_adapter/adapter_model.safetensors")
    return {**load_file(folder / "adapter/hmt_memory.safetensors"), **adapter}


def assert_same_run(one: Path, other: Path) -> None:
    torch.testing.assert_close(weights_of(one), weights_of(other), rtol=1e-3, atol=1e-5)
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (one, other)]
    for lines in zip(*logs, strict=True):
        first, second = (
            {key: value for key, value in line.items() if "second" not in key and value is not None} for line in lines
        )
        assert first == pytest.approx(second, rel=1e-3)


def test_two_processes_take_the_rows_of_one_without_overlap(runs: Runs) -> None:
    alone = json.loads((runs.folder / "alone.json").read_text())
    shares = [
        [rows for name in ("begun", "joined") for rows in json.loads((runs.folder / f"{name}-{number}.json").read_text())]
        for number in "01"
    ]
    assert [len(rows) for rows in alone] == [1, 1, 3, 3]
    assert [[len(rows) for rows in share] for share in shares] == [[1, 1], [1, 1, 2, 2]]
    assert sorted(row for rows in alone for row in rows) == sorted(row for share in shares for rows in share for row in rows)


def test_their_gradients_are_those_of_one(runs: Runs) -> None:
    alone = load_file(runs.folder / "alone.safetensors")
    for name, first in (("begun", 0), ("joined", 2)):
        for number in "01":
            taken = load_file(runs.folder / f"{name}-{number}.safetensors")
            moved = {f"{int(key.split('/')[0]) + first}/{key.split('/')[1]}": value for key, value in taken.items()}
            expected = {key: value for key, value in alone.items() if int(key.split("/")[0]) in (first, first + 1)}
            torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-5)


def test_one_stops_all_with_a_checkpoint_from_which_one_goes_on(runs: Runs) -> None:
    assert [path.name for path in (runs.folder / "begun/checkpoints").iterdir()] == ["step-000002"]
    list(begin(runs.model, runs.data, runs.folder / "begun").run())
    assert_same_run(runs.folder / "begun", runs.folder / "alone")


def test_two_go_on_from_what_one_left(runs: Runs) -> None:
    assert_same_run(runs.folder / "joined", runs.folder / "alone")


def test_a_divided_backbone_trains_the_same_adapter(runs: Runs) -> None:
    assert_same_run(runs.folder / "divided", runs.folder / "alone")
    parts = [json.loads((runs.folder / f"parts-{number}.json").read_text()) for number in "01"]
    assert parts[0] == parts[1] and set(parts[0].values()) == {0.5} and len(parts[0]) == 18
    one, other = (json.loads((runs.folder / name / "adapter/hmt_config.json").read_text()) for name in ("divided", "alone"))
    assert one["backbone"] == other["backbone"] and one["backbone"]["weights_digest"]


def test_a_process_that_dies_ends_the_other_with_a_message_and_a_checkpoint(runs: Runs) -> None:
    first, second = runs.ended
    assert (first.returncode, second.returncode) == (0, 9), first.stderr + second.stderr
    assert first.stdout.startswith("another process of this run has ended") and "last checkpoint" in first.stdout
    assert begin(runs.model, runs.data, runs.folder / "left").step == 2


class Process(NamedTuple):
    process_index: int
    num_processes: int


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("items", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("in_step", [True, False])
def test_each_item_counts_in_one_process(processes: int, items: int, in_step: bool) -> None:
    every: Any = [Devices(Process(number, processes), in_step=in_step) for number in range(processes)]  # type: ignore[arg-type]
    shares = [each.share(list(range(items))) for each in every]
    assert [item for share in shares for item, counts in share if counts] == list(range(items))
    lengths = {len(share) for share in shares}
    assert max(lengths) - min(lengths) <= (0 if in_step else 1)


def test_processes_that_see_different_checkpoints_say_so(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "sum", lambda self, values: [7.0])
    with pytest.raises(CheckpointError, match="where all see it"):
        begin(runs.model, runs.data, tmp_path / "run")


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="fsdp_version: 2"):
        sharding()


def test_a_backbone_that_learns_is_not_divided(plain: str) -> None:
    model = prepare(plain, replace(RECIPE, lora_rank=0, stages=RECIPE.stages[:1]), dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match="lora_rank"):
        shard_blocks(model, torch.device("cpu"))
    model.backbone.sharded = True
    with pytest.raises(BackboneError, match="--compile"):
        compile_blocks(model.backbone)


@pytest.mark.parametrize(("presses", "number"), [(1, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT)])
def test_a_signal_ends_a_run_with_a_checkpoint_and_a_second_at_once(
    plain: str, tmp_path: Path, presses: int, number: int
) -> None:
    (tmp_path / "a.txt").write_text("some text to read " * 100)
    recipe = replace(RECIPE, stages=(replace(RECIPE.stages[0], steps=3),), recall_questions=0)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    given = ["--recipe", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "run"), "--model", plain, "--device", "cpu"]
    process = start(
        signalled, [str(tmp_path / "a.txt"), *given, "--dtype", "float32"], presses, int(number), tmp_path / "said.txt"
    )
    process.join(100)
    assert process.exitcode == 128 + number
    said, kept = (tmp_path / "said.txt").read_text(), [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
    assert "Stopping after this step." in said
    assert ("Stopped after step 1 of 3" in said) == (presses == 1) and kept == ["step-000001"] * (presses == 1)
