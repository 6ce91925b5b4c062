"""Evaluation: perplexity under each kind of memory, intervals, reports."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SMALL, random_ids, tiny_model

from hmt_memory import HMTModel
from hmt_memory.cli import main
from hmt_memory.errors import InputError
from hmt_memory.evaluate import passkey
from hmt_memory.evaluate.behaviour import diluted, interleaved, recall_weights
from hmt_memory.evaluate.conversations import load_conversations
from hmt_memory.evaluate.evidence import bm25, evidence_inside
from hmt_memory.evaluate.passkey import haystack, needles
from hmt_memory.evaluate.perplexity import Contender, compare, token_losses
from hmt_memory.evaluate.questions import _answer, load_samples
from hmt_memory.evaluate.statistics import gain_interval, mean_interval, perplexity_interval
from hmt_memory.train import PRESETS, Recipe

L = SMALL.segment_length


def plain_losses(model: HMTModel, ids: torch.Tensor) -> np.ndarray:
    """By the model's own forward pass."""
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    found = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")
    return found.double().numpy()


CENTRED = replace(SMALL, memory_input="centred", memory_tokens=2)


@pytest.mark.parametrize("config", [SMALL, CENTRED], ids=["paper", "centred"])
@pytest.mark.parametrize(("memory", "mode"), [("recalled", "hmt"), ("previous", "rmt"), ("none", "plain")])
def test_losses_are_those_of_the_model_in_each_mode(config: Any, memory: Any, mode: Any) -> None:
    model = tiny_model(config=config)
    ids = random_ids(7 * L + 5)
    np.testing.assert_allclose(token_losses(model, ids, memory), plain_losses(model.with_config(mode=mode), ids), rtol=1e-4)


def test_initial_memory_is_a_model_that_remembers_nothing() -> None:
    model = tiny_model(config=CENTRED)
    ids = random_ids(9 * L + 3)
    found = token_losses(model, ids, "initial")
    segments = ids.split(L)
    for number in (1, 4, 9):
        tail = segments[number - 1][-SMALL.sensory_length :]
        step = model.augment(model.initial_memory[None], [tail], [segments[number]])
        logits = model.backbone.head(step.hidden[0])[:-1]
        expected = torch.nn.functional.cross_entropy(logits, segments[number][1:], reduction="none").detach()
        np.testing.assert_allclose(found[number * L : number * L + len(expected)], expected, rtol=1e-4)


def test_exchanged_memory_is_another_text_s() -> None:
    model = tiny_model(config=replace(SMALL, recall_window=3))
    ids, other = random_ids(8 * L, seed=1), random_ids(9 * L, seed=2)
    own = token_losses(model, ids)
    np.testing.assert_allclose(token_losses(model, ids, "exchanged", other=ids), own, rtol=1e-4)
    exchanged = token_losses(model, ids, "exchanged", other=other)
    np.testing.assert_allclose(exchanged[: L - 1], own[: L - 1], rtol=1e-4)
    assert np.abs(exchanged[L:] - own[L:]).max() > 0.01
    with pytest.raises(InputError, match="at least as long"):
        token_losses(model, ids, "exchanged", other=other[: 3 * L])


def test_recall_from_another_text_leaves_the_memory_before_alone() -> None:
    """A third way: the same P_n written down from the text's own memory and the other's."""
    model = tiny_model(config=replace(SMALL, memory_tokens=2, recalled_tokens=1))
    ids, other = random_ids(8 * L, seed=1), random_ids(9 * L, seed=2)
    own = token_losses(model, ids)
    np.testing.assert_allclose(token_losses(model, ids, "misrecalled", other=ids), own, rtol=1e-4)
    found = token_losses(model, ids, "misrecalled", other=other)
    strange = model.by_segment(model.read(other))[:1]
    with torch.no_grad():
        memory = model.by_segment(model.read(ids[:L]))[0]
        prompt = torch.cat([memory, strange[0, 1:]])  # one segment to recall from: all weight is on it
        step = model.augment(prompt[None], [ids[L - 4 : L]], [ids[L : 2 * L]])
        expected = torch.nn.functional.cross_entropy(
            model.backbone.head(step.hidden[0][:-1]), ids[L + 1 : 2 * L], reduction="none"
        )
    np.testing.assert_allclose(found[L : 2 * L - 1], expected.numpy(), rtol=1e-4)
    assert np.abs(found[L:] - own[L:]).max() > 0.01


