"""Ask conversations of made-up facts, in words of training, and print what each `abstain_from` would answer with not knowing.

    python benchmarks/fit_abstaining.py DATA [--adapter FOLDER] [--conversations 3]

DATA is a folder with personas, as `fit_fusion.py` takes it. Nothing abstains meanwhile: how likely that was is written down.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from fit_fusion import _IDLE, MODEL, conversation, personas

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.engine import abstaining, writing
from hmt_memory.evaluate.answers import holds
from hmt_memory.train import relations

_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def main() -> None:
    """Tell, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--conversations", type=int, default=3)
    options = parser.parse_args()
    model = HMTModel.from_pretrained(MODEL, adapter=options.adapter)
    values, chances = _values_told(), _chances_met()
    told: list[tuple[float, bool]] = []  # how likely it abstains, and whether its answer is right
    untold: list[float] = []
    idle: list[float] = []  # of what asks for nothing that could be told
    with tempfile.TemporaryDirectory() as folder, MemoryStore(folder) as store:
        for number in range(options.conversations):
            messages, asked = conversation(personas(options.data), random.Random(f"abstaining {number}"))
            session = store.session(str(number), model)
            session.add(messages)
            for each in asked:
                chances.clear()
                reply = session.reply({"role": "user", "content": each.question}, abstain_from=1.0, max_new_tokens=24).finish()
                session.forget(reply.message_ids)
                chance = chances[-1] if chances else 0.0  # without: it does not begin so anyway
                if each.right is None:
                    (idle if each.question in _IDLE else untold).append(chance)
                else:
                    told.append((chance, holds(reply.text, values[each.right])))
            print(f"conversation {number + 1}: {len(told)} told, {len(untold)} not told so far", flush=True)
    for threshold in _THRESHOLDS:
        abstained = sum(chance >= threshold for chance, _ in told) / len(told)
        right = sum(right and chance < threshold for chance, right in told) / len(told)
        says_so, other = (sum(chance >= threshold for chance in met) / len(met) for met in (untold, idle))
        print(
            f"from {threshold}: told {abstained:.3f} unknown, {right:.3f} right; not told {says_so:.3f} unknown; "
            f"thanks and general questions {other:.3f}"
        )


def _values_told() -> dict[str, str]:
    """Note the value of every fact that is told from now on, by its text."""
    values: dict[str, str] = {}
    tell = relations.tell

    def noted(*given: Any, **options: Any) -> relations.Told:
        fact = tell(*given, **options)
        values[fact.text] = fact.value
        return fact

    relations.tell = noted
    return values


def _chances_met() -> list[float]:
    """Note the probability of abstaining wherever an answer is weighed from now on."""
    chances: list[float] = []
    weigh = abstaining.abstention

    def noted(*given: Any) -> abstaining.Abstention | None:
        found = weigh(*given)
        if found is not None:
            chances.append(found.probability)
        return found

    writing.abstention = noted
    return chances


if __name__ == "__main__":
    main()
