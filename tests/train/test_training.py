"""The trainer: objectives, flat memory, the same run twice, resume to the exact step."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import counting_tokens
from places import SUPPORT
from scripts import run_script
from tiny import SMALL, VOCAB, else_long, random_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from hmt_memory import HMTConfig, HMTError, HMTModel
from hmt_memory.engine.compiled import compile_blocks
from hmt_memory.engine.recall import Recall
from hmt_memory.errors import ConfigError, InputError
from hmt_memory.train import PRESETS, Recipe, Stage, Trainer, open_sources, prepare, projections
from hmt_memory.train.examples import IGNORED, Example
from hmt_memory.train.losses import Weights, recall_loss, token_losses
from hmt_memory.train.optimizer import Group, MasterAdamW
from hmt_memory.train.sources import Document, Question, Stream, document_of
from hmt_memory.train.tasks import Shape, cloze, draw, questions, recitation, text
from hmt_memory.train.unrolled import unrolled_losses, view_losses

L = SMALL.segment_length


def example(segments: int, seed: int = 0) -> Example:
    ids = random_ids(segments * L, seed)
    return Example(ids, ids.clone())


def trainable(model: HMTModel) -> HMTModel:
    model.backbone.requires_grad_(False)
    return model


def gradients(model: HMTModel) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


# --- losses -------------------------------------------------------------------------------------------------------------


def test_token_loss_equals_plain_cross_entropy_with_its_gradient() -> None:
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(600, 8)
    targets = torch.randint(0, 50, (600,))
    targets[::7] = IGNORED
    fused, plain = (hidden.clone().requires_grad_() for _ in range(2))
    found = token_losses(head, fused, targets, Weights(1.0))
    found.total.backward()
    expected = torch.nn.functional.cross_entropy(head(plain), targets, reduction="sum", ignore_index=IGNORED)
    expected.backward()
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(fused.grad, plain.grad)
    assert found.tokens == int((targets != IGNORED).sum())


def test_distillation_is_zero_where_teacher_and_student_agree_and_has_the_gradient_of_kl() -> None:
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden, teacher, targets = torch.randn(5, 8), torch.randn(5, 8), torch.randint(0, 50, (5,))
    assert float(token_losses(head, hidden, targets, Weights(0.0, 1.0), hidden).distillation) == pytest.approx(0, abs=1e-5)
    fused, plain = (hidden.clone().requires_grad_() for _ in range(2))
    token_losses(head, fused, targets, Weights(0.3, 0.7), teacher).total.backward()
    student = head(plain).log_softmax(-1)
    divergence = torch.nn.functional.kl_div(student, head(teacher).log_softmax(-1), log_target=True, reduction="sum")
    (0.7 * divergence + 0.3 * torch.nn.functional.nll_loss(student, targets, reduction="sum")).backward()
    torch.testing.assert_close(fused.grad, plain.grad)


def test_a_head_that_learns_gets_its_gradient() -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    token_losses(head, torch.randn(5, 8, requires_grad=True), torch.randint(0, 50, (5,)), Weights(1.0)).total.backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0


def test_recall_loss_is_the_negative_log_of_the_weight_on_the_evidence() -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert float(recall_loss(weights, [1, 2])) == pytest.approx(-torch.tensor(0.5).log())


# --- back-propagation through segments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hmt", "rmt", "plain"])
def test_unrolled_loss_equals_the_model_s_own(mode: Any) -> None:
    model = trainable(tiny_model(config=replace(SMALL, mode=mode)))
    row = example(4)
    found = unrolled_losses(model, [row], Weights(1.0))
    expected = model(row.ids[None], labels=row.labels[None]).loss
    torch.testing.assert_close(found.token_total / found.tokens, expected)
    if mode != "plain":
        (found.token_total / found.tokens).backward()
        ours = gradients(model)
        expected.backward()
        torch.testing.assert_close(ours, gradients(model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activations", ["recompute", "offload"])
@pytest.mark.parametrize("segments", [2, 9])
def test_saving_memory_leaves_every_gradient_as_it_is(activations: Any, segments: int) -> None:
    model = tiny_model(config=replace(SMALL, memory_tokens=2, memory_input="mapped"))  # all weights learn
    rows = [replace_evidence(example(segments, seed), segments) for seed in (1, 2)]
    found = {}
    for how in ("keep", activations):
        losses = unrolled_losses(model, rows, Weights(1.0), activations=how)
        (losses.token_total + losses.recall_total).backward()
        found[how] = gradients(model)
    assert set(found["keep"]) == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(found[activations], found["keep"], rtol=1e-5, atol=1e-6)


def replace_evidence(row: Example, segments: int) -> Example:
    return Example(row.ids, row.labels, evidence={segments - 1: (0,)})


class _LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self._seen = 0, 0, set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._watch(value.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def most_bytes(model: HMTModel, segments: int, activations: Any) -> int:
    row = example(segments)
    with _LiveBytes() as live:
        unrolled_losses(model, [row], Weights(1.0), activations=activations).token_total.backward()
    model.zero_grad()
    return live.most


@pytest.mark.long
def test_memory_of_recomputed_training_hardly_grows_with_the_number_of_segments() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 2}
    model = trainable(HMTModel.wrap(LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes)), None, SMALL))
    few, many = (most_bytes(model, segments, "recompute") for segments in (4, 32))
    assert many <= 1.5 * few
    assert most_bytes(model, 32, "keep") > 3 * few  # the measure sees what it should


def test_text_before_is_read_without_gradient_and_is_remembered() -> None:
    model = trainable(tiny_model())
    ids = random_ids(5 * L)
    row = Example(ids[3 * L :], ids[3 * L :].clone(), before=ids[: 3 * L])
    found = unrolled_losses(model, [row], Weights(1.0))
    state = model.read(ids[: 3 * L])
    expected = model(row.ids[None], labels=row.labels[None], state=state).loss
    torch.testing.assert_close(found.token_total / found.tokens, expected)
    with pytest.raises(InputError, match="whole segments"):
        unrolled_losses(model, [Example(ids, ids, before=ids[:5])], Weights(1.0))


def test_the_teacher_is_the_backbone_itself_and_sees_the_text_before(plain: str) -> None:
    """Row by row: the divergence from the backbone without its adapter, over at least so many tokens of context."""
    model = prepare(plain, replace(RECIPE, config=SMALL), dtype="float32").eval()
    for name, value in model.backbone.causal_lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    ids = random_ids(12 * L)
    row = Example(ids[2 * L :], ids[2 * L :], before=ids[: 2 * L])
    with torch.no_grad():
        found = unrolled_losses(model, [row], Weights(0.0, 1.0), teacher_tokens=L + 3)
        student = model(row.ids[None], state=model.read(row.before)).logits[0].log_softmax(-1)
        with model.backbone.without_adapter():
            hidden = [  # in passes over eight segments
                model.backbone.body(model.backbone.embed(ids[first - L - 3 : first + 8 * L][None]))[0, L + 3 :]
                for first in (2 * L, 10 * L)
            ]
            teacher = model.backbone.head(torch.cat(hidden)).log_softmax(-1)
    expected = torch.nn.functional.kl_div(student[:-1], teacher[:-1], log_target=True, reduction="sum")
    assert found.distillation == pytest.approx(float(expected), rel=1e-4) and found.distillation > 0.1


def test_a_model_without_memory_reads_no_more_of_the_text_before_than_it_can_see() -> None:
    model = trainable(tiny_model(config=replace(SMALL, mode="plain")))
    ids = random_ids(6 * L)
    row = Example(ids[5 * L :], ids[5 * L :].clone(), before=ids[: 5 * L])
    found = unrolled_losses(model, [row], Weights(1.0))
    with counting_tokens(model) as seen:
        assert float(unrolled_losses(model, [row], Weights(1.0)).token_total) == float(found.token_total)
    expected = model(row.ids[None], labels=row.labels[None], state=model.read(row.before)).loss
    torch.testing.assert_close(found.token_total / found.tokens, expected)
    assert sum(seen) < 3 * L + SMALL.sensory_length * 2


@pytest.mark.parametrize("mode", ["hmt", "rmt", "plain"])
def test_view_losses_are_those_of_a_text_shown_whole_behind_what_was_read(mode: str) -> None:
    model = trainable(tiny_model(config=replace(SMALL, memory_tokens=3, recalled_tokens=2, mode=mode)))
    ids = random_ids(9 * L)
    row = Example(ids[5 * L :], ids[5 * L :].clone(), before=ids[: 5 * L])
    found = view_losses(model, [row, row], Weights(1.0))
    memory = model.by_segment(model.read(row.before))
    with torch.no_grad():
        (summary,) = model.summarize([row.ids[-8:]])
        prompt = model.prompt([summary], [memory])[0]
        inputs = torch.cat([prompt, model.backbone.embed(row.ids)])
        logits = model.backbone.head(model.backbone.body(inputs[None]))[0, len(prompt) :]
    expected = torch.nn.functional.cross_entropy(logits[:-1], row.ids[1:])
    assert found.tokens == 2 * (4 * L - 1)
    torch.testing.assert_close(found.token_total.detach() / found.tokens, expected)


def test_the_teacher_of_a_view_sees_the_text_before_it(plain: str) -> None:
    model = prepare(plain, replace(RECIPE, config=SMALL), dtype="float32").eval()
    for name, value in model.backbone.causal_lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    ids = random_ids(5 * L)
    with torch.no_grad():
        found = view_losses(model, [Example(ids[2 * L :], ids[2 * L :], before=ids[: 2 * L])], Weights(0.0, 1.0))
        (summary,) = model.summarize([ids[-8:]])
        prompt = model.prompt([summary], [model.by_segment(model.read(ids[: 2 * L]))])[0]
        inputs = torch.cat([prompt, model.backbone.embed(ids[2 * L :])])
        student = model.backbone.head(model.backbone.body(inputs[None]))[0, len(prompt) :].log_softmax(-1)
        with model.backbone.without_adapter():
            teacher = model.backbone.head(model.backbone.body(model.backbone.embed(ids[None])))[0, 2 * L :].log_softmax(-1)
    expected = torch.nn.functional.kl_div(student[:-1], teacher[:-1], log_target=True, reduction="sum")
    assert found.distillation == pytest.approx(float(expected), rel=1e-4) and found.distillation > 0.1


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiling needs a C++ compiler")
def test_compiled_blocks_train_as_plain_ones(plain: str) -> None:
    """In a process of its own, so that neither a crash of compiled code nor the compiler's workers touch this one."""
    one_process = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "compile_worker.py"), plain]
    done = subprocess.run(command, env={**os.environ, **one_process}, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "32 gradients agree\n"


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HMTError, match=r"Install g\+\+"):
        compile_blocks(tiny_model().backbone)