def test_intervals_hold_what_they_should() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 400)
    found = mean_interval(values)
    assert found.low < 3.0 < found.high and found.high - found.low < 0.3
    losses = np.random.default_rng(2).normal(2.0, 0.5, 4000)
    perplexity = perplexity_interval(losses, block=100)
    assert perplexity.low < np.exp(2.0) < perplexity.high
    gain = gain_interval(losses - 0.1, losses, block=100)
    assert gain == pytest.approx((1 - np.exp(-0.1),) * 3)
    none = gain_interval(losses, np.random.default_rng(3).permutation(losses), block=100)
    assert none.low < 0 < none.high


@pytest.mark.slow
def test_a_comparison_reports_every_contender_and_its_files_hold_it(tmp_path: Path) -> None:
    model = tiny_model(config=CENTRED)
    ids, other = random_ids(80 * L, seed=1), random_ids(80 * L, seed=2)
    contenders = [
        Contender("HMT", model, "recalled"),
        Contender("exchanged", model, "exchanged"),
        Contender("window", model, "none"),
    ]
    seen: list[int] = []
    report = compare(contenders, ids, other=other, settings={"text": "random"}, progress=seen.append)
    assert sum(seen) == 3 * len(ids)
    whole, beyond, below, curves = report.tables
    assert [row[0] for row in below.rows] == ["exchanged", "window"]
    assert below.rows[1][1] == pytest.approx(100 * (1 - whole.rows[0][2] / whole.rows[2][2]), abs=0.01)
    kept = [loss for at, loss in enumerate(token_losses(model, ids), start=1) if at % L >= 8]  # tokens that were not summarised
    assert beyond.rows[0][2] == pytest.approx(float(np.exp(np.mean(kept)))) and beyond.title.endswith("first 8 of a segment")
    assert [row[0] for row in whole.rows] == ["HMT", "exchanged", "window"]
    assert whole.rows[0][2] == pytest.approx(float(np.exp(token_losses(model, ids).mean())))
    assert whole.rows[2][5:] == [0.0, 0.0, 0.0] and whole.columns[5] == "% below window"
    assert list(curves.columns) == ["memory", "first 1,024", "first 1,280"]
    made = report.write(tmp_path / "out")
    assert [path.name for path in made] == ["perplexity.json", "perplexity.md", "perplexity.png"]
    held = json.loads(made[0].read_text())
    assert held["settings"]["text"] == "random" and held["environment"]["torch"] == torch.__version__
    assert held["tables"][0]["rows"][0][0] == "HMT" and "| HMT |" in made[1].read_text()
    assert made[2].read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_train_and_eval_on_the_command_line(plain: str, tmp_path: Path, capsys: Any) -> None:
    recipe = {
        "config": {"segment_length": 16, "sensory_length": 4, "memory_tokens": 2, "memory_input": "centred"},
        "stages": [{"steps": 4, "segments": 3, "batch": 2, "tasks": {"text": 1, "recitation": 1}, "recall": 0.1}],
        "lora_rank": 2,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "text.txt").write_text("Some words that mean nothing much. " * 60)
    (tmp_path / "other.txt").write_text("Others, of which the same is true. " * 60)
    files = [str(tmp_path / name) for name in ("text.txt", "recipe.json", "run", "other.txt", "results")]
    train = ["train", files[0], "--recipe", files[1], "--out", files[2], "--model", plain]
    assert run(train) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'adapter'}\n"
    assert {"log.jsonl", "recipe.json", "training.png", "adapter"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert run(train) == 0 and "Resumed at step 4 of 4" in capsys.readouterr().err
    assert run([*train[:-4], "--out", str(tmp_path / "twin"), "--model", plain, "--mode", "plain", "--scale", "0.5"]) == 0
    twin = str(tmp_path / "twin/adapter")
    evaluate = ["eval", "perplexity", files[0], "--adapter", f"{files[2]}/adapter", "--plain", twin, "--other", files[3]]
    assert run([*evaluate, "--tokens", "200", "--out", files[4], "--model", plain]) == 0
    held = json.loads((tmp_path / "results/perplexity.json").read_text())
    names = [row[0] for row in held["tables"][0]["rows"]]
    assert names[:4] == ["HMT", "HMT without recall", "HMT, P_0 alone", "HMT, another text's memories"]
    assert "sliding window, equally trained" in names and held["tables"][0]["columns"][5].endswith("equally trained")


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "none.txt"], "there is no file"),
        (["train", "x", "--recipe", "none"], "paper-lora"),
        (["train", "--recipe", "paper"], "name the training text"),
        (["eval", "perplexity", "none.txt"], "there is no file"),
        (["eval", "perplexity", "none.txt", "--visible", "32"], "--plain"),
    ],
)
def test_wrong_use_says_what_to_do(arguments: list[str], words: str, plain: str, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "run"), "--model", plain]
    assert run([*arguments, *out]) == 1
    assert words in capsys.readouterr().err


