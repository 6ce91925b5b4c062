"""Exported sessions: the same again, in an open format, and nothing accepted that is not whole."""

from __future__ import annotations

import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from archives import MODEL, pack, parts_of
from places import ROOT
from stored import FAST, memory_of, tokens_of, user
from tiny import LONG, REMEMBERING, byte_tokenizer, light_model

from hmt_memory import HMTConfig, MemoryStore
from hmt_memory.engine.fingerprint import digest_of, fingerprint
from hmt_memory.errors import InputError, SessionExistsError, StoreDamagedError, StoreError
from hmt_memory.sessions.archive import container, importing

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store that holds a session, and of the exported session."""
    folder = tmp_path_factory.mktemp("made")
    with MemoryStore(folder / "store") as store:
        session = store.session("alice", MODEL)
        session.add([{"role": "system", "content": "Be kind."}, user("hello \U0001f600\u2028 " * 10)])
        session.forget(session.add(user("never mind")))
        session.set_retention(messages=1000)
        session.export(folder / "alice.hmt")
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Iterator[MemoryStore]:
    """A store that holds alice's session."""
    shutil.copytree(made / "store", tmp_path / "store")
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made / "alice.hmt", tmp_path))


def test_an_imported_session_is_the_same(store: MemoryStore, exported: Path) -> None:
    session = store.session("alice", MODEL)
    again = store.import_session(exported, name="again", model=MODEL)
    assert [(one.id, one.to_dict(), one.created_at) for one in again.messages()] == [
        (one.id, one.to_dict(), one.created_at) for one in session.messages()
    ]
    assert tokens_of(again) == tokens_of(session) and np.array_equal(memory_of(again), memory_of(session))
    for key in ("created_at", "retention", "model", "segments"):
        assert again.stats()[key] == session.stats()[key]
    assert again.add(user("next")) == session.add(user("next")) == [4]
    assert again.reply(**FAST).finish().text == session.reply(**FAST).finish().text
    assert store.verify().ok


def test_the_format_is_open(exported: Path) -> None:
    """A ZIP of JSON and raw numbers, as `docs/reference/format.md` says; the same session gives the same bytes."""
    parts = parts_of(exported)
    assert list(parts) == ["manifest.json", "messages.jsonl", "tokens.u32", "memory.f16"]
    manifest = json.loads(parts["manifest.json"])
    messages = [json.loads(line) for line in parts["messages.jsonl"].decode().split("\n")[:-1]]
    assert [message["body"]["role"] for message in messages] == ["system", "user"]
    assert messages[1]["tokens"][1] == manifest["tokens"] == len(parts["tokens.u32"]) // 4
    assert len(parts["memory.f16"]) == manifest["segments"] * 2 * 32
    assert (manifest["format"], manifest["version"], manifest["next_id"]) == ("hmt-session", 1, 4)
    described = (ROOT / "docs" / "reference" / "format.md").read_text()
    model = manifest["model"]["parts"]
    for name in [*parts, *manifest, *messages[0], *model, *model["backbone"], *model["config"]]:
        assert f"`{name}`" in described, f"docs/reference/format.md does not name {name}"