@pytest.mark.slow
def test_recall_is_fitted_where_a_stage_first_recalls_and_alike_after_a_kill(
    plain: str, data: list[str], tmp_path: Path
) -> None:
    config = replace(SMALL, memory_tokens=3, recalled_tokens=2, memory_input="centred", recall_dim=8)
    stages = (Stage(steps=1, segments=2, mode="rmt"), Stage(steps=1, segments=3))
    recipe = replace(RECIPE, config=config, stages=stages, checkpoint_every=1, recall_questions=64)
    whole = trainer(plain, recipe, tmp_path / "whole", data)
    list(whole.run(until=1))
    assert not whole.model.is_trained
    list(whole.run())
    assert whole.model.is_trained
    halves = tmp_path / "halves"
    list(trainer(plain, recipe, halves, data).run(until=1))
    again = trainer(plain, recipe, halves, data)
    list(again.run())
    for name, value in whole.model.memory_parameters().items():
        assert torch.equal(value, dict(again.model.memory_parameters())[name]), name
    assert torch.equal(whole._optimizer._master["recall.key.weight"], whole.model.recall.key.weight)
    assert 0 <= json.loads((tmp_path / "whole/recall.json").read_text())["first"] <= 1


@pytest.mark.slow
def test_fitted_projections_recall_what_a_question_is_about() -> None:
    """Summaries that are a hidden map of one memory, and what all share: held-out questions find their segment."""
    chance = torch.Generator().manual_seed(0)
    rows, segments, asked, width = 16, 40, 60, 24
    memory = torch.randn(rows, segments, 2, width, generator=chance)
    hidden = torch.randn(width, width, generator=chance) / width**0.5
    targets = torch.randint(0, segments, (rows, asked), generator=chance)
    wanted = memory.take_along_dim(targets[..., None, None], 1)[:, :, 1]
    shared = 5 * torch.randn(width, generator=chance)
    summaries = wanted @ hidden + 0.3 * torch.randn(rows, asked, width, generator=chance) + shared
    pairs = projections._Pairs(memory + 3, summaries, targets)
    query, key, found = projections._fit(pairs, list(range(14)), [14, 15], 16, seed=0)
    assert found.first > 0.8 and found.segments == segments
    recall = Recall(width, 16)
    recall.query.weight.data, recall.key.weight.data = query, key
    with torch.no_grad():  # as recall itself computes it, with what all share
        weights = torch.stack([recall(one[None], pairs.memory[15][None]).weights[0] for one in summaries[15]])
    assert float((weights.argmax(dim=1) == targets[15]).float().mean()) > 0.75


