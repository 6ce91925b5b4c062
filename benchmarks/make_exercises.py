"""Make exercises in answering from notes out of public datasets, for `hmt train --exercises`.

    python benchmarks/make_exercises.py DATA --general ANSWERS.jsonl --out exercises.jsonl

DATA is a folder with fairytaleqa/train, qa/ (Natural Questions, XQuAD, QED) and sgd/, as they are published. ANSWERS
holds general questions with the answers that the model itself gives to them (rows of "prompt" and "answer"): it is to go on
answering so.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_UNKNOWN = (
    "I don't know. That is not mentioned.",
    "I don't know, the text does not say that.",
)
_SENTENCE = re.compile(r"(?<=[.!?\"”])\s+")
_MONTHS = ("January", "March", "May", "June", "July", "August", "October", "December")
_WORDS = 130  # the longest passage
_SLOTS: dict[str, tuple[str, ...]] = {
    "Events.event_name": ("What event was it?", "Which event did we settle on?"),
    "Events.venue": ("At which venue is the event?", "Where does the event take place?"),
    "Events.venue_address": ("What is the address of the venue?",),
    "Events.time": ("What time does the event start?", "When does the event begin?"),
    "Media.title": ("Which film was it?", "What is the film called?"),
    "Media.directed_by": ("Who directed the film?",),
    "Restaurants.restaurant_name": ("Which restaurant was it?", "What's the name of the restaurant?"),
    "Restaurants.time": ("At what time is the table booked?", "When is dinner?"),
    "Restaurants.cuisine": ("What kind of food was it?", "Which cuisine did I ask for?"),
    "Restaurants.street_address": ("What is the address of the restaurant?",),
    "Restaurants.phone_number": ("What is the restaurant's phone number?", "How can I call the restaurant?"),
    "Services.appointment_time": ("What time is my appointment?", "At what time do I have to be there?"),
    "Services.appointment_date": ("On which day is my appointment?",),
    "Services.doctor_name": ("What's the doctor's name?", "Which doctor is it?"),
    "Services.stylist_name": ("What is the salon called?",),
    "Services.phone_number": ("Which phone number do they have?",),
    "Services.street_address": ("Where is their office?",),
    "Travel.attraction_name": ("Which sight did you suggest?", "What attraction was it?"),
    "Music.song_name": ("Which song was it?", "What song did we play?"),
    "Music.artist": ("Who sings that song?", "Which artist was it by?"),
    "Music.album": ("On which album is the song?",),
    "Banks.recipient_account_name": ("Who did I send the money to?", "Who got the money?"),
    "Banks.amount": ("How much money did I transfer?", "What amount did I send?"),
    "Banks.balance": ("What is my balance?", "How much is in my account?"),
    "RentalCars.pickup_date": ("On which day do I pick up the car?",),
    "RentalCars.pickup_location": ("Where do I pick up the rental car?",),
    "RentalCars.pickup_time": ("At what time do I pick up the car?",),
    "RentalCars.dropoff_date": ("When do I bring the rental car back?",),
    "RentalCars.car_name": ("Which car did I rent?",),
    "RentalCars.total_price": ("How much does the rental car cost?",),
    "RideSharing.destination": ("Where is the cab going?",),
    "RideSharing.ride_fare": ("How much is the ride?",),
    "Homes.property_name": ("What is the name of the property?",),
    "Homes.address": ("What's the address of the flat?",),
    "Homes.rent": ("How much is the rent?",),
    "Homes.visit_date": ("When do I visit the flat?",),
    "Hotels.hotel_name": ("Which hotel was it?", "Where do I stay?"),
    "Hotels.check_in_date": ("On which day do I check in?",),
    "Hotels.check_out_date": ("When do I check out?",),
    "Buses.leaving_time": ("When does the bus leave?",),
    "Buses.from_station": ("From which station does the bus leave?",),
    "Buses.to_station": ("At which station does the bus arrive?",),
    "Buses.fare": ("How much is the bus ticket?",),
    "Weather.temperature": ("How warm will it be?",),
}


def _passage(text: str, answer: str, chance: random.Random) -> str | None:
    """Cut the sentences around an answer out of a text."""
    parts = _SENTENCE.split(" ".join(text.split()))
    place = next((number for number, part in enumerate(parts) if answer.lower() in part.lower()), None)
    if place is None:
        return None
    first = last = place
    limit = chance.randint(30, _WORDS)
    while True:
        wider = [(first - 1, last)] * (first > 0) + [(first, last + 1)] * (last + 1 < len(parts))
        wider = [(low, high) for low, high in wider if len(" ".join(parts[low : high + 1]).split()) <= limit]
        if not wider:
            break
        first, last = chance.choice(wider)
    passage = " ".join(parts[first : last + 1])
    return passage if len(passage.split()) <= _WORDS * 1.5 else None


def tales(folder: Path, chance: random.Random) -> Iterator[Row]:
    """Yield exercises about sections of fairy tales; some questions are another tale's."""
    rows: dict[str, list[dict[str, str]]] = {}
    for path in sorted((folder / "questions").glob("*.csv")):
        rows[path.stem.removesuffix("-questions")] = list(csv.DictReader(path.open(encoding="utf-8")))
    everyone = [row["question"] for tale in rows.values() for row in tale]
    for tale, questions in rows.items():
        sections = {
            row["section"]: row["text"]
            for row in csv.DictReader((folder / "section-stories" / f"{tale}-story.csv").open(encoding="utf-8"))
        }
        by_section: dict[str, list[tuple[str, str]]] = {}
        for row in questions:
            if row["local-or-sum"] == "local" and row["ex-or-im1"] == "explicit" and row["answer1"].strip():
                by_section.setdefault(row["cor_section"], []).append(
                    (row["question"].strip(), row["answer1"].strip().rstrip("."))
                )
        for section, asked in by_section.items():
            if section not in sections:
                continue
            passage = _passage(sections[section], asked[0][1], chance)
            if passage is None:
                continue
            known = [(question, _sentence(answer)) for question, answer in asked if answer.lower() in passage.lower()][:4]
            if chance.random() < 0.7:
                known.append((chance.choice(everyone), chance.choice(_UNKNOWN)))
            notes = [{"text": passage, "origin": tale}]
            if chance.random() < 0.3:
                other = _SENTENCE.split(" ".join(chance.choice(list(sections.values())).split()))[0]
                if other not in passage and len(other.split()) < 50:
                    notes.insert(chance.randint(0, 1), {"text": other, "origin": tale})
            yield {"notes": notes, "asked": known}


