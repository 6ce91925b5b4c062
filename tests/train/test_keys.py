"""The fit of keys by meaning: what is read and how it is cut, and that keys learn what their teacher and the questions say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import SMALL, byte_tokenizer, tiny_causal_lm

from hmt_memory import HMTModel
from hmt_memory.engine.unroll import unroll
from hmt_memory.train.keys import Fit, KeyTraining, Pair, Read, Teacher, Told, read_texts

WORDS = ("boat", "quince", "lamp", "goose", "snow", "violin", "key", "garden", "bread", "stone", "river", "clock")
OTHER = dict(
    zip(
        WORDS,
        ("ship", "fruit", "light", "bird", "winter", "music", "lock", "plants", "loaf", "rock", "stream", "time"),
        strict=True,
    )
)
DIM = 8


def teacher_of(texts: Sequence[str]) -> np.ndarray:
    """Vectors by what is spoken of, whichever of two words names it."""
    rows = [[float(word in text or OTHER[word] in text) for word in WORDS] for text in texts]
    vectors = np.array(rows, np.float32) + 1e-3
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def model_with_keys() -> HMTModel:
    return HMTModel.wrap(tiny_causal_lm(), byte_tokenizer(), replace(SMALL, segment_length=32, key_dim=DIM)).eval()


def told(model: HMTModel, seed: int) -> Told:
    words = random.Random(seed).sample(WORDS, 6)
    passages = [f"I saw the {word}." for word in words]
    ids: list[int] = []
    spans = []
    for passage in passages:
        own = model.backbone.encode(passage + "</s>", literal=False)
        spans.append((len(ids), len(ids) + len(own)))
        ids += own
    return Told(ids, spans, passages, [(f"And the {OTHER[word]}?", [number]) for number, word in enumerate(words)])


def training_of(model: HMTModel, fit: Fit) -> tuple[KeyTraining, list[Read]]:
    texts = [f"{opening} the {word}" for word in (*WORDS, *OTHER.values()) for opening in ("where is", "I like", "what about")]
    teacher = Teacher(teacher_of, teacher_of(texts), DIM)
    read = list(read_texts(model, [told(model, seed) for seed in range(20)], teacher))
    lone = [torch.tensor(model.backbone.encode(text, literal=True)) for text in texts]
    return KeyTraining(model, lone, teacher(texts), fit), read


def test_what_is_kept_of_a_text_is_what_reading_has_of_it() -> None:
    model = model_with_keys()
    text = told(model, 3)
    teacher = Teacher(teacher_of, teacher_of(WORDS), DIM)
    (read,) = read_texts(model, [text], teacher)
    with torch.no_grad():
        _, (hidden,) = unroll(model, model.states(None, 1), [torch.tensor(text.ids)], keep_hidden=True)
    assert torch.allclose(read.hidden.float(), hidden, atol=2e-2) and read.ids.tolist() == list(text.ids)
    for (start, stop), owner in zip(read.stretches.tolist(), read.owners.tolist(), strict=True):
        assert start // 32 == (stop - 1) // 32, "a stretch lies in one segment"
        low, high = text.spans[owner]
        assert min(stop, high) - max(start, low) >= 2 if owner >= 0 else True
    assert {owner for owner in read.owners.tolist() if owner >= 0} == set(range(6))
    assert read.answers.tolist() == torch.eye(6, dtype=torch.bool).tolist() and len(read.questions) == 6


@pytest.mark.slow
def test_keys_learn_what_their_teacher_says_and_are_those_that_reading_makes() -> None:
    """Words that share no letters are near each other afterwards; and what is measured is what a session would store."""
    model = model_with_keys()
    training, read = training_of(model, Fit(words=150, texts=60, batch=48, rate=1e-2))
    before = training.measure(read[:5])
    losses = training.run(read[5:])
    after = training.measure(read[:5])
    assert np.mean(losses[140:150]) < 0.5 * np.mean(losses[:5])
    assert after.first > max(0.6, before.first + 0.2) and after.encoder_first == 1.0 and after.first_five >= after.first
    text = told(model, 0)
    state = model.read(torch.tensor(text.ids))
    stored = torch.cat(state.keys).float()
    with torch.no_grad():
        assert torch.allclose(training.stretch_keys(read[0])[: len(stored)], stored, atol=2e-2)
        question = model.question_key(torch.tensor(model.backbone.encode(text.asked[0][0], literal=True)))
        assert question is not None and torch.allclose(training.question_keys(read[0], [0])[0], question, atol=2e-2)


def test_a_fit_is_the_same_each_time() -> None:
    fits = []
    for _ in range(2):
        model = model_with_keys()
        training, read = training_of(model, Fit(words=5, texts=3, batch=16))
        training.run(read)
        assert model.keys is not None
        fits.append(model.keys.state_dict())
    assert all(torch.equal(fits[0][name], fits[1][name]) for name in fits[0])


@pytest.mark.parametrize("texts", [0, 4])
def test_without_texts_that_were_read_words_alone_are_fitted(texts: int) -> None:
    model = model_with_keys()
    training, _ = training_of(model, Fit(words=3, texts=texts, batch=16))
    assert len(training.run([])) == 3
    assert model.keys is not None and not model.keys.hidden.weight.any()


def lone(model: HMTModel, text: str) -> torch.Tensor:
    return torch.tensor(model.backbone.encode(text, literal=True))


def test_lone_questions_learn_what_answers_them_though_the_teacher_sees_nothing_alike() -> None:
    """Here the teacher takes a word and its fellow for strangers, and what is easily taken for the answer stands beside it."""
    model = model_with_keys()
    pairs = [
        Pair(
            lone(model, f"where is the {word}"),
            lone(model, f"I like the {OTHER[word]}"),
            lone(model, f"I like the {word[::-1]}"),
        )
        for word in WORDS
    ]
    texts = [f"I like the {word}" for word in (*WORDS, *OTHER.values())]
    vectors = np.random.default_rng(0).standard_normal((len(texts), DIM)).astype(np.float32)
    wanted = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1)
    firsts = []
    for given in ([], pairs):
        training = KeyTraining(model, [lone(model, text) for text in texts], wanted, Fit(words=200, batch=24, rate=1e-2), given)
        training.run([])
        with torch.no_grad():
            questions = training._lone_keys([pair.question for pair in pairs], asked=True)
            answers = training._lone_keys(
                [*(pair.answer for pair in pairs), *(pair.other for pair in pairs if pair.other is not None)]
            )
        firsts.append(float(((questions @ answers.T).argmax(1) == torch.arange(len(pairs))).float().mean()))
    assert firsts[0] < 0.5 < 0.9 < firsts[1]


def test_texts_about_the_same_matter_do_not_count_as_wrong_answers() -> None:
    model = model_with_keys()
    question, told = (
        lone(model, "where is the key"),
        [lone(model, f"the key is in the {place}") for place in ("box", "car", "bag")],
    )
    teacher = torch.nn.functional.normalize(torch.ones(3, DIM), dim=1)
    alike = [Pair(question, text, matter="key") for text in told]
    losses = [
        float(KeyTraining(model, told, teacher, Fit(), pairs).pair_loss(3).detach())
        for pairs in (alike, [replace(pair, matter="") for pair in alike], [alike[0]])
    ]
    assert losses[0] == pytest.approx(losses[2], abs=1e-6) == 0.0 and losses[1] == pytest.approx(np.log(3), abs=0.2)
    taken = [replace(pair, other=told[number - 1], other_matter="key") for number, pair in enumerate(alike)]
    assert float(KeyTraining(model, told, teacher, Fit(), taken).pair_loss(3).detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(KeyTraining(model, told, teacher, Fit(), taken).pair_loss(0)) == 0.0
