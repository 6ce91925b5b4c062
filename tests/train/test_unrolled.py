"""Losses, and back-propagation through segments: their gradients are those of the whole, in flat memory."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from measuring import counting_tokens
from places import SUPPORT
from tiny import SMALL, VOCAB, random_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from hmt_memory import HMTError, HMTModel
from hmt_memory.engine.compiled import compile_blocks
from hmt_memory.engine.recall import Recall
from hmt_memory.errors import InputError
from hmt_memory.train import Recipe, Stage, prepare, projections
from hmt_memory.train.examples import IGNORED, Example
from hmt_memory.train.losses import Weights, recall_loss, token_losses
from hmt_memory.train.sources import Document
from hmt_memory.train.unrolled import unrolled_losses, view_losses

L = SMALL.segment_length
RECIPE = Recipe(stages=(Stage(steps=1, segments=2, mode="rmt"),), config=SMALL, lora_rank=2)


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
    model = prepare(plain, RECIPE, dtype="float32").eval()
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
    model = prepare(plain, RECIPE, dtype="float32").eval()
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
