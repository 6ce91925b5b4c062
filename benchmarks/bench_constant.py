"""Costs that do not grow with the text read: peak memory while reading, and the time to the first token.

Memory is measured in one fresh process per length. The time to the first token is taken at every length in turn, on states
that were really read.

Run: .venv/bin/python benchmarks/bench_constant.py [--lengths 5000 10000 100000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import time

from measure import default_model, english, in_fresh_process, interleaved, machine, peak_megabytes, ratio, reset_peak

from hmt_memory import HMTState
from hmt_memory.engine.reader import read_in_chunks

QUESTION = "\n\nQuestion: What is this text about?\nAnswer:"


def read_alone(count: int) -> None:
    """Read `count` tokens in this process and print its peak resident memory from then on."""
    model = default_model()
    ids = english(model, count)
    reset_peak()
    for state in read_in_chunks(model, ids):
        last = state
    print(json.dumps({"peak_mb": peak_megabytes(), "segments": last.segments}))


def first_token(lengths: list[int], rounds: int) -> None:
    """Read on to each length, then time the first token from each of the states in turn."""
    default_model()  # converts the weights, where that has never been done
    start = time.perf_counter()
    model = default_model()
    loaded = time.perf_counter() - start
    print(machine(model))
    print(f"loading the default model from its cache: {loaded:.2f} s (wanted: at most 3)")
    ids = english(model, lengths[-1])
    states: dict[int, HMTState] = {}
    after, done = model.empty_state(), 0
    for length in lengths:
        whole = length // model.config.segment_length * model.config.segment_length  # open segments equally long
        for after in read_in_chunks(model, ids[done:whole], after):  # noqa: B020 - each chunk continues the one before
            states[length] = after
        done = whole
    times = interleaved(
        {str(length): lambda state=state: next(model.generate(QUESTION, state=state)) for length, state in states.items()},
        rounds,
    )
    shortest = str(lengths[0])
    for length in lengths:
        growth = ratio(times, str(length), shortest)
        print(f"first token after {length} tokens: {min(times[str(length)]):.2f} s, {growth:.3f} x of {shortest}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[5000, 10000, 100000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--read-alone", type=int)
    options = parser.parse_args()
    if options.read_alone:
        read_alone(options.read_alone)
    else:
        first_token(sorted(options.lengths), options.rounds)
        peaks = {length: in_fresh_process(__file__, "--read-alone", str(length)) for length in sorted(options.lengths)[-2:]}
        for length, found in peaks.items():
            print(f"peak memory while reading {length} tokens: {found['peak_mb']:.0f} MB ({found['segments']} segments)")