def test_what_is_recalled_enters_at_first_as_the_embeddings_it_comes_from() -> None:
    config = replace(SMALL, memory_tokens=3, recalled_tokens=2, memory_input="centred", recall_dim=8)
    model = tiny_model(config=config)
    before = model.memory_input.read.detach().clone()
    document = Document("text", random_ids(400))
    projections.fit_recall(model, [document], questions=32, seed=0, encode=lambda text: [])
    assert torch.equal(model.memory_input.read[3:], before[1:3]) and torch.equal(model.memory_input.read[:3], before[:3])


def test_held_out_rows_do_not_choose_projections_that_only_know_the_others() -> None:
    chance = torch.Generator().manual_seed(0)
    memory, summaries = torch.randn(16, 30, 1, 24, generator=chance), torch.randn(16, 40, 24, generator=chance)
    pairs = projections._Pairs(memory, summaries, torch.randint(0, 30, (16, 40), generator=chance))
    found = projections._fit(pairs, list(range(14)), [14, 15], 16, seed=0)[2]
    assert found.first < 0.15 and found.loss == pytest.approx(math.log(30), abs=0.5)


def test_recall_loss_sees_evidence_in_the_text_before_and_forgets_what_is_out_of_the_window() -> None:
    model = trainable(tiny_model(config=replace(SMALL, recall_window=2)))
    ids = random_ids(5 * L)
    near = Example(ids[3 * L :], ids[3 * L :], before=ids[: 3 * L], evidence={1: (-1,)})
    far = replace_far(near)
    assert unrolled_losses(model, [near], Weights(1.0)).recalls == 1
    assert unrolled_losses(model, [far], Weights(1.0)).recalls == 0


