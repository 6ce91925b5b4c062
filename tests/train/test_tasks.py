"""What is drawn to train on: texts, recitation, clozes and questions, from folders, rows and streams."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, random_ids

from hmt_memory.errors import InputError
from hmt_memory.train import open_sources
from hmt_memory.train.examples import IGNORED, Example
from hmt_memory.train.sources import Document, Question, Stream, document_of
from hmt_memory.train.tasks import Shape, cloze, draw, questions, recitation, text

L = SMALL.segment_length


# --- objectives ---------------------------------------------------------------------------------------------------------


def encode(words: str) -> list[int]:
    return list(words.encode())


def document(tokens: int = 400, seed: int = 0) -> Document:
    return Document("one", random_ids(tokens, seed))


SHAPE = Shape(length=L, segments=3, before=2)


def drawn(task: Any, seed: int, documents: list[Document] | None = None) -> Example:
    return task(documents or [document()], random.Random(seed), SHAPE, encode)


@pytest.mark.parametrize("seed", range(20))
def test_text_is_consecutive_and_predicted(seed: int) -> None:
    row, whole = drawn(text, seed), document().ids.tolist()
    joined = [*row.before.tolist(), *row.ids.tolist()]
    assert len(row.before) == 2 * L and len(row.ids) == 3 * L
    assert any(whole[at : at + 5 * L] == joined for at in range(len(whole)))
    assert torch.equal(row.labels, row.ids)


def test_a_first_segment_without_memory_is_not_predicted() -> None:
    row = text([document()], random.Random(0), Shape(L, 3), encode)
    assert (row.labels[:L] == IGNORED).all() and torch.equal(row.labels[L:], row.ids[L:])


@pytest.mark.parametrize("seed", range(20))
def test_recitation_repeats_its_evidence(seed: int) -> None:
    row = drawn(recitation, seed)
    joined = torch.cat([row.before, row.ids])
    (source,) = row.evidence[2]
    start = (source + 2) * L
    assert torch.equal(joined[start : start + L], row.ids[-L:])
    assert torch.equal(row.labels[-L:], row.ids[-L:]) and (row.labels[:-L] == IGNORED).all()


@pytest.mark.parametrize("seed", range(40))
def test_cloze_asks_for_what_was_cut_out_of_its_evidence(seed: int) -> None:
    row, whole = drawn(cloze, seed), document().ids.tolist()
    joined = torch.cat([row.before, row.ids]).tolist()
    asked = row.ids[row.labels != IGNORED].tolist()
    place, start = found_at(whole, asked), found_at(whole, joined[:2])  # in the document
    ((source,),) = row.evidence.values()
    if start is None or start > place:  # cut out of the first two tokens
        assert source + 2 == 0
        return
    assert source + 2 == (place - start) // L
    assert joined[-len(asked) :] == asked and len(joined) == 4 * L + len(asked)
    around = whole[:place] + whole[place + len(asked) :] if found_at(joined[: 4 * L], asked) is None else whole
    assert joined[: 4 * L] == around[start : start + 4 * L]


def found_at(whole: list[int], part: list[int]) -> Any:
    return next((at for at in range(len(whole)) if whole[at : at + len(part)] == part), None)


@pytest.mark.parametrize("seed", range(20))
def test_questions_stand_after_the_text_and_point_to_the_answer(seed: int) -> None:
    one = Document("m", random_ids(400), (Question("why", "so", ((100, 130), (300, 310))), Question("x", "y", ())))
    row = drawn(questions, seed, [one])
    joined = torch.cat([row.before, row.ids])[: 4 * L].tolist()
    start = next(at for at in range(400) if one.ids[at : at + 4 * L].tolist() == joined)
    held = {place - start for low, high in ((100, 130), (300, 310)) for place in range(low, high)}
    assert set(row.evidence[2]) == {place // L - 2 for place in held if 0 <= place < 4 * L} != set()
    labelled = bytes(row.ids[row.labels != IGNORED].tolist())
    assert b" so\n".startswith(labelled)


def test_the_same_seed_draws_the_same_row_and_another_another() -> None:
    tasks = {"text": 1.0, "recitation": 1.0, "cloze": 1.0}
    rows = [draw(tasks, [document()], seed, SHAPE, encode) for seed in ("0/1/0", "0/1/0", "0/2/0")]
    assert torch.equal(rows[0].ids, rows[1].ids) and not torch.equal(rows[0].ids, rows[2].ids)


def test_documents_that_are_too_short_say_so() -> None:
    with pytest.raises(InputError, match="80 tokens"):
        drawn(text, 0, [document(20)])
    with pytest.raises(InputError, match="questions"):
        drawn(questions, 0)


# --- sources ------------------------------------------------------------------------------------------------------------


def test_sources_read_folders_of_text_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.md").write_text("defg")
    (tmp_path / "skip.bin").write_bytes(b"\0")
    turns = [{"speaker": "A", "text": "hi"}, {"speaker": "B", "text": "yes"}]
    rows = [
        {"text": "plain"},
        {"messages": [{"role": "user", "content": "hello"}]},
        {"id": "m1", "turns": turns, "queries": [{"query": "q", "answer": "a", "turn_spans": [[1, 1]]}]},
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = open_sources([str(tmp_path)], encode).at(0)
    assert [bytes(one.ids.tolist()) for one in found] == [b"abc", b"defg", b"plain", b"user: hello\n", b"A: hi\nB: yes\n"]
    ((low, high),) = found[-1].questions[0].spans
    assert bytes(found[-1].ids[low:high].tolist()) == b"B: yes\n"


@pytest.mark.parametrize("line", ["{", '{"other": 1}', '{"turns": [{"speaker": "A"}]}', "[1]"])
def test_a_bad_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match="line 2"):
        open_sources([str(tmp_path / "c.jsonl")], encode)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file or folder"):
        open_sources([str(tmp_path / "none")], encode)
    with pytest.raises(InputError, match="no text"):
        open_sources([str(tmp_path)], encode)
    with pytest.raises(InputError, match="cannot be mixed"):
        open_sources(["hf:one", "two"], encode)


def test_a_stream_gives_the_same_pool_at_a_step_whenever_it_is_asked() -> None:
    def endless() -> Any:
        return (document_of({"text": f"text {number}"}, str(number), encode) for number in range(30))

    one, two = Stream(endless, seed=3, size=8), Stream(endless, seed=3, size=8)
    walked = [[held.name for held in one.at(step)] for step in range(50)]
    assert [held.name for held in two.at(37)] == walked[37]
    assert [held.name for held in two.at(5)] == walked[5]
    assert len({tuple(names) for names in walked}) > 40
    with pytest.raises(InputError, match="no documents"):
        Stream(lambda: [], seed=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the datasets package
def test_a_dataset_by_name_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows = [{"body": f"row {number}"} for number in range(300)]
    (tmp_path / "set/data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_sources([f"hf:{tmp_path / 'set'}:train:body"], encode, seed=1)
    assert isinstance(source, Stream)
    names = {bytes(one.ids.tolist()).decode() for step in (0, 40, 80) for one in source.at(step)}
    assert names <= {row["body"] for row in rows} and len(names) > 256
    with pytest.raises(InputError, match="no column 'text' but body"):
        open_sources([f"hf:{tmp_path / 'set'}"], encode)
    with pytest.raises(InputError, match="does not load"):
        open_sources([f"hf:{tmp_path / 'none'}"], encode)
