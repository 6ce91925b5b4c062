"""`make gpu` where there is no GPU: which pieces run, what is kept of them, the report, and each piece in tiny sizes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faiss_gpu import FakeFaiss
from places import ROOT
from typer.testing import CliRunner

from hmt_kernels import naive
from hmt_memory.cli.command import app
from hmt_memory.store.index import devices, gpu

DRY = ("--device", "cpu", "--small")
# Stands in for gpu_pieces.py: writes that it ran, then does what its piece is named for.
SCRIPT = """
import json, os, pathlib, subprocess, sys, time
job = json.loads(sys.argv[1])
out = pathlib.Path(job["out"])
ran = out / (job["name"] + ".ran")
ran.write_text(ran.read_text() + "x" if ran.exists() else "x")
record = {"name": job["name"], "state": "done", "reason": None, "notes": ["noted"], "settings": {"key": job["limit"]}}
record["tables"] = [{"title": "table", "columns": ["what"], "rows": [[1.5]]}]
if job["name"] == "raises":
    sys.exit("broken")
if job["name"] == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(60)
if job["name"] == "in parts" and len(ran.read_text()) < 3:
    record |= {"state": "unfinished", "reason": "in the middle", "progress": len(ran.read_text())}
if job["name"] == "stuck":
    record |= {"state": "unfinished", "reason": "at the start", "progress": 0}
if job["name"] == "skips":
    record |= {"state": "skipped", "reason": "no data"}
