"""The pieces of gpu.py, each run as a process of its own: `gpu_pieces.py JOB`, which leaves a record beside its log.

Here are those that run the project's commands: its tests, `hmt train` and `hmt eval perplexity`. What is timed directly is in
gpu_kernels.py and gpu_reading.py.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
IN_STORE = ("test_gpu_search.py", "test_gpu_devices.py", "test_index.py::test_a_gpu_finds_the_same")
TESTS = ("tests/kernels", *(f"tests/store/{test}" for test in IN_STORE))
FEW_TESTS = ("tests/kernels/test_dispatch.py", "tests/store/test_gpu_search.py::test_blocks_that_have_become_small_are_joined")
NOVELS = ("austen-sense", "chesterton-ball", "chesterton-brown", "chesterton-thursday")
_RESERVE = 45  # seconds of a sitting that are left for loading, for ending and for the record
_BETWEEN = 25  # steps between two checkpoints: a large backbone's take gigabytes


class Skipped(Exception):
    """A piece cannot be measured here."""


@dataclass(frozen=True)
class Job:
    """What gpu.py asks for."""

    name: str
    device: str
    small: bool
    limit: float  # seconds of this sitting
    out: str
    data: str | None
    recipe: str

    @property
    def folder(self) -> Path:
        """The piece's own folder, which outlives a sitting."""
        made = Path(self.out) / self.name
        made.mkdir(parents=True, exist_ok=True)
        return made