def test_recall_loss_moves_the_projections_alone() -> None:
    model = trainable(tiny_model())
    ids = random_ids(4 * L)
    row = Example(ids, torch.full_like(ids, -100), evidence={3: (0,)})
    unrolled_losses(model, [row], Weights(1.0)).recall_total.backward()
    assert set(gradients(model)) == {"recall.query.weight", "recall.key.weight"}


def replace_far(row: Example) -> Example:
    return Example(row.ids, row.labels, row.before, {1: (-2,)})


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


# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", PRESETS.values())
def test_recipes_survive_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(recipe.to_json())) == recipe


def test_the_paper_s_preset_has_the_paper_s_settings() -> None:
    paper = PRESETS["paper"]
    assert [(stage.steps, stage.segments, stage.mode) for stage in paper.stages] == [(200, 2, "rmt"), (500, 15, "hmt")]
    assert (paper.learning_rate, paper.lora_rank, paper.config.segment_length) == (1e-5, 0, 1024)
    assert [round(paper.rate_factor(step), 3) for step in (0, 99, 100, 199, 200, 650)] == [1, 1, 0.9, 0.9, 1, 0.656]


@pytest.mark.parametrize(
    "change",
    [
        {"stages": []},
        {"stages": [{"steps": 0, "segments": 2}]},
        {"stages": [{"steps": 1, "segments": 2, "tasks": {"rhyme": 1}}]},
        {"stages": [{"steps": 1, "segments": 1, "tasks": {"cloze": 1}}]},
        {"stages": [{"steps": 1}]},
        {"schedule": "linear"},
        {"lora_rank": 0, "stages": [{"steps": 1, "segments": 2, "distillation": 1.0}]},
        {"learning_rte": 1},
    ],
)
def test_a_bad_recipe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Recipe.from_dict({**PRESETS["paper"].to_dict(), **change})


