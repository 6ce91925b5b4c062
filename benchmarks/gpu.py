"""Everything that a GPU is for, measured piece by piece: writes docs/results/gpu.json and gpu.md.

    make gpu DATA=folder        or        python benchmarks/gpu.py [--data folder] [--only kernels index] [--list]

A piece runs in a process of its own, for at most ten minutes at a time. What it found stays in --out: a piece that is done is
not run again, and training goes on where it was stopped. Without a GPU the pieces are listed, and nothing is written.
`--device cpu --small` is a dry run: tiny sizes, numbers without meaning, the report in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = ROOT / "docs" / "results"
TRITON = ROOT / ".venv" / "triton"  # where `make test-kernels` puts it; torch for CUDA brings its own
Record = dict[str, Any]


class Piece(NamedTuple):
    """What is measured together."""

    name: str
    measures: str
    script: Path = HERE / "gpu_pieces.py"  # called with its job as JSON; leaves a record


PIECES = (
    Piece("tests", "the tests of the kernels and of the index, compiled and on the device: passed, failed, skipped"),
    Piece("kernels", "recall in Triton: errors against plain torch, forward and backward; time against the memory's bandwidth"),
    Piece("index", "100,000 and 1,000,000 memories: FAISS on the GPU, the kernel and the CPU; adding a segment; memory"),
    Piece("reading", "reading, and the first token behind 1,000 to 100,000 tokens: GPU, CPU and plain transformers"),
    Piece("training", "S1 200 steps and S2 500 steps of 15 segments by `hmt train`; needs --data with wikitext/valid.txt"),
    Piece("perplexity", "`hmt eval perplexity` of what was trained; needs --data with wikitext/test.txt"),
)


@dataclass(frozen=True)
class Bench:
    """One folder of results, and the settings that they are made under."""

    out: Path
    device: str
    small: bool
    limit: float  # seconds of one sitting
    data: Path | None
    recipe: str
    stamp: Mapping[str, Any]  # what a kept record has to agree with

    def file(self, name: str, ending: str = ".json") -> Path:
        """Return the file of a piece."""
        return self.out / f"{name}{ending}"

    def kept(self, name: str) -> Record | None:
        """Return what an earlier call has found, if it was under the same settings."""
        try:
            record: Record = json.loads(self.file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if record.get("stamp") == dict(self.stamp) else None

    def forget(self, name: str) -> None:
        """Delete whatever is kept of a piece."""
        for ending in (".json", ".log"):
            self.file(name, ending).unlink(missing_ok=True)
        shutil.rmtree(self.out / name, ignore_errors=True)

    def run(self, piece: Piece, *, once: bool) -> Record:
        """Run a piece until it is complete, as long as it gets on.

        Args:
            piece: what to measure.
            once: whether one sitting is enough.
        """
        seconds, reached = 0.0, (self.kept(piece.name) or {}).get("progress", 0)
        while True:
            record = self._sit(piece)
            seconds += record["seconds"]
            if record["state"] == "unfinished" and record["progress"] <= reached:
                record |= {"state": "failed", "reason": f"no step was kept in {self.limit:.0f} s. Raise --limit."}
            self._keep(record)
            if record["state"] != "unfinished" or once:
                record["seconds"] = seconds
                return record
            reached = record["progress"]
            say(f"{piece.name}: {record['reason']}; going on")

    def _sit(self, piece: Piece) -> Record:
        """Let a process measure for one sitting, and return what it left."""
        self.out.mkdir(parents=True, exist_ok=True)
        target, begun = self.file(piece.name), time.monotonic()
        target.unlink(missing_ok=True)
        job = {"name": piece.name, "device": self.device, "small": self.small, "limit": self.limit, "recipe": self.recipe}
        job |= {"out": str(self.out), "data": None if self.data is None else str(self.data)}
        with self.file(piece.name, ".log").open("ab") as log:
            command = [sys.executable, str(piece.script), json.dumps(job)]
            code = ended(command, log, self.limit, environment(self.device))
        try:
            record: Record = json.loads(target.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {"name": piece.name, "tables": [], "notes": [], "settings": {}}
        if code is None:
            record |= {"state": "failed", "reason": f"stopped after {self.limit:.0f} s"}
        elif code not in (0, 1) or "state" not in record:
            record |= {"state": "failed", "reason": f"ended with {code}; see {self.file(piece.name, '.log')}"}
        return record | {"seconds": time.monotonic() - begun, "stamp": dict(self.stamp)}

    def _keep(self, record: Record) -> None:
        self.file(record["name"]).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def ended(command: Sequence[str], log: Any, limit: float, env: Mapping[str, str]) -> int | None:
    """Run a command, and end it with all that it has started. Returns its exit code; None: it took too long.

    Args:
        command: the program and its arguments.
        log: a file for what it prints.
        limit: seconds.
        env: its environment.
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, cwd=ROOT, env=dict(env), start_new_session=True, **options)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the group: what it started may outlive it
        process.wait()