def test_a_recipe_is_shown_as_json_that_is_a_recipe(capsys: Any) -> None:
    assert run(["train", "--recipe", "paper-lora", "--mode", "rmt", "--show-recipe"]) == 0
    shown = Recipe.from_dict(json.loads(capsys.readouterr().out))
    assert shown == PRESETS["paper-lora"].in_mode("rmt")


# --- recall -------------------------------------------------------------------------------------------------------------


def chats(tmp_path: Path) -> Path:
    """Two chats in LoCoMo's form: one odd fact each among small talk."""
    rows = []
    for number, fact in enumerate(("My cat is called Pumpernickel.", "The ferry leaves at 4071 hours.")):
        talk = [f"Small talk about nothing, part {at}." for at in range(30)]
        talk[11] = fact
        session = [{"speaker": "AB"[at % 2], "dia_id": f"D1:{at}", "text": text} for at, text in enumerate(talk)]
        asked = [
            {"question": fact.replace("is called Pumpernickel", "has which name, Pumpernickel").rstrip(".") + "?",
             "evidence": ["D1:11"], "category": 1},
            {"question": "Never said?", "evidence": ["D1:3"], "category": 5},
            {"question": "Unknown?", "evidence": [], "category": 1},
        ]  # fmt: skip
        rows.append({"sample_id": f"c{number}", "conversation": {"session_1": session}, "qa": asked})
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    return tmp_path / "chats.json"


def test_conversations_of_both_forms_are_read(tmp_path: Path) -> None:
    found = load_conversations(chats(tmp_path))
    assert [(len(one.turns), [turns for _, turns in one.questions]) for one in found] == [(30, [(11,)])] * 2
    assert found[0].turns[11] == "B: My cat is called Pumpernickel.\n"
    spans = found[0].spans(lambda text: list(text.encode()))
    assert spans[-1][1] == len(found[0].text) and found[0].text[slice(*spans[11])] == found[0].turns[11]
    turns = [{"speaker": "A", "text": "x"}, {"speaker": "B", "text": "y"}]
    queries = [{"query": "q", "answer": "a", "turn_spans": [[0, 1]]}, {"query": "general", "answer": "", "turn_spans": []}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "m", "turns": turns, "queries": queries}) + "\n")
    (meeting,) = load_conversations(tmp_path / "m.jsonl")
    assert meeting.questions == (("q", (0, 1)),) and meeting.turns == ("A: x\n", "B: y\n")


@pytest.mark.parametrize("content", [None, "[", "[1]", "[]", '[{"conversation": {}, "qa": []}]'])
def test_a_file_that_is_no_conversation_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"x\.json"):
        load_conversations(path)


def test_evidence_counts_by_the_share_that_fits() -> None:
    passages = [(0, 100), (300, 400), (100, 150)]
    assert evidence_inside(passages, [(50, 150)], 100) == 0.5
    assert evidence_inside(passages, [(50, 150)], 199) == 0.5  # the next passage does not fit
    assert evidence_inside(passages, [(50, 150), (300, 310)], 250) == 1.0
    assert evidence_inside(passages, [(50, 150)], 99) == 0.0


