"""The common tools of the benchmarks: the machine in words, peak memory of a fresh process, medians of interleaved rounds."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from hmt_memory import HMTConfig, HMTModel, __version__


def machine(model: HMTModel) -> str:
    """Describe hardware, precision and versions, which stand beside every number."""
    return (
        f"{cpu_name()}, {torch.get_num_threads()} threads; {model.backbone.name}, {str(model.backbone.dtype)[6:]} on "
        f"{model.backbone.device.type}; hmt-memory {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}"
    )


def cpu_name() -> str:
    """Return the processor's name from Linux, else from Python."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds(call: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each call in turn, so that a machine that slows down slows them all. One untimed round warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            spent = seconds(call)
            if turn:
                times[name].append(spent)
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Return the median over the rounds of one call's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def english(model: HMTModel, count: int) -> torch.Tensor:
    """Return token ids [count] of the English text that every Python ships, repeated as often as needed."""
    from pydoc_data.topics import topics

    ids = torch.tensor(model.backbone.encode("\n\n".join(topics[key] for key in sorted(topics))))
    return ids.repeat(-(-count // len(ids)))[:count]


def reset_peak() -> None:
    """Forget the peak so far (Linux): loading a model takes more than reading, and would hide the peak of reading."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak_megabytes() -> float:
    """Return the peak resident memory of this process since `reset_peak` (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def in_fresh_process(script: str, *arguments: str) -> Any:
    """Run a benchmark file with arguments in a process of its own and return the JSON it prints last."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def default_model(**sizes: int) -> HMTModel:
    """Load the default model as it ships; with sizes, untrained and of these sizes."""
    return HMTModel.from_pretrained("smollm2-135m-instruct", config=HMTConfig(**sizes) if sizes else None)
