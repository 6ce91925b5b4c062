"""`hmt chat --session`, `hmt sessions` and `hmt read` on a tiny random model: what they store, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from terminal_input import FAST, SAME, TEXT, run, type_in, typing_screen

from hmt_memory import HMTConfig, HMTModel, MemoryStore
from hmt_memory.cli import models, options, terminal
from hmt_memory.store.open import default_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    monkeypatch.setenv("HMT_STORE", str(folder))
    return folder


@pytest.fixture
def talked(store: Path, chatty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A store with the session `alice`: two turns, the first of them long."""
    type_in(monkeypatch, f"{TEXT}\nAnd who comes?\n".encode())
    assert run("chat", "--session", "alice", "--model", chatty, *SAME, *FAST) == 0
    capsys.readouterr()
    return store


def said(folder: Path, name: str = "alice") -> list[tuple[int, str]]:
    with MemoryStore(folder) as opened:
        return [(message.id, message.content) for message in opened.session(name).messages()]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_chat_goes_on_in_another_process(
    talked: Path,
    chatty: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = said(talked)
    assert [id for id, _ in before] == [1, 2, 3, 4] and before[0][1] == TEXT.strip() and before[2][1] == "And who comes?"
    type_in(monkeypatch, b"/recall\n/recall meeting\n/stats\n/help\nhello\n/recall\n/undo\n/undo\n/nonsense\n/quit\n")
    assert run("chat", "-s", "alice", "--model", chatty, *SAME, "--system", "Be brief.", *FAST) == 0
    captured = capsys.readouterr()
    for note in (
        *("goes on: 4 messages", "Nothing was asked yet", "alice #", "in session 'alice'", "/undo"),
        *("The last question and its answer are erased", "nothing to undo", "no command /nonsense"),
    ):
        assert note in captured.err, note
    assert captured.out.count("\n") >= 1
    assert said(talked) == [*before, (5, "Be brief.")]
    type_in(monkeypatch, b"/quit\n")
    assert run("chat", "-s", "alice", "--model", chatty, *SAME, "--system", "Be brief.", *FAST) == 0
    assert said(talked) == [*before, (5, "Be brief.")], "a system prompt in force is not stored again"


def test_without_a_session_nothing_is_stored(
    store: Path,
    chatty: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_in(monkeypatch, b"hello\n/undo\n")
    assert run("chat", "--model", chatty, *SAME, *FAST) == 0
    assert not store.exists() and "no command /undo" in capsys.readouterr().err


def test_listing_and_showing(talked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sessions", "list") == 0
    assert "alice" in capsys.readouterr().out
    assert run("sessions", "list", "--json") == 0
    listed = printed(capsys)
    assert [one["name"] for one in listed["sessions"]] == ["alice"] and listed["sessions"][0]["messages"] == 4
    assert run("sessions", "show", "alice") == 0
    assert "And who comes?" in capsys.readouterr().out
    assert run("sessions", "show", "alice", "--last", "2", "--json") == 0
    shown = printed(capsys)
    assert [(one["id"], one["content"]) for one in shown["messages"]] == said(talked)[-2:] and shown["segments"] > 0


def test_recall_cites(talked: Path, chatty: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "sessions",
        "recall",
        "alice",
        "meeting",
        "--top",
        "2",
        "--model",
        chatty,
        "--dtype",
        "float32",
        "--device",
        "cpu",
    )
    assert run(*command) == 0
    captured = capsys.readouterr()
    assert "The meeting is on Friday" in captured.out and captured.err == ""
    assert run(*command, "--json") == 0
    found = printed(capsys)
    assert len(found["segments"]) in (1, 2) and 0 < found["coverage"] <= 1
    assert found["segments"][0]["messages"][0] in (1, 2, 3, 4) and found["segments"][0]["source"] == "alice"


@pytest.mark.slow
def test_fork_forget_export_import_and_delete(talked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = said(talked)
    assert run("sessions", "fork", "alice", "bob", "--upto", "2", "--json") == 0
    assert printed(capsys)["messages"] == 2 and said(talked, "bob") == before[:2]
    assert run("sessions", "forget", "alice", "1", "--yes") == 0
    captured = capsys.readouterr()
    assert "1 message of 'alice' is erased" in captured.err and "'bob' shares some of them" in captured.err
    assert said(talked) == before[1:]
    path = str(tmp_path / "alice.hmt")
    assert run("sessions", "export", "alice", path, "--json") == 0
    assert printed(capsys)["bytes"] == Path(path).stat().st_size
    assert run("sessions", "import", path) == 1
    assert "'alice' already" in capsys.readouterr().err
    assert run("sessions", "import", path, "--name", "carl") == 0 and said(talked, "carl") == before[1:]
    assert run("sessions", "delete", "carl") == 1
    assert "add --yes" in capsys.readouterr().err and said(talked, "carl")
    assert run("sessions", "delete", "carl", "--yes") == 0
    assert run("sessions", "show", "carl") == 1
    assert "no session 'carl'" in capsys.readouterr().err
    assert run("sessions", "verify") == 0 and run("sessions", "verify", "alice", "--json") == 0
    assert printed(capsys) == {"ok": True, "problems": [], "notes": []}


def test_a_person_is_asked_before_something_is_deleted(talked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.Screen, "standard", typing_screen)
    for command, before, after in ((("forget", "alice", "1", "2"), 4, 2), (("delete", "alice"), 2, None)):
        for answer, left in (("n", before), ("", before), ("y", after)):
            monkeypatch.setattr("builtins.input", lambda answer=answer: answer)
            assert run("sessions", *command) == 0
            with MemoryStore(talked) as opened:
                assert left == (len(opened.session("alice").messages()) if opened.has("session", "alice") else None)


def test_one_damaged_session_does_not_hide_the_others(talked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MemoryStore(talked) as opened:
        opened.session("alice").fork("bob")
        with opened.database.writing() as db:
            db.execute("UPDATE streams SET tokens = tokens + 1 WHERE parent IS NOT NULL")
    assert run("sessions", "list") == 0
    shown = capsys.readouterr()
    assert "alice" in shown.out and "bob" in shown.out and "'bob': the record of stream" in shown.err
    assert run("sessions", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["sessions"]
    assert listed[0]["messages"] and "damaged" in listed[1]["problem"]
    assert run("sessions", "verify") == 1


def test_room_is_given_back(talked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MemoryStore(talked) as opened:
        opened.session("alice").fork("bob")
        opened.delete("alice")
        opened.delete("bob")
    assert run("sessions", "compact", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bytes"] >= 0
    assert run("sessions", "compact") == 0 and "given back to the disk" in capsys.readouterr().err


def test_verify_reports_damage_by_its_exit_code(talked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MemoryStore(talked) as opened, opened.database.writing() as db:
        (body,) = db.execute("SELECT body FROM messages WHERE id = 3").fetchone()
        db.execute("UPDATE payloads SET data = ? WHERE id = ?", (b'{"role": "user", "content": "something else"}', body))
    assert run("sessions", "verify") == 1
    assert "message 3 is damaged" in capsys.readouterr().out
    assert run("sessions", "show", "alice") == 1
    assert "message 3 is damaged" in capsys.readouterr().err


def test_another_model_is_refused_and_rebuilding_helps(
    talked: Path,
    chatty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = str(tmp_path / "adapter")
    HMTModel.from_pretrained(chatty, config=HMTConfig(segment_length=64), dtype="float32", device="cpu").save_pretrained(other)
    type_in(monkeypatch, b"hello\n")
    assert run("chat", "-s", "alice", "--model", other, *FAST) == 1
    assert "hmt sessions rebuild alice" in capsys.readouterr().err
    assert run("sessions", "rebuild", "alice", "--model", other, "--dtype", "float32", "--device", "cpu") == 0
    assert "read anew" in capsys.readouterr().err
    type_in(monkeypatch, b"hello\n")
    assert run("chat", "-s", "alice", "--model", other, *FAST) == 0 and len(said(talked)) == 6


@pytest.mark.slow
def test_documents_are_read_once_and_asked_at_any_time(
    store: Path,
    chatty: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, two = tmp_path / "one.md", tmp_path / "two.md"
    one.write_text(TEXT)
    two.write_text("The second document.")
    device = ("--model", chatty, "--dtype", "float32", "--device", "cpu")
    assert run("read", "--corpus", "book", str(one), str(two), str(one), "--json", *device) == 0
    assert printed(capsys)["documents"] == 2
    two.write_text("The second document, changed.")
    assert run("read", "--corpus", "book", str(one), str(two), "--json", *device) == 0
    found = printed(capsys)
    assert (found["documents"], found["added"], found["replaced"], found["unchanged"]) == (2, [3], [2], 1)
    assert run("ask", "--corpus", "book", "--corpus", "book", "When is the meeting?", *FAST, "--model", chatty) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() and "one.md" in captured.err
    type_in(monkeypatch, b"hello\n")
    assert run("chat", "-s", "alice", "--corpus", "book", "--model", chatty, *SAME, *FAST) == 0
    with MemoryStore(store) as opened:
        assert opened.session("alice").stats()["corpora"] == ["book"]
    assert run("sessions", "detach", "alice", "book") == 0 and run("sessions", "attach", "alice", "book") == 0
    assert run("corpora", "rebuild", "book", *device) == 0
    assert "read anew" in capsys.readouterr().err
    assert run("corpora", "list") == 0 and "book" in capsys.readouterr().out
    assert run("corpora", "delete", "book", "--yes") == 0
    assert run("ask", "--corpus", "book", "x", "--model", chatty) == 1
    assert "no corpus 'book'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sessions", "list"), "there is no store in"),
        (("sessions", "show", "bob"), "there is no store in"),
        (("ask", "--corpus", "book", "what?"), "there is no store in"),
    ],
)
def test_without_a_store_the_way_to_one_is_shown(
    store: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not store.exists()


def test_where_sessions_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HMT_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store() == tmp_path / "hmt-memory"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_store() == Path.home() / ".local/share/hmt-memory"
    monkeypatch.setenv("HMT_STORE", str(tmp_path / "own"))
    assert default_store() == tmp_path / "own"
    monkeypatch.setenv("HMT_STORE", "postgresql://db.example/memory")
    assert default_store() == "postgresql://db.example/memory"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert terminal.printable("a\x1b[31mb\x00c\n") == "a[31mbc\n" and terminal.beginning("a  b\nc " * 200).endswith("…")


def test_one_model_reads_and_another_answers(
    store: Path, plain: str, chatty: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        type_in(monkeypatch, b"My dog is called Bruno.\n")
        assert run("chat", "--session", "zoe", "--model", chatty, "--reader", plain, *FAST) == 0
        assert capsys.readouterr().out.strip()
        assert run("sessions", "show", "zoe", "--json") == 0
        assert len(printed(capsys)["messages"]) == 2 * (number + 1)
    assert run("ask", "--reader", plain, "--model", chatty, __file__, "What?") == 2
    assert "need a --corpus" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bundled_model_reads_for_one_that_is_not_trained(
    store: Path, chatty: str, bundled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = f"{chatty} has no trained memory: {bundled} reads for it."

    def chat(session: str, *options: str) -> tuple[str, bool]:
        type_in(monkeypatch, b"My dog is called Bruno.\n")
        assert run("chat", *(("-s", session) if session else ()), "--model", chatty, *options, *FAST) == 0
        told = note in capsys.readouterr().err.replace("\n", " ")
        with MemoryStore(store) as opened:
            return (str(opened.session(session).made_by()) if session else "", told)

    assert chat("new")[1] and "segment_length=48" in chat("new")[0]
    assert not chat("own", *SAME)[1] and not chat("own")[1] and "segment_length=256" in chat("own")[0]
    assert chat("") == ("", True)
    with monkeypatch.context() as nothing_loaded:
        nothing_loaded.setattr(models, "load_model", None)
        assert run("chat", "-m", "./no/folder") == 1 and "there is no folder" in capsys.readouterr().err
    assert run("ask", *SAME, "--model", chatty, __file__, "What?", *FAST) == 0
    assert run("read", "--corpus", "book", __file__, "--model", bundled, "--dtype", "float32", "--device", "cpu") == 0
    capsys.readouterr()
    assert run("ask", "--corpus", "book", "What?", "--model", chatty, *FAST) == 0
    assert note in capsys.readouterr().err.replace("\n", " ")


def test_what_a_server_keeps_for_its_responses_is_listed_where_it_is_asked_for(
    talked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MemoryStore(talked) as opened:
        opened.session("alice").fork(".responses/1")
    assert run("sessions", "list") == 0
    shown = capsys.readouterr()
    assert "alice" in shown.out and ".responses" not in shown.out and "1 more session" in shown.err and "--all" in shown.err
    assert run("sessions", "list", "--all", "--json") == 0
    assert [one["name"] for one in printed(capsys)["sessions"]] == [".responses/1", "alice"]
    context: Any = SimpleNamespace(params={"store": talked})
    assert options._names(context, "session", "") == ["alice"]