# --- the optimizer ------------------------------------------------------------------------------------------------------


def test_master_weights_collect_updates_that_bf16_would_lose() -> None:
    live = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([Group({"live": live}, 1e-4)])
    for _ in range(100):
        live.grad = torch.ones_like(live)
        optimizer.step(1.0)
    assert float(live.detach()[0]) == pytest.approx(0.99, abs=0.004)


def test_the_optimizer_equals_adamw_in_fp32_and_clips() -> None:
    live, twin = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours = MasterAdamW([Group({"live": live}, 0.1)], weight_decay=0.01, clip=1.0)
    reference = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.01)
    for step in range(5):
        gradient = torch.randn(4, generator=torch.Generator().manual_seed(step)) * 10
        live.grad, twin.grad = gradient.clone(), gradient / gradient.norm()
        assert ours.step(1.0) == pytest.approx(float(gradient.norm()))
        reference.step()
    torch.testing.assert_close(live, twin)


def test_a_group_apart_is_clipped_by_itself_and_the_others_together() -> None:
    names = ("first", "second", "loud")
    live, twins = ({name: torch.nn.Parameter(torch.ones(2)) for name in names} for _ in range(2))
    groups = [Group({name: live[name]}, 0.1, name == "loud") for name in names]
    reference = torch.optim.SGD(twins.values(), lr=1.0)
    ours = MasterAdamW(groups, clip=1.0)
    ours._adam = torch.optim.SGD([{"params": [ours._master[name]], "lr": 1.0} for name in names], lr=1.0)  # sees clipping whole
    ours._rates = [1.0] * 3
    for name, size in zip(names, (3.0, 4.0, 300.0), strict=True):
        live[name].grad = torch.tensor([size, 0.0])
        twins[name].grad = torch.tensor([size / (5.0 if name != "loud" else 300.0), 0.0])
    assert ours.step(1.0) == pytest.approx((25 + 300**2) ** 0.5)
    reference.step()
    for name in names:
        torch.testing.assert_close(live[name].data, twins[name].data)


# --- the loop -----------------------------------------------------------------------------------------------------------

