"""Search on GPUs: their memory, their failures, threads and forks; and whether FAISS has the calls that are used."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from faiss_gpu import FIELDS, SIGNATURES, FakeFaiss, signatures
from gpus import BLOCK, D, Halves, Machine, check, query, vectors
from places import SUPPORT

from hmt_memory.store.index import devices, gpu, search

faiss = pytest.importorskip("faiss")


def of_the_host(found: gpu.GpuSearch, there: Machine, rows: Halves, caplog: pytest.LogCaptureFixture) -> None:
    """The host answers, the devices are empty, one warning was given, and so it stays."""
    calls = len(there.faiss.calls)
    check(found(query(), 9), rows, query(), 9)
    found.add(rows[:50])
    rows = np.concatenate([rows, rows[:50]])
    check(found(query(), 9), rows, query(), 9)
    assert found.keep(np.arange(len(rows)) % 2 == 0)
    check(found(query(), 9), rows[::2], query(), 9)
    assert found.name == "faiss SQfp16" and found.device_bytes == {} and there.held == 0
    assert len(there.faiss.calls) == calls
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the CPU does it from now on" in warning
    caplog.clear()


@pytest.mark.parametrize("call", ["add", "search"])
def test_a_call_that_finds_no_memory(machine: Callable[..., Machine], call: str, caplog: pytest.LogCaptureFixture) -> None:
    """At its first, its fourth and its ninth time."""
    rows = vectors("random", 500)
    for calls in (0, 3, 8):
        there = machine(2)
        there.faiss.failing[call] = calls
        found = there.search(rows)
        for _ in range(3):
            check(found(query(), 9), rows, query(), 9)
        assert "out of memory" in caplog.text
        of_the_host(found, there, rows, caplog)


def test_removing_that_finds_no_memory(machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture) -> None:
    there, rows = machine(), vectors("random", 500)
    found, kept = there.search(rows), np.arange(500) != 7
    there.faiss.failing["add"] = there.faiss.calls.count("add") + 1
    assert found.keep(kept)
    of_the_host(found, there, rows[kept], caplog)


def test_memory_is_left_free(machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture) -> None:
    """Where one device is full, the next is filled; where all are, the host searches."""
    room = devices._SCRATCH + devices.SPARE + 20_000
    there, rows = machine(3, memory=room), vectors("random", 3000)
    there.faiss.used[1] = 30_000  # taken by somebody else
    found = there.search(rows[:450])
    assert set(found.device_bytes) == {0, 2}
    assert all(there.faiss.mem_get_info(device)[0] >= devices.SPARE for device in (0, 2))
    check(found(query(), 9), rows[:450], query(), 9)
    assert not caplog.records
    found.add(rows[450:])
    there.faiss.used[1] = 0
    assert "no GPU has" in caplog.text
    of_the_host(found, there, rows, caplog)


def test_a_device_that_answers_nonsense_is_not_believed(
    machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    rows = vectors("random", 300)
    spoilers: list[Callable[[Any, Any], Any]] = [  # of the second of three blocks
        lambda scores, numbers: (scores + 1, numbers),
        lambda scores, numbers: (scores * np.nan, numbers),
        lambda scores, numbers: (scores, np.roll(numbers, 1)),
        lambda scores, numbers: (scores * 0 + scores[0, 0], numbers * 0 + numbers[0, 0]),
        lambda scores, numbers: (scores, np.where(numbers == numbers[0, 0], -1, numbers)),
        lambda scores, numbers: (scores, numbers + BLOCK),
    ]
    for spoil, k in itertools.product(spoilers, (9, 300)):
        there = machine()
        found, turn = there.search(rows), itertools.count()
        there.faiss.spoil = lambda *answer, spoil=spoil, turn=turn: spoil(*answer) if next(turn) % 3 == 1 else answer
        check(found(query(), k), rows, query(), k)
        of_the_host(found, there, rows, caplog)


def test_threads_share_a_device_one_at_a_time(machine: Callable[..., Machine]) -> None:
    """Searching one index, others on the same devices, growing, shrinking and ending; an index goes where no thread is."""
    there, rows = machine(2), vectors("random", 450)
    there.faiss.pause = 0.0002
    alone: list[bool] = []
    there.faiss.freed = lambda number: alone.append(there.process._devices[number]._mutex.locked())
    shared, failed = there.search(rows), []

    def work(number: int) -> None:
        try:
            own = there.search()
            for turn in range(6):
                own.add(rows[turn * 60 : turn * 60 + 60])
                check(own(query(number), 5), rows[: turn * 60 + 60], query(number), 5)
                check(shared(query(turn), 5), rows, query(turn), 5)
            own.keep(np.arange(360) < 150)
            check(own(query(number), 5), rows[:150], query(number), 5)
            assert own.name == shared.name == "faiss GPU Flat fp16"
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and there.faiss.broken == []
    for device in there.process._devices.values():
        device.do(lambda: None)
    assert len(alone) >= 6 * 4 and all(alone)
    assert shared.unsettled == 0


def test_one_thread_gives_up_while_others_search(machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture) -> None:
    there, rows = machine(2), vectors("random", 450)
    found, failed = there.search(rows), []
    alone: list[bool] = []
    there.faiss.freed = lambda number: alone.append(there.process._devices[number]._mutex.locked())
    there.faiss.pause, there.faiss.failing["search"] = 0.0005, 20

    def work(number: int) -> None:
        try:
            for turn in range(10):
                check(found(query(number + turn), 5), rows, query(number + turn), 5)
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and there.held == 0 and len(alone) == 5 and all(alone)
    of_the_host(found, there, rows, caplog)


def test_what_goes_while_a_device_is_used_is_freed_afterwards(machine: Callable[..., Machine]) -> None:
    there = machine()
    found, held, go = there.search(vectors("random", 250)), threading.Event(), threading.Event()
    device = found._blocks[0].device
    thread = threading.Thread(target=lambda: device.do(lambda: (held.set(), go.wait(20))))
    thread.start()
    held.wait(20)
    del found
    assert there.held == 250 * (2 * D + 4)
    go.set()
    thread.join()
    assert there.held == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other systems do not fork")
def test_a_fork_leaves_the_devices_alone() -> None:
    """Whatever it does, to its end, and although another thread was using a device."""
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(SUPPORT / "gpu_fork_worker.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"dropped": True, "status": 0, "right": True, "name": "faiss GPU Flat fp16", "broken": []}


def test_gpus_are_used_only_where_there_are_some(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not devices.usable(types.SimpleNamespace())
    there = machine(0)
    assert not devices.usable(there.faiss) and type(search.new_search("SQfp16", D)) is search.FlatSearch
    there = machine(1)
    assert devices.usable(there.faiss)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not devices.usable(there.faiss)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(there.faiss, "get_num_gpus", lambda: pytest.fail("CUDA is used after a fork"))
    assert not devices.usable(there.faiss)


def test_the_stand_in_has_the_signatures_that_were_recorded() -> None:
    fake = FakeFaiss(faiss)
    assert signatures(fake) == SIGNATURES
    config, resources = fake.GpuIndexFlatConfig(), fake.StandardGpuResources()
    resources.setPinnedMemory(0)
    index = fake.GpuIndexFlat(resources, D, fake.METRIC_INNER_PRODUCT, config_of(config))
    for kind, made in (("GpuIndexFlatConfig", config), ("StandardGpuResources", resources), ("GpuIndexFlat", index)):
        assert all(hasattr(made, field) for field in FIELDS[kind])


def config_of(config: Any) -> Any:
    config.useFloat16, config.use_cuvs, config.device = True, False, 0
    return config


def test_faiss_has_the_signatures_that_were_recorded() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("needs a GPU build of FAISS, with or without a GPU")
    assert signatures(faiss) == SIGNATURES
    assert (faiss.METRIC_INNER_PRODUCT, faiss.Float32) == (FakeFaiss.METRIC_INNER_PRODUCT, FakeFaiss.Float32)
    for kind, fields in FIELDS.items():
        assert all(hasattr(getattr(faiss, kind), field) for field in fields)
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(devices._SCRATCH)
    resources.setPinnedMemory(0)
    resources.thisown = False
    assert not resources.thisown
    config = config_of(faiss.GpuIndexFlatConfig())
    assert (config.useFloat16, config.use_cuvs, config.device) == (True, False, 0)
    if faiss.get_num_gpus() == 0:  # the arguments are those of a constructor: it comes to look for the device
        with pytest.raises(RuntimeError, match="Invalid GPU device"):
            faiss.GpuIndexFlat(resources, D, faiss.METRIC_INNER_PRODUCT, config)
        with pytest.raises(TypeError, match="Wrong number or type of arguments"):
            faiss.GpuIndexFlat(resources, D, config)