def test_what_two_passages_share_is_evidence_once() -> None:
    assert evidence_inside([(0, 10), (5, 15)], [(5, 10)], 20) == 1.0
    assert evidence_inside([(5, 15), (0, 10)], [(0, 20)], 20) == 0.75
    assert evidence_inside([(0, 10), (5, 15), (5, 15)], [(0, 20), (14, 16)], 30) == (0.75 + 0.5) / 2


def test_bm25_is_the_published_one() -> None:
    texts = ["red red fox", "blue fox", "green"]
    expected = {"red": [0, 1, 2], "green": [2, 0, 1], "fox blue": [1, 0, 2]}
    assert {query: list(bm25(texts)(query)) for query in expected} == expected


def test_recall_is_measured_through_a_real_store(plain: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["eval", "recall", str(chats(tmp_path)), "--model", plain, "--out", str(tmp_path / "out"), "--limit", "2"]
    assert run(arguments) == 0
    held = json.loads((tmp_path / "out/recall.json").read_text())
    rows = {row[0]: [float(cell.split()[0]) for cell in row[1:]] for row in held["tables"][0]["rows"]}
    assert list(rows) == [
        *("HMT recall and words", "HMT recall", "words of segments"),
        *("BM25 of turns", "BM25 of segments", "most recent turns"),
    ]
    assert rows["BM25 of turns"] == [1.0] * 4 and rows["words of segments"][1] > 0.9 and rows["most recent turns"][0] == 0
    assert held["settings"]["questions"] == 2 and held["settings"]["recall is trained"] is False


# --- passkeys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [None, "Words of some book, one after the other. " * 30], ids=["filler", "text"])
def test_a_haystack_has_its_length_and_its_needles_at_their_depths(filler: str | None) -> None:
    hidden = needles(5, seed=1)
    text = haystack(6000, hidden, len, filler, seed=1)
    assert abs(len(text) - 6000) < 60
    for needle in hidden:
        assert text.count(needle.fact) == 1
        without = text.index(needle.fact) / (len(text) - len(needle.fact))
        assert without == pytest.approx(needle.depth, abs=0.1)
    assert haystack(6000, hidden, len, filler, seed=1) == text
    with pytest.raises(InputError, match="too few"):
        haystack(100, hidden, len)
    with pytest.raises(InputError, match="depths=17"):
        needles(17)


def test_passkeys_are_asked_for_in_a_real_store(chatty: str, tmp_path: Path) -> None:
    """A tiny random model answers nothing, and the passages that hold the numbers are replayed all the same."""
    arguments = ["eval", "passkey", "--length", "8000", "--depths", "3", "--model", chatty, "--out", str(tmp_path)]
    assert run(arguments) == 0
    held = json.loads((tmp_path / "passkey.json").read_text())
    share, grid = held["tables"]
    assert share["rows"][0][:3] == [8000, 1.0, 0.0]
    assert [row[0] for row in grid["rows"]] == ["0%", "50%", "100%"] and {row[1] for row in grid["rows"]} == {"R"}


def test_lengths_that_were_measured_are_written_before_the_next(
    chatty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = passkey.haystack

    def interrupted(tokens: int, *args: Any, **options: Any) -> str:
        if tokens == 4000:
            raise KeyboardInterrupt
        return made(tokens, *args, **options)

    monkeypatch.setattr(passkey, "haystack", interrupted)
    arguments = ["--length", "2000", "--length", "4000", "--depths", "1", "--model", chatty, "--out", str(tmp_path)]
    assert run(["eval", "passkey", *arguments]) == 130
    held = json.loads((tmp_path / "passkey.json").read_text())
    assert [row[0] for row in held["tables"][0]["rows"]] == [2000]


# --- questions and behaviour --------------------------------------------------------------------------------------------


def pubmed(tmp_path: Path, count: int = 4) -> tuple[Path, Path]:
    """Samples of the public form, generated: PubMedQA's own file, and rows of the dataset."""
    chance = random.Random(0)
    entries = {}
    for at in range(count):
        drug, cell = chance.choice("abcdef") * 6, chance.choice("uvwxyz") * 6
        entries[str(at)] = {
            "QUESTION": f"Does {drug} act on {cell}?",
            "CONTEXTS": [f"We gave {drug} to {cell}.", f"It {'did' if at % 2 else 'did not'} act on {cell}."],
            "LONG_ANSWER": f"{drug} {'acts' if at % 2 else 'does not act'} on {cell}.",
            "final_decision": "yes" if at % 2 else "no",
        }
    rows = [
        {
            "question": one["QUESTION"],
            "context": {"contexts": one["CONTEXTS"]},
            "long_answer": one["LONG_ANSWER"],
            "final_decision": one["final_decision"],
        }
        for one in entries.values()
    ]
    (tmp_path / "pqal.json").write_text(json.dumps(entries))
    (tmp_path / "pqal.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pqal.json", tmp_path / "pqal.jsonl"


def test_samples_of_both_public_forms_are_the_same(tmp_path: Path) -> None:
    own, rows = map(load_samples, pubmed(tmp_path))
    assert own == rows and len(own) == 4 and own[1].decision == "yes"
    for content in ("[", "[1]", '{"1": {"QUESTION": "q"}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json"):
            load_samples(tmp_path / "bad.json")


def test_long_answers_have_the_losses_of_the_whole_text(tmp_path: Path, tokenizer: Any) -> None:
    samples = load_samples(pubmed(tmp_path)[0])
    model = tiny_model(config=SMALL, tokenizer=tokenizer)
    with torch.no_grad():
        long, _ = _answer(model, samples[:2], samples[0])
    text = "\n\n".join(" ".join(one.contexts) for one in samples[:2])
    answer = f" {samples[0].long_answer}"
    ids = torch.tensor(model.backbone.encode(f"{text}\n\nQuestion: {samples[0].question}\nAnswer:{answer}"))
    np.testing.assert_allclose(long, plain_losses(model, ids)[-len(answer) :], rtol=1e-3)


@pytest.mark.slow
def test_questions_and_behaviour_on_the_command_line(plain: str, tmp_path: Path) -> None:
    samples, _ = pubmed(tmp_path)
    out = str(tmp_path / "out")
    assert run(["eval", "questions", str(samples), "--model", plain, "--limit", "2", "--out", out]) == 0
    held = json.loads((tmp_path / "out/questions.json").read_text())
    assert [(row[0], row[1]) for row in held["tables"][0]["rows"]] == [
        (name, count) for name in ("HMT", "HMT without recall", "sliding window") for count in (2, 4)
    ]
    (tmp_path / "one.txt").write_text("The first text says this. " * 60)
    (tmp_path / "two.txt").write_text("Another one says that! " * 60)
    texts = [str(tmp_path / name) for name in ("one.txt", "two.txt")]
    assert run(["eval", "behaviour", *texts, "--tokens", "1200", "--model", plain, "--out", out]) == 0
    held = json.loads((tmp_path / "out/behaviour.json").read_text())
    assert [row[0] for row in held["tables"][1]["rows"]] == [8, 16, 32, 64]
    assert (tmp_path / "out/behaviour.png").is_file()
    assert run(["eval", "behaviour", *texts, "--tokens", "256", "--model", plain, "--out", out]) == 1


def test_recall_weights_are_those_the_prompt_was_made_with() -> None:
    model = tiny_model(config=replace(SMALL, recall_window=3))
    found = recall_weights(model, random_ids(6 * L))
    assert [len(one) for one in found] == [1, 2, 3, 3, 3]
    assert all(one.sum() == pytest.approx(1) for one in found)
    with torch.no_grad():
        ids = random_ids(6 * L)
        state = model.read(ids[: 5 * L])
        (summary,) = model.summarize([ids[5 * L :]])
        expected = model.recall(summary[None], model.by_segment(state)[None, -3:]).weights[0]
    np.testing.assert_allclose(found[-1], expected, rtol=1e-4)


def test_texts_are_interleaved_by_segments() -> None:
    first, second = torch.arange(10), torch.arange(100, 110)
    assert interleaved(first, second, 3).tolist() == [0, 1, 2, 100, 101, 102, 3, 4, 5, 103, 104, 105, 6, 7, 8, 106, 107, 108]
    assert diluted(first, torch.tensor([7]), 5).tolist() == [0, 1, 2, 3, 4, *[7] * 5, 5, 6, 7, 8, 9, *[7] * 5]