RECIPE = Recipe(
    stages=(
        Stage(steps=3, segments=2, mode="rmt", batch=2),
        Stage(
            steps=4,
            segments=3,
            before=1,
            batch=2,
            tasks={"text": 1, "cloze": 1},
            recall=0.1,
            distillation=0.5,
            view_tokens=40,
            exercises=2,
        ),
    ),
    config=replace(SMALL, memory_tokens=2, memory_input="centred", key_dim=4),
    lora_rank=2,
    learning_rate=1e-2,
    checkpoint_every=2,
    warmup=2,
)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    letters = random.Random(0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("".join(letters.choice("abcdefgh .") for _ in range(3000)))
    return [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


def trainer(name: str, recipe: Recipe, folder: Path, data: list[str]) -> Trainer:
    model = prepare(name, recipe, dtype="float32")
    return Trainer(model, recipe, open_sources(data, model.backbone.encode), folder, sources=data)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    adapter = load_file(folder / "adapter/backbone_adapter/adapter_model.safetensors")
    return {**load_file(folder / "adapter/hmt_memory.safetensors"), **adapter}


def learned_memory(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.startswith(("backbone.", "keys.")) and name != "memory_input.centre"}


@pytest.mark.slow
def test_a_run_trains_what_it_should_and_leaves_an_adapter_that_loads(plain: str, tmp_path: Path, data: list[str]) -> None:
    run = trainer(plain, RECIPE, tmp_path / "run", data)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    reports = list(run.run())
    changed = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora" in name or name in learned_memory(before)}
    assert [report.step for report in reports] == list(range(1, 8)) and [report.stage for report in reports] == [1] * 3 + [
        2
    ] * 4
    assert all(report.loss > 0 and report.gradient_norm > 0 for report in reports)
    assert [json.loads(line)["step"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()] == list(range(1, 8))
    loaded = HMTModel.from_pretrained(plain, adapter=tmp_path / "run/adapter", dtype="float32")
    ids = random_ids(60)
    torch.testing.assert_close(loaded.read(ids).memory, run.model.eval().read(ids).memory)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_weights_and_another_seed_does_not(plain: str, tmp_path: Path, data: list[str]) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        list(trainer(plain, replace(RECIPE, seed=seed), tmp_path / name, data).run())
    one, two, other = (weights_of(tmp_path / name) for name in ("one", "two", "other"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("killed_after", else_long([1, 2, 5], 2))
def test_a_killed_run_resumes_to_the_same_weights_and_log(
    plain: str, tmp_path: Path, data: list[str], killed_after: int
) -> None:
    list(trainer(plain, RECIPE, tmp_path / "whole", data).run())
    first = trainer(plain, RECIPE, tmp_path / "halves", data).run()
    for _ in range(killed_after):
        next(first)
    first.close()  # as a kill: nothing more is written
    again = trainer(plain, RECIPE, tmp_path / "halves", data)
    assert again.step == killed_after // 2 * 2
    list(again.run())
    torch.testing.assert_close(weights_of(tmp_path / "halves"), weights_of(tmp_path / "whole"), rtol=0, atol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("halves", "whole")
    ]
    timeless = [[{key: value for key, value in line.items() if "second" not in key} for line in log] for log in logs]
    assert timeless[0] == timeless[1]


def test_a_folder_of_another_run_is_left_alone(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "run", data).run(until=2))
    with pytest.raises(ConfigError, match="another recipe"):
        trainer(plain, replace(RECIPE, learning_rate=0.5), tmp_path / "run", data)


def test_a_damaged_checkpoint_is_named(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "run", data).run(until=2))
    (tmp_path / "run/checkpoints/step-000002/optimizer.safetensors").write_bytes(b"none")
    with pytest.raises(HMTError, match="step-000002"):
        trainer(plain, RECIPE, tmp_path / "run", data)


def test_full_fine_tuning_leaves_a_backbone_beside_the_adapter(plain: str, tmp_path: Path, data: list[str]) -> None:
    recipe = replace(RECIPE, lora_rank=0, stages=(Stage(steps=2, segments=2),), learning_rate=1e-3)
    run = trainer(plain, recipe, tmp_path / "run", data)
    list(run.run())
    loaded = HMTModel.from_pretrained(tmp_path / "run/backbone", adapter=tmp_path / "run/adapter", dtype="float32")
    ids = random_ids(60)
    torch.testing.assert_close(loaded.read(ids).memory, run.model.read(ids).memory, rtol=1e-3, atol=1e-4)
    assert not torch.equal(
        loaded.read(ids).memory, HMTModel.from_pretrained(plain, config=recipe.config, dtype="float32").read(ids).memory
    )


def test_accumulated_micro_batches_equal_one_large_batch(plain: str, tmp_path: Path, data: list[str]) -> None:
    stage = Stage(steps=2, segments=3, batch=4, tasks={"text": 1, "cloze": 1}, recall=0.1)
    list(trainer(plain, replace(RECIPE, stages=(stage,)), tmp_path / "large", data).run())
    list(trainer(plain, replace(RECIPE, stages=(replace(stage, batch=2),), accumulate=2), tmp_path / "micro", data).run())
    torch.testing.assert_close(weights_of(tmp_path / "micro"), weights_of(tmp_path / "large"), rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_twins_of_other_modes_train_what_they_use(plain: str, tmp_path: Path, data: list[str]) -> None:
    for mode in ("plain", "rmt"):
        run = trainer(plain, RECIPE.in_mode(mode), tmp_path / mode, data)
        before = {name: value.clone() for name, value in run.model.named_parameters()}
        list(run.run())
        changed = {name for name, value in run.model.named_parameters() if not torch.equal(value, before[name])}
        memory = learned_memory(before)
        unused = memory if mode == "plain" else {name for name in memory if name.startswith(("recall", "summary"))}
        assert changed == {name for name in before if "lora" in name or name in memory - unused}


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter(plain: str, tmp_path: Path, data: list[str]) -> None:
    list(trainer(plain, RECIPE, tmp_path / "first", data).run())
    start = tmp_path / "first/adapter"
    recipe = replace(RECIPE, stages=(Stage(steps=1, segments=2),), learning_rate=1e-9)
    model = prepare(plain, recipe, start=start, dtype="float32")
    run = Trainer(model, recipe, open_sources(data, model.backbone.encode), tmp_path / "second", sources=data, start=start)
    list(run.run())
    torch.testing.assert_close(weights_of(tmp_path / "second"), weights_of(tmp_path / "first"), rtol=1e-4, atol=1e-6)
    changed = {
        name
        for name, value in weights_of(tmp_path / "second").items()
        if not torch.equal(value, weights_of(tmp_path / "first")[name])
    }
    assert any("lora" in name for name in changed) and "memory_input.centre" not in changed
    for other, words in (
        (replace(recipe, config=replace(recipe.config, segment_length=20)), "segment_length"),
        (replace(recipe, lora_rank=0), "LoRA"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(plain, other, start=start, dtype="float32")


@pytest.mark.slow
def test_the_command_in_two_processes_trains_what_it_does_in_one(plain: str, tmp_path: Path, data: list[str]) -> None:
    stage = Stage(steps=3, segments=3, batch=2, tasks={"text": 1, "cloze": 1}, recall=0.1)
    recipe = replace(RECIPE, stages=(stage,))
    (tmp_path / "two.json").write_text(recipe.to_json())
    arguments = ["train", *data, "--recipe", str(tmp_path / "two.json"), "--out", str(tmp_path / "two")]
    arguments += ["--model", plain, "--dtype", "float32", "--device", "cpu"]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    environment = os.environ | world

    def process(rank: str) -> subprocess.CompletedProcess[str]:
        place = environment | {"RANK": rank, "LOCAL_RANK": rank}
        return run_script(SUPPORT / "hmt_command.py", *arguments, environment=place, timeout=240)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, "01")
    assert [first.returncode, second.returncode] == [0, 0], first.stderr + second.stderr
    out, quiet = first.stdout, second.stdout
    assert out == f"{tmp_path / 'two' / 'adapter'}\n" and quiet == ""
    list(trainer(plain, recipe, tmp_path / "one", data).run())
    torch.testing.assert_close(weights_of(tmp_path / "two"), weights_of(tmp_path / "one"), rtol=1e-3, atol=1e-4)


def test_the_default_config_is_the_paper_s() -> None:
    assert PRESETS["paper"].config.memory_input == HMTConfig().memory_input == "paper"
