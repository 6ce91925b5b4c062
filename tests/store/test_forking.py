"""A process that is forked while a store is open: both go on, and lose nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fork_worker
import pytest
from processes import journal_of, start
from stored import holds

from hmt_memory import MemoryStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="other systems do not fork")


def journal_after(work: Callable[[str, str], None], place: Path | str, tmp_path: Path) -> list[list[Any]]:
    """What a process has written down that came to its end."""
    process = start(work, str(place), str(tmp_path / "journal"))
    process.join(120)
    assert process.exitcode == 0
    return journal_of(tmp_path / "journal")


def test_what_a_fork_writes_is_kept_after_its_parent_has_closed_the_store(place: Path | str, tmp_path: Path) -> None:
    """Whoever closes last removes the log: the fork must not be overlooked."""
    status, (said, problems) = journal_after(fork_worker.close_before_the_fork_writes, place, tmp_path)
    assert status == [0] and problems == []
    assert said == ["before", "said in the fork", "said beside it", "and again"]


@pytest.mark.slow
def test_forks_beside_threads_that_add_and_erase(place: Path | str, tmp_path: Path) -> None:
    *statuses, (failed, problems, names) = journal_after(fork_worker.fork_beside_threads, place, tmp_path)
    assert statuses == [[0]] * fork_worker.FORKS and failed == [] and problems == []
    with MemoryStore(place) as store:
        forgotten, kept_one = holds(store, b"forgets"), holds(store, b"fork 3 keeps 1")
        said = [message.content for message in store.session("shared").messages()]
        assert store.verify() == ([], []) and {f"fork {number}" for number in range(fork_worker.FORKS)} <= set(names)
    for number in range(fork_worker.FORKS):
        kept = [text for text in said if text.startswith(f"fork {number} ")]
        assert [text.split(" word")[0] for text in kept] == [f"fork {number} keeps {turn}" for turn in range(2)]
    assert not forgotten and kept_one


@pytest.mark.parametrize("place", ["folder"], indirect=True)  # with a server, a fork has connections of its own
def test_a_fork_in_the_middle_of_reading_is_told_that_it_cannot_use_the_store(place: Path | str, tmp_path: Path) -> None:
    *told, status = journal_after(fork_worker.fork_inside_a_view, place, tmp_path)
    assert status == [0] and len(told) == 3
    assert all("forked while a store was being read or written" in text for (text,) in told)


def test_no_mutex_of_another_thread_holds_a_fork_up(place: Path | str, tmp_path: Path) -> None:
    assert journal_after(fork_worker.fork_with_the_mutex_held, place, tmp_path) == [[0]]