def test_the_same_session_gives_the_same_file(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    store.session("alice").export(tmp_path / "twice")
    assert (tmp_path / "twice").read_bytes() == exported.read_bytes()


def test_it_can_be_read_anew_for_another_model(store: MemoryStore, exported: Path) -> None:
    other = light_model(config=REMEMBERING, tokenizer=TOKENIZER, seed=1)
    again = store.import_session(exported, name="again", model=other)
    assert tokens_of(again) == tokens_of(store.session("alice", MODEL)) and again.recall("hello")
    assert not np.allclose(memory_of(again), memory_of(store.session("alice", MODEL)))


def test_a_name_that_is_taken(store: MemoryStore, exported: Path) -> None:
    with pytest.raises(SessionExistsError, match="'alice' already"):
        store.import_session(exported)
    store.delete("alice")
    assert store.import_session(exported).name == "alice"
    with pytest.raises(InputError, match="cannot be a name"):
        store.import_session(exported, name="two\nlines")


def test_a_name_is_the_one_that_a_session_made_here_would_have(store: MemoryStore, exported: Path) -> None:
    """However its accents are written."""
    store.import_session(exported, name="Zoe\u0308")
    assert store.sessions() == ["Zo\u00eb", "alice"] and store.session("Zoe\u0308").messages()
    with pytest.raises(SessionExistsError, match="already"):
        store.import_session(exported, name="Zo\u00eb")


def test_an_empty_session(store: MemoryStore, tmp_path: Path) -> None:
    store.session("empty", MODEL).export(tmp_path / "empty")
    assert store.import_session(tmp_path / "empty", name="again", model=MODEL).messages() == []


def lines(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        messages = [json.loads(line) for line in parts["messages.jsonl"].decode().split("\n")[:-1]]
        change(messages)
        parts["messages.jsonl"] = "".join(json.dumps(message) + "\n" for message in messages).encode()

    return apply


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def unchanged(parts: dict[str, bytes]) -> None:
    """The manifest alone is changed."""


CALL = {"role": "assistant", "content": None}
TAMPERED: dict[str, tuple[Callable[[dict[str, bytes]], None], dict[str, Any]]] = {
    "another format": (unchanged, {"format": "other"}),
    "an unknown field": (unchanged, {"colour": "red"}),
    "a hole between messages": (lines(lambda rows: rows[1].update(tokens=[3, rows[1]["tokens"][1]])), {}),
    "a message beyond the tokens": (lines(lambda rows: rows[1].update(tokens=[0, 10**9])), {}),
    "negative spans": (lines(lambda rows: rows[1].update(content=[-5, 2])), {}),
    "a span of three": (lines(lambda rows: rows[1].update(content=[0, 2, 3])), {}),
    "one id twice": (lines(lambda rows: rows[1].update(id=rows[0]["id"])), {}),
    "an id to come": (lines(lambda rows: rows[1].update(id=99)), {}),
    "an id that is a text": (lines(lambda rows: rows[1].update(id="2")), {}),
    "the batch of nobody": (lines(lambda rows: rows[1].update(batch=3)), {}),
    "a body that is no message": (lines(lambda rows: rows[1].update(body=["x"])), {}),
    "a field of a message too much": (lines(lambda rows: rows[1].update(seq=1)), {}),
    "calls that are none": (lines(lambda rows: rows[1].update(body={**CALL, "tool_calls": "x"})), {}),
    "deep arguments": (
        lines(lambda rows: rows[1].update(body={**CALL, "tool_calls": [{"function": {"arguments": "[" * 10**5}}]})),
        {},
    ),
    "a deep body": (lines(lambda rows: rows[1]["body"].update(more=nested(200))), {}),
    "a body of too many values": (lines(lambda rows: rows[1]["body"].update(more=[[]] * 70_000)), {}),
    "a body of too many texts": (lines(lambda rows: rows[1]["body"].update(more={str(at): 0 for at in range(140_000)})), {}),
    "a lone surrogate": (lines(lambda rows: rows[1]["body"].update(content="\ud800")), {}),
    "a pinned user": (lines(lambda rows: rows[1].update(pinned=True, tokens=[0, 0], content=[0, 0])), {}),
    "a user that is pinned and read": (lines(lambda rows: rows[1].update(pinned=True)), {}),
    "a system message that is read": (lines(lambda rows: rows[1]["body"].update(role="system")), {}),
    "a system message that is not pinned": (lines(lambda rows: rows[0].update(pinned=False)), {}),
    "pinned by a number": (lines(lambda rows: rows[0].update(pinned=1)), {}),
    "a message less": (lines(lambda rows: rows.pop()), {}),
    "a line without end": (lambda parts: parts.update({"messages.jsonl": parts["messages.jsonl"][:-1]}), {}),
    "no UTF-8": (lambda parts: parts.update({"messages.jsonl": b"\xff" + parts["messages.jsonl"]}), {}),
    "unknown tokens": (lambda parts: parts.update({"tokens.u32": b"\xff" * len(parts["tokens.u32"])}), {}),
    "a token more": (lambda parts: parts.update({"tokens.u32": parts["tokens.u32"] + bytes(4)}), {}),
    "half a token": (lambda parts: parts.update({"tokens.u32": parts["tokens.u32"] + b"x"}), {}),
    "NaN": (lambda parts: parts.update({"memory.f16": b"\xff" * len(parts["memory.f16"])}), {}),
    "a memory less": (lambda parts: parts.update({"memory.f16": parts["memory.f16"][64:]}), {}),
    "more segments than tokens": (lambda parts: parts.update({"memory.f16": bytes(64 * 999)}), {"segments": 999}),
    "memories of no model": (unchanged, {"model": None}),
    "a foreign digest": (unchanged, {"model": {"digest": "0" * 32, "parts": {"backbone": {}}}}),
    "no counts": (unchanged, {"messages": None}),
    "text for numbers": (unchanged, {"segments": "many"}),
    "a truth for a number": (unchanged, {"segments": True}),
    "a time that no calendar has": (lines(lambda rows: rows[0].update(created_at=1e300)), {}),
    "a time in words": (lines(lambda rows: rows[0].update(created_at="5")), {}),
    "no time": (unchanged, {"updated_at": float("nan")}),
    "a time before all": (unchanged, {"created_at": float("-inf")}),
    "an id beyond all": (lines(lambda rows: rows[1].update(id=1 << 63)), {"next_id": 1 << 64}),
    "a next id that is taken": (unchanged, {"next_id": 2}),
    "a billion segments": (unchanged, {"segments": 10**12}),
    "a trillion messages": (unchanged, {"messages": 10**18}),
    "a list for the retention": (unchanged, {"retention": [1]}),
    "a limit that is none": (unchanged, {"retention": {"messages": "all"}}),
    "a limit of one and a half": (unchanged, {"retention": {"messages": 1.5}}),
    "a limit of nothing": (unchanged, {"retention": {"messages": 0}}),
    "a limit that is true": (unchanged, {"retention": {"messages": True}}),
    "an age without end": (unchanged, {"retention": {"seconds": float("inf")}}),
    "an age of nothing": (unchanged, {"retention": {"seconds": 0}}),
    "an unknown limit": (unchanged, {"retention": {"words": 5}}),
    "a name on two lines": (unchanged, {"name": "two\nlines"}),
    "a name that is a number": (unchanged, {"name": 5}),
    "a list of files that is none": (unchanged, {"files": []}),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_file_with_fitting_digests_is_refused(store: MemoryStore, exported: Path, tmp_path: Path, name: str) -> None:
    """Before anything is locked or written."""
    change, manifest = TAMPERED[name]
    parts = parts_of(exported)
    change(parts)
    path = pack(tmp_path / "tampered", parts, **manifest)
    with (
        mock.patch.object(store.database, "writing", side_effect=AssertionError("it is written")),
        pytest.raises(StoreDamagedError, match=r"not a whole exported session: .+\. [A-Z].+\.$"),
    ):
        store.import_session(path, name="again", model=MODEL)
    assert store.sessions() == ["alice"]


MODEL_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": lambda parts, key=key: parts.pop(key) for key in ("backbone", "tokenizer", "memory", "adapter", "config")},
    "no start tokens": lambda parts: parts.pop("start_ids"),
    "no mode": lambda parts: parts["config"].pop("mode"),
    "no segment length": lambda parts: parts["config"].pop("segment_length"),
    "another mode": lambda parts: parts["config"].update(mode="fast"),
    "a mode that is a list": lambda parts: parts["config"].update(mode=["hmt"]),
    "a segment length in words": lambda parts: parts["config"].update(segment_length="16"),
    "no segment": lambda parts: parts["config"].update(segment_length=0),
    "half a slot": lambda parts: parts["config"].update(memory_tokens=0.5),
    "more slots than memory": lambda parts: parts["config"].update(memory_tokens=1 << 30),
    "an unknown size": lambda parts: parts["config"].update(colour=3),
    "a name that is none": lambda parts: parts["backbone"].update(name=None),
    "a name that moves the cursor": lambda parts: parts["backbone"].update(name="\x1b[2J"),
    "no width": lambda parts: parts["backbone"].pop("hidden_size"),
    "a width of nothing": lambda parts: parts["backbone"].update(hidden_size=0),
    "no vocabulary": lambda parts: parts["backbone"].update(vocab_size=-1),
    "weights of no digest": lambda parts: parts["backbone"].update(weights_digest="x"),
    "no precision": lambda parts: parts["backbone"].update(weights_digest=None),
    "an unknown precision": lambda parts: (parts["backbone"].update(weights_digest=None), parts.update(dtype=16)),
    "start tokens in words": lambda parts: parts.update(start_ids="ab"),
    "a start token beyond all": lambda parts: parts.update(start_ids=[300]),
    "a start token that is true": lambda parts: parts.update(start_ids=[True]),
    "a tokenizer that is a list": lambda parts: parts.update(tokenizer=[]),
    "a part too much": lambda parts: parts.update(more=1),
}


@pytest.mark.parametrize("name", MODEL_CHANGES)
def test_the_parts_of_a_model_are_checked_one_by_one(store: MemoryStore, exported: Path, tmp_path: Path, name: str) -> None:
    """Whatever reads them may rely on all: a record that lacks one would hide every session of the store."""
    parts = parts_of(exported)
    model = json.loads(parts["manifest.json"])["model"]["parts"]
    MODEL_CHANGES[name](model)
    made = {"digest": digest_of({"backbone": {}, **model}), "parts": model}
    with pytest.raises(StoreDamagedError, match="not a whole exported session"):
        store.import_session(pack(tmp_path / "tampered", parts, model=made), name="again")
    assert [store.session(session).stats()["name"] for session in store.sessions()] == ["alice"]


KINDS = {
    "as it is": {},
    "recalling less": {"memory_tokens": 2, "recalled_tokens": 1},
    "without recall": {"mode": "rmt"},
    "without memory": {"mode": "plain"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, None])
def test_whatever_a_fingerprint_is_made_of_is_accepted(
    store: MemoryStore, exported: Path, tmp_path: Path, kind: str, half: bool, tokenizer: Any
) -> None:
    model = light_model(config=HMTConfig(segment_length=16, sensory_length=4, **KINDS[kind]), tokenizer=tokenizer)
    made_by = fingerprint(model.half() if half else model)
    parts = parts_of(exported) | {"memory.f16": b""}
    path = pack(tmp_path / "other", parts, segments=0, model={"digest": made_by.digest, "parts": made_by.parts})
    assert store.import_session(path, name="again").stats()["model"] == str(made_by)


@pytest.mark.slow
def test_any_damage_is_noticed(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    content, chance = exported.read_bytes(), random.Random(0)
    path = tmp_path / "damaged"
    for round in range(2000 if LONG else 150):
        damaged = bytearray(content)
        if round % 3:
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            again = store.import_session(path, name="again")
        except StoreError:
            assert store.sessions() == ["alice"]
            continue
        assert [one.to_dict() for one in again.messages()] == [one.to_dict() for one in store.session("alice").messages()]
        assert tokens_of(again) == tokens_of(store.session("alice"))
        store.delete("again")


def test_a_part_that_is_not_the_one_that_was_written_is_refused(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    """Well formed, of the same length, and packed again: only its digest tells."""
    parts = parts_of(exported)
    parts["messages.jsonl"] = parts["messages.jsonl"].replace(b"Be kind.", b"Be rude.")
    with zipfile.ZipFile(tmp_path / "changed", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(StoreDamagedError, match=r"messages.jsonl is not whole"):
        store.import_session(tmp_path / "changed", name="again")


@pytest.mark.parametrize("name", ["messages.jsonl", "tokens.u32", "memory.f16"])
def test_a_file_that_changes_while_it_is_imported_leaves_nothing(
    store: MemoryStore, exported: Path, tmp_path: Path, name: str
) -> None:
    """It is hashed as it is copied, too."""
    parts = parts_of(exported)
    other = bytearray(parts[name].replace(b"Be kind.", b"Be rude."))
    if other == parts[name]:
        other[0] ^= 1
    path, check = pack(tmp_path / "other", parts), importing._check
    changed = pack(tmp_path / "changed", parts | {name: bytes(other)}).read_bytes()
    start = changed.index(bytes(other))

    def change(archive: Any) -> None:
        check(archive)
        with path.open("r+b") as file:
            file.seek(start)
            file.write(other)

    unbuffered = mock.patch.object(container, "_open", lambda path: path.open("rb", buffering=0))
    with unbuffered, mock.patch.object(importing, "_check", change), pytest.raises(StoreDamagedError, match="whole exported"):
        store.import_session(path, name="again")
    assert store.sessions() == ["alice"] and store.verify().ok


def test_other_files_and_other_versions(store: MemoryStore, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        store.import_session(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(StoreDamagedError, match="not a whole exported session"):
        store.import_session(tmp_path / "text")
    with pytest.raises(StoreDamagedError, match="it is no file"):
        store.import_session(tmp_path)
    with pytest.raises(StoreError, match="Upgrade hmt-memory"):
        store.import_session(pack(tmp_path / "new", parts_of(exported), version=4), name="again")
    with pytest.raises(StoreError, match="cannot be written"):
        store.session("alice").export(tmp_path / "no" / "such" / "folder")


KEYED = light_model(config=replace(REMEMBERING, key_dim=6), tokenizer=byte_tokenizer())


@pytest.fixture
def keyed(store: MemoryStore, tmp_path: Path) -> Path:
    """An exported session of a model that makes keys by meaning."""
    session = store.session("keyed", KEYED)
    session.add([user(f"message {number} says nothing in particular") for number in range(6)])
    session.export(tmp_path / "keyed.hmt")
    return tmp_path / "keyed.hmt"


def keys_of(store: MemoryStore, name: str) -> list[bytes | None]:
    session = store.session(name, KEYED)
    shelf = session._own_shard(session._snapshot()).shelf
    with store.database.reading() as db:
        return [row.keys for row in shelf.rows(db, 0, shelf.total)]


def test_keys_by_meaning_go_with_a_session(store: MemoryStore, keyed: Path) -> None:
    store.import_session(keyed, name="again")
    found = keys_of(store, "again")
    assert found == keys_of(store, "keyed") and len(found) > 3 and any(found)
    assert json.loads(parts_of(keyed)["manifest.json"])["version"] == 2 and store.verify().ok
    assert (
        store.session("again", KEYED).recall("message 3")[0].text == store.session("keyed", KEYED).recall("message 3")[0].text
    )


def _other(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda keys: keys[:at] + bytes([value]) + keys[at + 1 :]


@pytest.mark.parametrize(
    "change",
    [_other(0, 7), _other(3, 255), _other(5, 0x7E), lambda keys: keys[:-2], lambda keys: keys + b"00", lambda keys: b""],
    ids=["no whole number of keys", "too large", "not finite", "short", "long", "none"],
)
def test_keys_that_are_damaged_are_refused(
    store: MemoryStore, keyed: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    parts = parts_of(keyed)
    path = pack(tmp_path / "damaged", parts | {"keys.bin": change(parts["keys.bin"])})
    with pytest.raises(StoreDamagedError, match="whole exported session"):
        store.import_session(path, name="again")
    assert "again" not in store.sessions() and store.verify().ok


def test_keys_belong_to_models_that_make_them(store: MemoryStore, keyed: Path, exported: Path, tmp_path: Path) -> None:
    """A file is refused that lacks keys which its model makes, or that has some of a model without."""
    parts = parts_of(keyed)
    files = json.loads(parts["manifest.json"])["files"]
    without = {name: content for name, content in parts.items() if name != "keys.bin"}
    with_some = parts_of(exported) | {"keys.bin": b""}
    own = json.loads(with_some["manifest.json"])["files"]
    cases = [
        (without, 1, {name: stated for name, stated in files.items() if name != "keys.bin"}),
        (with_some, 2, own | {"keys.bin": dict(files["keys.bin"])}),
        (with_some, 1, own),
    ]
    for content, version, listed in cases:
        with pytest.raises(StoreDamagedError, match=r"its keys are not those|its files are not those"):
            store.import_session(pack(tmp_path / "other", content, version=version, files=listed), name="again")