def _sentence(answer: str) -> str:
    answer = answer[0].upper() + answer[1:]
    return answer if answer[-1] in ".!?" else f"{answer}."


def encyclopedia(folder: Path, chance: random.Random) -> Iterator[Row]:
    """Yield exercises about passages of encyclopedias, up to three in one view, half of them asked for what another says."""
    items: list[tuple[str, str, list[tuple[str, str]]]] = []
    with gzip.open(folder / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            gold = next((text for text in row["ctxs"] if text.get("isgold")), None)
            if gold and row["answers"] and row["answers"][0] in gold["text"]:
                items.append((gold["title"], gold["text"], [(_question(row["question"]), row["answers"][0])]))
    for block in json.loads((folder / "xquad.en.json").read_text(encoding="utf-8"))["data"]:
        for paragraph in block["paragraphs"]:
            asked = [(question["question"], question["answers"][0]["text"]) for question in paragraph["qas"]]
            items.append((block.get("title", "Encyclopedia").replace("_", " "), paragraph["context"], asked))
    for line in (folder / "qed-dev.jsonlines").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked = [
            (_question(row["question_text"]), _plain(spans[0]["string"])) for spans in row["original_nq_answers"][-1:] if spans
        ]
        items.append((row["title_text"], _plain(row["paragraph_text"]), asked))
    chance.shuffle(items)
    while len(items) > 3:
        group, items = items[: chance.choice((1, 2, 2, 3))], items[3:]
        notes, asked = [], []
        for title, text, questions in group:
            passage = _passage(text, questions[0][1], chance)
            if passage is None:
                continue
            notes.append({"text": passage, "origin": title})
            asked += [(question, _sentence(answer)) for question, answer in questions if answer in passage][:3]
        if notes and items and chance.random() < 0.5:
            asked = [*asked[:4], (chance.choice(items)[2][0][0], chance.choice(_UNKNOWN))]
            chance.shuffle(asked)
        if notes:
            yield {"notes": notes, "asked": asked[:5]}


def _plain(text: str) -> str:
    """Join what was split into tokens, as prose is written."""
    text = re.sub(r" ([.,;:!?%)\]]|'s\b|'\w{1,2}\b)", r"\1", re.sub(r"([(\[$£]) ", r"\1", text))
    return text.replace("`` ", "“").replace(" ''", "”").replace(" - ", "-")


def _question(text: str) -> str:
    return text[0].upper() + text[1:].rstrip("?") + "?"


def dialogues(folder: Path, chance: random.Random) -> Iterator[Row]:
    """Yield exercises about messages of task dialogues: what was booked, named, agreed."""
    for path in sorted(folder.glob("*.json")):
        for dialogue in json.loads(path.read_text(encoding="utf-8")):
            turns = dialogue["turns"]
            size = chance.randint(2, 8)
            start = chance.randrange(max(1, len(turns) - size))
            part = turns[start : start + size]
            values: dict[str, list[tuple[int, str]]] = {}
            for number, turn in enumerate(part):
                for frame in turn["frames"]:
                    for slot in frame["slots"]:
                        key = f"{frame['service'].split('_')[0]}.{slot['slot']}"
                        values.setdefault(key, []).append((number, turn["utterance"][slot["start"] : slot["exclusive_end"]]))
            asked = [
                (chance.choice(_SLOTS[key]), _sentence(said[-1][1]))
                for key, said in values.items()
                if key in _SLOTS and len({value for _, value in said}) == 1
            ]
            if not asked:
                continue
            chance.shuffle(asked)
            services = {service.split("_")[0] for service in dialogue["services"]}
            missing = [key for key in _SLOTS if key.split(".")[0] not in services]
            asked = [*asked[:3], (chance.choice(_SLOTS[chance.choice(missing)]), "I don't know. You haven't told me that.")]
            day = f"{chance.randint(1, 28)} {chance.choice(_MONTHS)} {chance.randint(2019, 2027)}"
            notes = [
                {"text": turn["utterance"], "origin": day, "speaker": "user" if turn["speaker"] == "USER" else "assistant"}
                for turn in part
            ]
            yield {"notes": notes, "asked": asked}


def general(path: Path, chance: random.Random, notes: list[Row]) -> Iterator[Row]:
    """Yield general questions, alone or behind notes that have nothing to do with them."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows * 2:
        beside = chance.choice(notes) if chance.random() < 0.4 else []
        others = [(other["prompt"], other["answer"]) for other in chance.sample(rows, chance.choice((0, 0, 1, 2)))]
        more = chance.sample(rows, 2)
        yield {"notes": beside, "turns": others, "asked": [(each["prompt"], each["answer"]) for each in (row, *more)]}


def main() -> None:
    """Write the exercises."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=float, default=1, help="how many times as many of each kind, as far as there are")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kinds = {
        "tales": list(tales(options.data / "fairytaleqa" / "train", chance)),
        "encyclopedia": list(encyclopedia(options.data / "qa", chance)),
        "dialogues": list(dialogues(options.data / "sgd", chance)),
    }
    kinds["general"] = list(general(options.general, chance, [row["notes"][:2] for rows in kinds.values() for row in rows]))
    shares = {"tales": 700, "encyclopedia": 600, "dialogues": 350, "general": 700}
    rows = [
        row for name, many in kinds.items() for row in chance.sample(many, min(len(many), round(options.times * shares[name])))
    ]
    chance.shuffle(rows)
    options.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(", ".join(f"{len(many)} {name}" for name, many in kinds.items()), f"-> {len(rows)} exercises")


if __name__ == "__main__":
    main()
