"""Processes with several threads do anything to one store at once and are killed; what was acknowledged holds, to the byte."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import crash_worker
import numpy as np
import postgres
import pytest
import stress_worker
from postgres_programs import Cluster
from processes import start
from stored import memory_of
from stress_ledger import SECRET, Common, Entry, Owner, Said, paired, secrets_in, token_pattern
from tiny import LONG

from hmt_memory import MemoryStore

MODEL = crash_worker.MODEL
SLOTS = 4
SEED = os.environ.get("HMT_STRESS_SEED", "1")
pytestmark = pytest.mark.disk
SECONDS, PAUSE = (360.0, (1.0, 8.0)) if LONG else (8.0, (1.0, 2.5))
KILLS = int(os.environ.get("HMT_STRESS_KILLS", "200" if LONG else "2"))  # of processes at a server's store
EVERY = 10 if KILLS >= 20 else 2  # so many kills for a crash of the server, and for a cut of the network
HUNG = 120.0  # seconds after which a process that was told to stop has hung
TOKENS = token_pattern({char: crash_worker.TOKENIZER.convert_tokens_to_ids(char) for char in "~0123456789abcdef"})


class Siege:
    """One store, the processes that are at it, and what their journals say."""

    ends: tuple[int, ...] = (0,)  # how a process may end that was told to stop

    def __init__(self, root: Path, place: Any) -> None:
        self.root, self.place = root, place
        self.lives, self.kills, self.deadline = [-1] * SLOTS, 0, time.monotonic() + SECONDS
        self.processes: list[Any] = [None] * SLOTS
        self.owners: dict[tuple[int, int], Owner] = defaultdict(Owner)

    def journal(self, slot: int, life: int) -> Path:
        """Where the journal of a process is."""
        return self.root / f"journal-{slot}-{life}"

    def begin(self, slot: int) -> None:
        """Start a process, or start it again."""
        self.lives[slot] += 1
        life = self.lives[slot]
        arguments = (
            str(self.place),
            str(self.root),
            str(self.journal(slot, life)),
            f"{SEED}-{slot}-{life}",
            slot,
            slot % 2 == 0,
        )
        self.processes[slot] = start(stress_worker.attack, *arguments)

    def entries(self, slot: int, life: int) -> list[Entry]:
        """What a journal says."""
        path = self.journal(slot, life)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Entry(*json.loads(line)) for line in lines if line.endswith("\n")]

    def everything(self) -> list[tuple[int, int, Entry]]:
        """What all journals say."""
        places = [(slot, life) for slot in range(SLOTS) for life in range(self.lives[slot] + 1)]
        return [(slot, life, entry) for slot, life in places for entry in self.entries(slot, life)]

    def has_erased(self) -> bool:
        """Whether anything that was read is gone, which on a busy machine takes its time."""
        with MemoryStore(self.place, timeout=HUNG) as store:
            return bool(self.gone(store))

    def gone(self, store: MemoryStore) -> set[bytes]:
        """The embeddings that somebody has seen in sessions before they were erased, and that no row holds any more."""
        noted = {bytes.fromhex(entry.value) for _, _, entry in self.everything() if entry.kind == "erased"}
        with store.database.reading() as db:
            rows = db.execute("SELECT data, memory_size FROM segments JOIN payloads ON id = memory").fetchall()
        return noted - {data[:size] for data, size in rows}

    def told(self) -> list[tuple[Entry, Entry | None]]:
        """What was announced to everybody's sessions and corpora, and what came of it."""
        places = [(slot, life) for slot in range(SLOTS) for life in range(self.lives[slot] + 1)]
        pairs = [pair for place in places for pair in paired(self.entries(*place))]
        return [(tried, end) for tried, end in pairs if tried.op.startswith(("common_", "papers_"))]

    def end(self) -> None:
        """Tell all processes to stop, and wait for them."""
        (self.root / "stop").touch()
        for process in self.processes:
            process.join(HUNG)
            assert process.exitcode in self.ends, "a process hangs, or has crashed"

    @property
    def over(self) -> bool:
        """Whether it has lasted long enough."""
        return time.monotonic() > self.deadline

    def harm(self, chance: random.Random) -> set[int]:
        """Kill a process. Returns the slots of those that have ended."""
        slot = chance.randrange(SLOTS)
        self.processes[slot].kill()
        self.processes[slot].join()
        self.kills += 1
        return {slot}

    def content(self) -> bytes:
        """Return every byte of every file."""
        return content_of(self.place)

    def report(self) -> None:
        """Print how much was done, and how long the longest calls took."""
        longest: dict[str, list[float]] = defaultdict(list)
        for _, _, entry in self.everything():
            if entry.kind in ("done", "refused"):
                longest[entry.op].append(entry.seconds)
        print(f"{sum(map(len, longest.values()))} calls, {self.kills} kills, {sum(self.lives)} restarts")
        for op, seconds in sorted(longest.items(), key=lambda item: -max(item[1])):
            seconds.sort()
            print(f"{op:15} {len(seconds):6} calls, median {seconds[len(seconds) // 2]:6.3f} s, longest {seconds[-1]:6.3f} s")

    # --- what is checked --------------------------------------------------------------------------------------------

    def nothing_was_wrong(self) -> None:
        """No call raised what it may not raise, or found what it may not find."""
        wrong = [entry for _, _, entry in self.everything() if entry.kind in ("raised", "wrong")]
        assert not wrong, f"{len(wrong)} calls went wrong, such as\n" + "\n".join(
            f"{one.op} {one.name} ({one.seconds:.1f} s): {one.value}" for one in wrong[:5]
        )

    def follow(self, slot: int) -> None:
        """Learn from the journal of a process that has ended what its sessions should hold."""
        entries = self.entries(slot, self.lives[slot])
        for thread in range(stress_worker.HANDS):
            self.owners[slot, thread].follow(entry for entry in entries if entry.thread == thread)

    def settle(self, slot: int, store: MemoryStore) -> None:
        """Compare the sessions of a process that has ended with what they should hold."""
        for thread in range(stress_worker.HANDS):
            prefixes = (f"own-{slot}-{thread}-", f"open-{slot}-{thread}-")
            names = [name for name in store.sessions() if name.startswith(prefixes)]
            limited = {name for name in names if store.session(name).stats()["retention"]}
            self.owners[slot, thread].accept({name: said(store, name) for name in names}, limited)

    def everybodys_hold(self, store: MemoryStore) -> None:
        """Compare everybody's sessions and corpora with what was acknowledged, while others may go on."""
        acknowledged = Common(self.told())
        with store.database.reading():
            found = {store.session(name)._id: said(store, name) for name in store.sessions() if name.startswith("common-")}
            for name in store.corpora():
                corpus = store.corpus(name)
                found[corpus._id] = [[document.id, document.text] for document in corpus.documents()]
        announced = Common(self.told())
        for number, there in found.items():
            announced.check(number, there, acknowledged=acknowledged)

    def private_secrets_are_gone(self, slot: int) -> None:
        """What only this process, which has ended, knew and erased is in no file, whatever others do."""
        tried = [
            entry
            for life in range(self.lives[slot] + 1)
            for entry in self.entries(slot, life)
            if entry.kind == "try" and entry.name.startswith("own-")
        ]
        told = {secret for entry in tried for secret in secrets_of(entry)}
        owners = [owner for (one, _), owner in self.owners.items() if one == slot]
        held = {secret for owner in owners for secret in secrets_of_held(owner.held)}
        under_way = {secret for owner in owners if owner.pending for secret in secrets_of(owner.pending)}
        left = (told - held - under_way) & traces(self.content())
        assert not left, f"erased, and in a file: {left}"

    def erased_is_gone(self) -> None:
        """Nothing of what was ever to be stored and is not held now is in any file; nobody is at the store."""
        entries = self.everything()
        told = {secret for _, _, entry in entries if entry.kind == "try" for secret in secrets_of(entry)}
        with MemoryStore(self.place) as store:
            held = {name: said(store, name) for name in store.sessions()}
            held |= {name: self._documents(store, name) for name in store.corpora()}
            gone = self.gone(store)
        left = traces(self.content()) - secrets_of_held(held)
        assert told and not left, f"erased, and in a file: {left}"
        content = self.content()
        assert gone and not [one for one in gone if one in content]

    @staticmethod
    def _documents(store: MemoryStore, name: str) -> Said:
        return [[one.id, f"{one.name} {one.text}"] for one in store.corpus(name).documents()]