def environment(device: str) -> dict[str, str]:
    """Return the environment of a piece: it finds Triton, interpreted where there is no GPU."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if util.find_spec("triton") is None and TRITON.is_dir():
        paths.append(str(TRITON))
    chosen = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **chosen, **({"TRITON_INTERPRET": "1"} if device == "cpu" else {})}


def machine(device: str) -> dict[str, Any]:
    """Describe the hardware and the versions that stand beside the numbers."""
    import torch

    from hmt_memory.evaluate.report import environment as usual

    found = usual() | {"device": "cpu", "GPU memory": None, "driver": None, "CUDA": torch.version.cuda}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "driver": _driver()}
        found["GPU memory"] = f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} processors"
    known = [dist.version for dist in metadata.distributions(name="triton", path=[*sys.path, str(TRITON)])]
    return found | {"triton": next(iter(known), None), "faiss": _faiss()}


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _faiss() -> str | None:
    try:
        import faiss
    except (ImportError, OSError, RuntimeError):  # a GPU build without its CUDA libraries raises RuntimeError
        return None
    return f"{faiss.__version__}, {'with' if hasattr(faiss, 'StandardGpuResources') else 'without'} GPUs"


def report(bench: Bench, described: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write what all pieces have found. Returns the files.

    Args:
        bench: holds the records.
        described: the machine.
        folder: where the report goes.
    """
    from hmt_memory.evaluate.report import Report, Table

    records = {piece.name: bench.kept(piece.name) or {"state": "not run yet"} for piece in PIECES}
    columns = ["piece", "state", "seconds", "what it measures, or why it did not"]
    states = []
    for piece in PIECES:
        record = records[piece.name]
        states.append([piece.name, record["state"], record.get("seconds"), record.get("reason") or piece.measures])
    tables = [Table("Pieces", columns, states)]
    notes, settings = [], {"small": bench.small, "device": bench.device, "recipe": bench.recipe}
    if bench.small:
        notes.append("A dry run with tiny sizes: the numbers mean nothing.")
    for name, record in records.items():
        tables += [Table(f"{name}: {table['title']}", table["columns"], table["rows"]) for table in record.get("tables", ())]
        notes += [f"{name}: {note}" for note in record.get("notes", ())]
        settings |= {f"{name}, {key}": value for key, value in record.get("settings", {}).items()}
    title = "A dry run of the GPU's measurements" if bench.small else f"Measured on one {described['device']}"
    return Report("gpu", title, settings, tables, (), notes, described).write(folder)


def show(pieces: Iterable[Piece], bench: Bench | None) -> None:
    """Print the pieces: what each measures, what is kept of it, and its command.

    Args:
        pieces: those to show.
        bench: holds the records; None: there is no GPU.
    """
    for piece in pieces:
        record = None if bench is None else bench.kept(piece.name)
        print(f"{piece.name:12}{piece.measures}")
        print(f"{'':12}python benchmarks/gpu.py --only {piece.name}" + (f"   ({record['state']})" if record else ""))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [piece.name for piece in PIECES]
    made.add_argument("--data", type=Path, help="folder with wikitext/valid.txt, wikitext/test.txt and perhaps books/*.txt")
    made.add_argument("--out", type=Path, default=Path("hmt-gpu"), help="folder of the pieces' results")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    made.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help="these pieces alone")
    made.add_argument("--again", nargs="+", choices=names, default=[], metavar="NAME", help="run these from the beginning")
    made.add_argument("--list", action="store_true", help="say what would be measured, and stop")
    made.add_argument("--once", action="store_true", help="one sitting of each piece, even of one that takes several")
    made.add_argument("--limit", type=float, default=600, help="seconds of a sitting")
    made.add_argument("--recipe", default="paper", help="what is trained: a recipe of `hmt train`")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run, with --small")
    made.add_argument("--small", action="store_true", help="tiny sizes, which try out the pieces and measure nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pieces and write the report. Returns the exit code: 1 if a piece has failed."""
    made = parser()
    options = made.parse_args(arguments)
    if Path(options.recipe).is_file():
        options.recipe = str(Path(options.recipe).resolve())
    if options.device == "cpu" and not options.small:
        made.error("--device cpu is for a dry run: add --small.")
    if options.device == "cuda" and not has_gpu():
        say("There is no CUDA GPU here. On a machine with one, these would be measured:\n")
        show(PIECES, None)
        return 0
    described = machine(options.device)
    stamp = {"device": described["device"], "small": options.small, "recipe": options.recipe}
    stamp |= {name: described[name] for name in ("torch", "triton", "hmt-memory")}
    places = {"out": options.out.resolve(), "data": None if options.data is None else options.data.resolve()}
    bench = Bench(**places, device=options.device, small=options.small, limit=options.limit, recipe=options.recipe, stamp=stamp)
    if options.list:
        show(PIECES, bench)
        return 0
    for name in options.again:
        bench.forget(name)
    failed = False
    for piece in (piece for piece in PIECES if piece.name in {*options.only, *options.again}):
        record = bench.kept(piece.name)
        if record is not None and record["state"] == "done":
            say(f"{piece.name}: done before")
            continue
        say(f"{piece.name}: {piece.measures}")
        record = bench.run(piece, once=options.once)
        failed |= record["state"] == "failed"
        say(f"{piece.name}: {record['state']} after {record['seconds']:.0f} s" + _because(record))
        report(bench, described, bench.out if options.small else options.results)
    for path in report(bench, described, bench.out if options.small else options.results):
        say(str(path))
    return int(failed)


def _because(record: Record) -> str:
    return f": {record['reason']}" if record.get("reason") else ""


def has_gpu() -> bool:
    """Return whether there is a CUDA GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else what it started would outlive it
    sys.exit(main())