(out / (job["name"] + ".json")).write_text(json.dumps(record))
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the command, where it finds the others."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture
def pieces(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make stand-ins of these names the pieces; what is returned runs the command on them."""
    script = tmp_path / "piece.py"
    script.write_text(SCRIPT)

    def run(names: Sequence[str], *options: str) -> int:
        made = tuple(bench.Piece(name, f"what {name} measures", script) for name in names)
        monkeypatch.setattr(bench, "PIECES", made)
        return int(bench.main([*DRY, "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results"), *options]))

    return run


def ran(folder: Path, name: str) -> int:
    return len((folder / "out" / f"{name}.ran").read_text())


def states(folder: Path) -> dict[str, str]:
    report = json.loads((folder / "out" / "gpu.json").read_text())
    return {row[0]: row[1] for row in report["tables"][0]["rows"]}


# --- the command --------------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_pieces_are_listed_and_nothing_is_written(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "has_gpu", lambda: False)
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--list"], ["--data", "texts", "--only", "kernels"]):
        assert bench.main(arguments) == 0
        shown = capsys.readouterr().out
        assert "no CUDA GPU" in shown and len(bench.PIECES) == 6
        for piece in bench.PIECES:
            assert piece.measures in shown and f"--only {piece.name}" in shown
    assert not list(tmp_path.iterdir())


def test_a_cpu_is_for_dry_runs_alone(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--device", "cpu"])
    assert "add --small" in capsys.readouterr().err


def test_a_piece_fails_alone_and_only_what_is_not_done_runs_again(pieces: Any, tmp_path: Path) -> None:
    names = ["raises", "good", "skips"]
    assert pieces(names) == 1
    assert states(tmp_path) == {"raises": "failed", "good": "done", "skips": "skipped"}
    assert pieces(names) == 1
    assert [ran(tmp_path, name) for name in names] == [2, 1, 2]
    assert pieces(names, "--only", "good", "--again", "good") == 0 and ran(tmp_path, "good") == 2
    assert pieces(names, "--recipe", "another", "--only", "good") == 0 and ran(tmp_path, "good") == 3, "of other settings"
    assert not (tmp_path / "results").exists(), "a dry run claims nothing"


def test_a_piece_that_takes_several_sittings_goes_on_while_it_gets_on(pieces: Any, tmp_path: Path) -> None:
    names = ["in parts", "stuck"]
    assert pieces(names, "--once", "--only", "in parts") == 0
    assert states(tmp_path) == {"in parts": "unfinished", "stuck": "not run yet"} and ran(tmp_path, "in parts") == 1
    assert pieces(names) == 1
    assert states(tmp_path) == {"in parts": "done", "stuck": "failed"}
    assert ran(tmp_path, "in parts") == 3 and ran(tmp_path, "stuck") == 1


def test_a_piece_that_takes_too_long_is_ended_with_all_it_has_started(pieces: Any, tmp_path: Path) -> None:
    assert pieces(["hangs", "good"], "--limit", "1.5") == 1
    assert states(tmp_path) == {"hangs": "failed", "good": "done"}
    assert "stopped after 2 s" in (tmp_path / "out" / "gpu.md").read_text()
    child = int((tmp_path / "out" / "child").read_text())
    for _ in range(50):
        if not running(child):
            return
        time.sleep(0.1)
    pytest.fail("what it started still runs")


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_report_has_all_numbers_and_the_machine(pieces: Any, tmp_path: Path) -> None:
    assert pieces(["good", "raises"], "--limit", "20") == 1
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert set(report) == {"name", "title", "settings", "tables", "figures", "notes", "environment"}
    assert {"device", "GPU memory", "driver", "CUDA", "torch", "triton", "faiss", "transformers"} < set(report["environment"])
    assert [table["title"] for table in report["tables"]] == ["Pieces", "good: table"]
    assert report["settings"]["good, key"] == 20 and "good: noted" in report["notes"]
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "ended with 1; see" in page and "the numbers mean nothing" in page


def test_a_piece_is_called_as_its_script_expects(bench: Any, tmp_path: Path) -> None:
    """The real one that needs no model here."""
    assert bench.main([*DRY, "--out", str(tmp_path / "out"), "--only", "perplexity"]) == 0
    report = (tmp_path / "out" / "gpu.md").read_text()
    assert "| perplexity | skipped |" in report and "training is not complete" in report


# --- the pieces, in tiny sizes ------------------------------------------------------------------------------------------


class Dry:
    """Runs pieces in this process."""

    def __init__(self, folder: Path) -> None:
        self.module: Any = importlib.import_module("gpu_pieces")
        self.folder = folder

    def __call__(self, name: str, **changed: Any) -> dict[str, Any]:
        given = {"name": name, "device": "cpu", "small": True, "limit": 60, "data": None, "recipe": "paper"} | changed
        sys.argv = ["gpu_pieces.py", json.dumps(given | {"out": str(self.folder)})]
        self.code = self.module.main()
        record: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return record


@pytest.fixture
def dry(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dry:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.syspath_prepend(ROOT / "tests" / "support")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found(name, *more))
    return Dry(tmp_path)


def test_tests_are_counted(dry: Dry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_some.py"
    file.write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('why')\n")
    monkeypatch.setattr(dry.module, "FEW_TESTS", (str(file),))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts faster
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    record = dry("tests")
    assert record["state"] == "failed" and record["reason"] == "1 tests failed" and dry.code == 0
    assert record["tables"][0]["rows"][0][1:] == [1, 1, 1]
    assert any("test_b" in note for note in record["notes"]) and "skipped: why" in record["notes"]


def test_kernels_are_checked_and_then_timed(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    record = dry("kernels")
    errors, speeds = record["tables"]
    assert record["state"] == "done" and len(errors["rows"]) == 6 and len(speeds["rows"]) == 6
    assert all(max(row[3:8]) <= row[8] for row in errors["rows"]) and all(min(row[3:]) > 0 for row in speeds["rows"])
    assert not any("goal" in note for note in record["notes"]), "a dry run reaches no goal"

    def wrong(*args: Any, **options: Any) -> naive.Recall:
        found = naive.recall(*args, **options)
        return found._replace(output=found.output * 1.02)

    module = importlib.import_module("gpu_kernels")
    broken = SimpleNamespace(recall=wrong, recall_shared=module.shared_naively)
    monkeypatch.setattr(module, "implementation", lambda _: ("broken", broken))
    record = dry("kernels")
    assert dry.code == 1 and "the kernels are wrong: float32 of width 20, 2 queries;" in record["reason"]
    assert len(record["tables"]) == 1, "what is wrong is not timed"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_an_index_is_searched_and_grown(on_gpu: bool, dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFaiss(pytest.importorskip("faiss"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    if on_gpu:
        monkeypatch.setitem(sys.modules, "faiss", fake)
        monkeypatch.setattr(torch.cuda, "mem_get_info", fake.mem_get_info)
        process = devices._Process()
        for module in (devices, gpu):
            monkeypatch.setattr(module, "process", process)
    record = dry("index")
    assert record["state"] == "done", record
    rows = record["tables"][0]["rows"]
    assert [row[0] for row in rows] == [100] * (2 + on_gpu) + [200] * (2 + on_gpu)
    names = [row[1] for row in rows[: 2 + on_gpu]]
    assert names == [*["faiss GPU Flat fp16"] * on_gpu, "CPU, faiss SQfp16", "the kernel, plain torch"] and not fake.broken
    if on_gpu:
        width = importlib.import_module("gpu_kernels").TINY
        assert rows[0][5] == 4 * width * 4, "what is new is uploaded, and nothing else"


@pytest.mark.slow
def test_reading_is_measured_beside_transformers(dry: Dry) -> None:
    record = dry("reading")
    assert record["state"] == "done", record
    met, beside = record["tables"]
    assert [row[1] for row in beside["rows"]] == ["transformers", "the engine, all visible", "HMT, reading the prompt"]
    assert [row[4] for row in beside["rows"]] == [4, 4, None] and len(met["rows"]) == 8
    assert all(row[1] > 0 for row in met["rows"])


@pytest.mark.slow
def test_training_is_stopped_goes_on_and_is_measured(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; the command is ended in its first sitting."""
    asked: list[list[str]] = []

    def hmt(arguments: list[str], until: float | None, device: str) -> tuple[int | None, int]:
        asked.append(arguments)
        return (None, 0) if len(asked) == 1 else (CliRunner().invoke(app, arguments).exit_code, 0)

    monkeypatch.setattr(dry.module, "_hmt", hmt)
    assert dry("training", small=False)["reason"] == "no --data was given"
    assert dry("perplexity")["reason"] == "training is not complete"
    first = dry("training")
    assert first["state"] == "unfinished" and first["reason"] == "0 of 4 steps" and first["progress"] == 0
    second = dry("training")
    assert second["state"] == "done" and second["progress"] == 4 and asked[0] == asked[1], second
    assert [row[1:3] for row in second["tables"][0]["rows"]] == [[2, 2], [2, 2]]
    third = dry("perplexity")
    assert third["state"] == "done" and third["tables"][0]["title"] == "All tokens", third
    recipe = json.loads((dry.folder / "training" / "given.json").read_text())
    assert [stage["segments"] for stage in recipe["stages"]] == [2, 3]


def test_the_command_is_ended_when_its_time_is_up(dry: Dry, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun = dry.module.subprocess.Popen, []

    def endless(command: Sequence[str], **options: Any) -> Any:
        begun.append(real([sys.executable, "-c", "import signal; signal.pause()"], **options))
        return begun[-1]

    monkeypatch.setattr(dry.module.subprocess, "Popen", endless)
    assert dry.module._hmt(["train"], time.monotonic() + 0.3, "cpu") == (None, 0)
    assert [process.returncode for process in begun] == [-signal.SIGTERM]