class SiegeOfServer(Siege):
    """The same at a database server, which is reached by a wire: it crashes, too, and so do connections and the network."""

    ends = (0, -signal.SIGKILL)  # a process that a server cuts off in the middle of a call kills itself

    def __init__(self, root: Path, server: Cluster, wire: postgres.Wire) -> None:
        super().__init__(root, f"{wire.url}&application_name=siege&schema=siege")
        self.server, self.wire, self.crashes, self.cuts = server, wire, 0, 0

    @property
    def over(self) -> bool:
        return self.kills >= KILLS

    def harm(self, chance: random.Random) -> set[int]:
        alive = [slot for slot, process in enumerate(self.processes) if process.exitcode is None]
        if alive:
            self.processes[chance.choice(alive)].kill()
            self.kills += 1
        if self.kills // EVERY > self.crashes:
            self.server.crash_and_recover()
            self.crashes += 1
        elif (self.kills + EVERY // 2) // EVERY > self.cuts:
            self.wire.cut()
            self.cuts += 1
        else:
            postgres.cut(self.place, chance.randrange(1, 4))
        return self.ended()

    def ended(self) -> set[int]:
        """Return the slots of processes that have ended, after whatever else is about to end has done so."""
        for process in self.processes:
            process.join(0.5)
        ended = {slot for slot, process in enumerate(self.processes) if process.exitcode is not None}
        assert all(self.processes[slot].exitcode == -signal.SIGKILL for slot in ended)
        return ended

    def content(self) -> bytes:
        """Return every byte of every row, and of the files on this machine."""
        rows = postgres.run(self.place, "SELECT data FROM payloads")
        return b"".join(data for (data,) in rows) + content_of(self.root / "caches")

    def report(self) -> None:
        super().report()
        print(f"{self.crashes} crashes of the server, {self.cuts} cuts of the network")


def said(store: MemoryStore, name: str) -> Said:
    """What is in a session."""
    return [[message.id, message.content] for message in store.session(name).messages()]


def secrets_of(entry: Entry) -> Iterator[str]:
    """The secrets that a call was to store: those of its texts and names."""
    for text in (entry.name, entry.value.get("new", ""), *entry.value.get("texts", []), *entry.value.get("names", [])):
        yield from secrets_in(text)


def secrets_of_held(held: dict[str, Said]) -> set[str]:
    """The secrets that sessions hold."""
    texts = [*held, *(text for messages in held.values() for _, text in messages if text)]
    return {secret for text in texts for secret in secrets_in(text)}


def content_of(folder: Path) -> bytes:
    """Return every byte of every file."""
    found = b""
    for path in sorted(folder.rglob("*")):
        try:
            found += path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue  # others are at it
    return found


def traces(content: bytes) -> set[str]:
    """The secrets that are anywhere, in text or in tokens."""
    tokens = {crash_worker.TOKENIZER.decode(np.frombuffer(found, "<u4").tolist()) for found in TOKENS.findall(content)}
    return {found.decode() for found in SECRET.findall(content)} | tokens


def wait_for_erasures(store: MemoryStore) -> None:
    """Wait until what is being erased now is, by whoever is at it."""
    with store.database.reading() as db:
        under_way = set(db.erasures())
    deadline = time.monotonic() + HUNG
    while under_way:
        assert time.monotonic() < deadline, f"erasures {under_way} do not end"
        time.sleep(0.05)
        with store.database.reading() as db:
            under_way &= set(db.erasures())
            under_way |= {0} if db.fact("rewriting") else set()


@pytest.mark.slow
def test_a_store_under_siege_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """Any calls in any order by many at once, and kill -9 now and then."""
    keeps_what_it_acknowledged(Siege(tmp_path, tmp_path / "store"))


@pytest.mark.slow
def test_a_database_under_siege_keeps_what_it_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, and its server crashes, ends connections, and cannot be reached for a moment."""
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))
    with closing(postgres.own_server()) as server, closing(postgres.Wire(server.get_uri())) as wire:
        siege = SiegeOfServer(tmp_path, server, wire)
        keeps_what_it_acknowledged(siege)
    assert siege.kills >= KILLS and min(siege.crashes, siege.cuts) >= KILLS // EVERY  # more if nothing was erased before


def keeps_what_it_acknowledged(siege: Siege) -> None:
    """Let processes loose on a store, do them harm, and look whether the store holds what it should."""
    chance = random.Random(f"{SEED}-kills")
    for slot in range(SLOTS):
        siege.begin(slot)
    last = siege.deadline + HUNG
    while not siege.over or not (siege.has_erased() or time.monotonic() > last):
        time.sleep(chance.uniform(*PAUSE))
        ended = siege.harm(chance)
        for slot in ended:
            siege.follow(slot)
            siege.private_secrets_are_gone(slot)
        with MemoryStore(siege.place, timeout=HUNG) as store:
            siege.nothing_was_wrong()
            for slot in ended:
                siege.settle(slot, store)
            siege.everybodys_hold(store)
            assert store.verify().problems == []
            wait_for_erasures(store)
        for slot in ended:
            siege.private_secrets_are_gone(slot)
            siege.begin(slot)
    siege.end()
    with MemoryStore(siege.place) as store:
        siege.nothing_was_wrong()
        for slot in range(SLOTS):
            siege.follow(slot)
            siege.settle(slot, store)
        siege.everybodys_hold(store)
        nothing_is_left_over(store)
        memories_are_those_of_fresh_sessions(store, siege.root, chance)
    siege.erased_is_gone()
    siege.report()
    with MemoryStore(siege.place) as store:
        for name in store.sessions():
            store.delete(name)
        for name in store.corpora():
            store.delete_corpus(name)
        nothing_is_left_over(store)
    assert not traces(siege.content())


def nothing_is_left_over(store: MemoryStore) -> None:
    """Verify everything, and that there is no row, no content and no stream that nobody shows."""
    problems, notes = store.verify()
    assert problems == [] and all("when a model opens it" in note for note in notes), "an import may have been cut short"
    with store.database.reading() as db:
        assert not db.erasures() and not db.fact("rewriting")
        shown = "SELECT body FROM messages UNION SELECT body FROM documents UNION SELECT ids FROM tokens"
        shown += " UNION SELECT memory FROM segments UNION SELECT name FROM collections UNION SELECT payload FROM vacant"
        assert not db.execute(f"SELECT id FROM payloads WHERE id NOT IN ({shown})").fetchall()
        assert not db.execute(f"SELECT * FROM ({shown}) WHERE body NOT IN (SELECT id FROM payloads)").fetchall()
        for table in ("drafts", "sweeps", "released"):
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        streams = {id for (id,) in db.execute("SELECT id FROM streams").fetchall()}
        assert not [id for id in streams if not db.is_shown(id) and not db.children(id)]
        for table in ("messages", "tokens", "segments"):
            assert {id for (id,) in db.execute(f"SELECT DISTINCT stream FROM {table}").fetchall()} <= streams


def memories_are_those_of_fresh_sessions(store: MemoryStore, root: Path, chance: random.Random) -> None:
    """Export some sessions and read them anew."""
    names = [name for name in store.sessions() if said(store, name)]
    for name in chance.sample(names, min(len(names), 40 if LONG else 8)):
        session = store.session(name, MODEL)
        session.export(root / "export")
        fresh = store.import_session(root / "export", name="fresh").rebuild(MODEL)
        assert said(store, "fresh") == said(store, name)
        np.testing.assert_allclose(memory_of(session), memory_of(fresh), atol=2e-3)
        store.delete("fresh")