class Record:
    """What a piece has found so far, on disk after every table."""

    def __init__(self, job: Job) -> None:
        self._path = Path(job.out) / f"{job.name}.json"
        self._tables: dict[str, dict[str, Any]] = {}
        self._rest: dict[str, Any] = {"name": job.name, "state": "failed", "reason": "it was cut off"}
        self.notes: list[str] = []
        self.settings: dict[str, Any] = {}

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table, or replace the one of this title.

        Args:
            title: of the table.
            columns: their names.
            rows: of numbers as they were measured, and texts.
        """
        self._tables[title] = {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}
        self._write()

    def end(self, state: str, reason: str | None = None, *, progress: int = 0) -> None:
        """Say how it ended.

        Args:
            state: done, unfinished, skipped or failed.
            reason: why it is not done.
            progress: the steps that are kept for the next sitting.
        """
        self._rest |= {"state": state, "reason": reason, "progress": progress}
        self._write()

    def _write(self) -> None:
        content = {**self._rest, "tables": list(self._tables.values()), "notes": self.notes, "settings": self.settings}
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps(content, indent=2), encoding="utf-8")
        os.replace(scratch, self._path)


def tests(job: Job, record: Record) -> None:
    """Run the tests whose code differs on a GPU, and count."""
    results = job.folder / "junit.xml"
    workers = "0" if job.small else str(max(1, (os.cpu_count() or 2) - 2))  # most of the time is compiling
    command = ["-m", "pytest", "-q", "-n", workers, "-p", "no:cacheprovider", f"--junitxml={results}"]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}  # the tests choose it
    command += FEW_TESTS if job.small else TESTS
    code = subprocess.run([sys.executable, *command], cwd=ROOT, env=env).returncode
    outcomes: dict[str, Counter[str]] = {}
    bad, reasons = [], set()
    for case in ElementTree.parse(results).iter("testcase"):
        file = case.get("classname", "")
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        outcomes.setdefault(file, Counter())[outcome] += 1
        if outcome == "failed":
            bad.append(f"{file}.{case.get('name')}")
        elif problem is not None:
            reasons.add(problem.get("message", ""))
    counted = ("passed", "failed", "skipped")
    record.notes += [f"failed: {name}" for name in bad] + [f"skipped: {reason}" for reason in sorted(reasons)]
    record.table(
        "outcomes", ["tests", *counted], [[file, *(found[one] for one in counted)] for file, found in outcomes.items()]
    )
    if bad or code:
        record.end("failed", f"{len(bad)} tests failed" if bad else f"pytest ended with {code}")
    else:
        record.end("done")


def training(job: Job, record: Record) -> None:
    """Train in both stages, for as long as this sitting lasts."""
    from hmt_memory.train import PRESETS, Recipe

    begun = time.monotonic()
    texts, model = _texts(job), _model(job)
    chosen = Path(job.recipe)
    recipe = PRESETS.get(job.recipe) or Recipe.from_dict(json.loads(chosen.read_text(encoding="utf-8")))
    recipe = replace(recipe, checkpoint_every=_BETWEEN)
    if job.small:
        stages = tuple(replace(stage, steps=2, segments=2 + number) for number, stage in enumerate(recipe.stages))
        config = replace(recipe.config, segment_length=16, sensory_length=4)
        recipe = replace(recipe, stages=stages, config=config, checkpoint_every=1)
    given = job.folder / "given.json"
    given.write_text(recipe.to_json(), encoding="utf-8")
    run = job.folder / "run"
    dtype = "bfloat16" if job.device == "cuda" else "float32"
    options = ["--recipe", str(given), "--out", str(run), "--model", model, "--device", job.device, "--dtype", dtype]
    reserve = min(_RESERVE, 0.3 * job.limit)
    code, most = _hmt(["train", *texts, *options], begun + job.limit - reserve, job.device)
    steps = _steps(run)
    kept = max((int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*")), default=0)
    record.settings |= {"recipe": job.recipe, "learns": "LoRA" if recipe.lora_rank else "everything", "model": Path(model).name}
    record.settings |= {"texts": ", ".join(Path(text).name for text in texts), "dtype": dtype}
    record.table("stages", ["stage", "steps", "of", "tokens/s", "seconds a step", "perplexity"], _stages(steps, recipe))
    if most:
        record.notes.append(f"memory of the device in use at most: {most / 2**30:.1f} GiB")
    if code is None:
        record.end("unfinished", f"{kept} of {recipe.steps} steps", progress=kept)
    elif code:
        record.end("failed", f"hmt train ended with {code}; see training.log")
    else:
        record.end("done", progress=kept)


def perplexity(job: Job, record: Record) -> None:
    """Measure what the trained memory is worth on a text that was not trained on."""
    run = Path(job.out) / "training" / "run"
    if not (run / "adapter").is_dir():
        raise Skipped("training is not complete")
    _texts(job)
    text = _data(job) / "wikitext" / "test.txt"
    if not text.is_file():
        raise Skipped(f"there is no {text}")
    whole = (run / "backbone").is_dir()
    model = str(run / "backbone") if whole else _model(job)
    tokens = ["--tokens", "200"] if job.small else []
    options = ["--adapter", str(run / "adapter"), "--out", str(job.folder), "--model", model, "--device", job.device]
    code, _ = _hmt(["eval", "perplexity", str(text), *options, *tokens], None, job.device)
    if code:
        record.end("failed", f"hmt eval perplexity ended with {code}; see perplexity.log")
        return
    found = json.loads((job.folder / "perplexity.json").read_text(encoding="utf-8"))
    for table in found["tables"]:
        record.table(table["title"], table["columns"], table["rows"])
    record.notes += found["notes"]
    if whole:
        record.notes.append("the backbone was trained, too: where it stands as it is, it is the trained one without memory")
    record.settings |= {"text": text.name}
    record.end("done")


def _hmt(arguments: Sequence[str], until: float | None, device: str) -> tuple[int | None, int]:
    """Run a command of `hmt`. Returns its exit code, None if it was ended, and the most bytes of the device in use.

    Args:
        arguments: of the command.
        until: when it is ended, by the monotonic clock; None: never.
        device: where it computes.
    """
    import torch

    process = subprocess.Popen([sys.executable, "-c", "from hmt_memory.cli import main; main()", *arguments], cwd=ROOT)
    most = 0
    while process.poll() is None:
        if until is not None and time.monotonic() > until:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return None, most
        if device == "cuda":
            free, total = torch.cuda.mem_get_info()
            most = max(most, total - free)
        time.sleep(0.2)
    return process.returncode, most


def _steps(run: Path) -> list[dict[str, Any]]:
    """Return the log of a run; a line that was cut off is left out."""
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _stages(steps: Sequence[dict[str, Any]], recipe: Any) -> list[list[Any]]:
    """Return a row for each stage; the first step of all, which compiles and fits, is not in its speed."""
    rows: list[list[Any]] = []
    for number, stage in enumerate(recipe.stages, 1):
        own = [step for step in steps if step["stage"] == number]
        speed = pace = last = None
        if len(own) > 1:
            seconds = own[-1]["seconds"] - own[0]["seconds"]
            speed, pace = (own[-1]["tokens"] - own[0]["tokens"]) / seconds, seconds / (len(own) - 1)
            known = [step["perplexity"] for step in own[-20:] if step["perplexity"] is not None]
            last = statistics.median(known) if known else None
        shape = f"S{number}, {stage.segments} segments of {recipe.config.segment_length}"
        rows.append([shape, len(own), stage.steps, speed, pace, last])
    return rows


def _data(job: Job) -> Path:
    """Return the folder of the texts; a dry run makes its own."""
    if job.data is not None:
        return Path(job.data)
    if not job.small:
        raise Skipped("no --data was given")
    from pydoc_data.topics import topics

    made = Path(job.out) / "data"
    (made / "wikitext").mkdir(parents=True, exist_ok=True)
    for name, topic in (("valid", "assignment"), ("test", "booleans")):
        (made / "wikitext" / f"{name}.txt").write_text(topics[topic], encoding="utf-8")
    return made


def _texts(job: Job) -> list[str]:
    """Return the files to train on: those of `make adapter` that are text."""
    data = _data(job)
    files = [data / "wikitext" / "valid.txt", *(data / "books" / f"{name}.txt" for name in NOVELS)]
    if not files[0].is_file():
        raise Skipped(f"there is no {files[0]}")
    return [str(file) for file in files if file.is_file()]


def _model(job: Job) -> str:
    from gpu_reading import model_name

    return model_name(job)


def _piece(name: str) -> Callable[[Job, Record], None]:
    """Import a piece, and no other: some need what others do without."""
    here: dict[str, Callable[[Job, Record], None]] = {"tests": tests, "training": training, "perplexity": perplexity}
    if name not in here:
        from_module = importlib.import_module("gpu_reading" if name == "reading" else "gpu_kernels")
        here[name] = getattr(from_module, name)
    return here[name]


def main() -> int:
    """Measure one piece. Returns the exit code."""
    job = Job(**json.loads(sys.argv[1]))
    record = Record(job)
    try:
        _piece(job.name)(job, record)
    except Skipped as skipped:
        record.end("skipped", str(skipped))
    except Exception as error:
        traceback.print_exc()
        record.end("failed", next(iter(f"{type(error).__name__}: {error}".splitlines())))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
