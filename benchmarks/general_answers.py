"""Let a model answer general prompts, for `make_exercises.py --general`.

    python benchmarks/general_answers.py DATA --out ANSWERS.jsonl

While a model learns to read notes it is to answer these as before. DATA is a folder with qa/nq-open-oracle.jsonl.gz and
persona/valid.csv. Answers are greedy, of the backbone without an adapter; those that do not end within 80 tokens, or repeat a
sentence, are left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
from pathlib import Path

import torch

from hmt_memory import HMTModel
from hmt_memory.evaluate.scoring import repeats

_TOPICS = [
    "the moon",
    "volcanoes",
    "bread",
    "chess",
    "honey bees",
    "democracy",
    "electricity",
    "jazz",
    "glaciers",
    "the printing press",
    "coffee",
    "trains",
    "whales",
    "gravity",
    "soap",
    "poetry",
    "money",
    "tea",
    "rainbows",
    "the heart",
    "cats",
    "batteries",
    "bridges",
    "algebra",
    "yoga",
    "coral reefs",
    "the Romans",
    "recycling",
    "sleep",
    "time zones",
    "maps",
    "mountains",
    "rice",
    "paper",
    "silk",
    "photography",
    "vaccines",
    "memory",
    "kites",
    "clocks",
    "deserts",
    "owls",
    "painting",
    "inflation",
    "email",
    "Python programming",
    "gardens",
    "marathons",
    "cheese",
    "the ocean",
]
_FORMS = (
    "What is {}?",
    "Explain {} in two sentences.",
    "Tell me something interesting about {}.",
    "Write a two-line poem about {}.",
    "Give me three words that have to do with {}.",
    "Why do people care about {}?",
    "How would you explain {} to a child?",
    "Write one sentence about {}.",
    "Give me a short tip about {}.",
    "What should I know about {}?",
)
_SMALL = [
    "Hello!",
    "Hi, how are you?",
    "Thanks!",
    "Thank you, that helps.",
    "Good morning.",
    "What is 7 plus 5?",
    "What is 12 times 3?",
    "Translate 'good night' into French.",
    "Translate 'thank you' into Spanish.",
    "What is the capital of Italy?",
    "What is the capital of Japan?",
    "Who wrote Hamlet?",
    "How many days are in a week?",
    "Name three colours.",
    "Tell me a joke.",
    "What can you do?",
    "Who are you?",
    "What's your name?",
    "Name a fruit.",
    "Is the sun a star?",
    "How do I boil an egg?",
    "Give me an idea for dinner.",
    "I'm bored.",
    "I had a long day.",
    "It is raining again.",
    "Can you help me?",
    "OK.",
    "Great!",
    "See you tomorrow.",
    "Bye!",
]
_LONGEST, _BATCH = 80, 64


def prompts(data: Path, chance: random.Random) -> list[str]:
    """Return questions about everything, remarks and greetings."""
    with gzip.open(data / "qa" / "nq-open-oracle.jsonl.gz", "rt", encoding="utf-8") as file:
        asked = [json.loads(line)["question"] for line in file]
    with (data / "persona" / "valid.csv").open(encoding="utf-8") as table:
        remarks = [line.strip() for row in csv.DictReader(table) for line in row["user 1 personas"].split("\n")]
    remarks = [line for line in remarks if 10 < len(line) < 80]
    made = [form.format(topic) for topic in _TOPICS for form in chance.sample(_FORMS, 6)]
    questions = [text[0].upper() + text[1:] + "?" for text in chance.sample(asked, 200)]
    return [*_SMALL, *made, *questions, *chance.sample(remarks, 250)]


@torch.no_grad()
def answered(model: HMTModel, batch: list[str]) -> list[str | None]:
    """Answer prompts greedily; None for an answer that does not end."""
    backbone = model.backbone
    texts = [backbone.render([{"role": "user", "content": prompt}], add_generation_prompt=True) for prompt in batch]
    given = backbone.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    made = backbone.causal_lm.generate(
        **given,
        max_new_tokens=_LONGEST,
        do_sample=False,
        eos_token_id=list(backbone.end_ids),
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    answers: list[str | None] = []
    for row in made[:, given["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in backbone.end_ids), None)
        answers.append(None if end is None else backbone.decode(row[:end]).strip())
    return answers


def main() -> None:
    """Write the answers that are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--most", type=int, default=1000, help="prompts to answer")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    chance = random.Random(5)
    model = HMTModel.from_pretrained(options.model, adapter="none", dtype="float32")
    model.backbone.tokenizer.padding_side = "left"
    asked = prompts(options.data, chance)
    chance.shuffle(asked)
    asked = sorted(asked[: options.most], key=len)
    kept = 0
    with options.out.open("w", encoding="utf-8") as file:
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            for prompt, answer in zip(batch, answered(model, batch), strict=True):
                if answer and not repeats(answer):
                    kept += 1
                    file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
            print(f"{start + len(batch)} asked, {kept} kept", flush=True)


if __name__ == "__main__":
    main()
