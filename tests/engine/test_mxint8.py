"""Memories in 8 bits: how far rounding goes, that packing loses nothing, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny import random_ids, tiny_model

from hmt_memory.engine.mxint8 import BLOCK, held, pack, unpack
from hmt_memory.engine.rounding import rounded
from hmt_memory.errors import InputError

SHAPES = st.one_of(st.tuples(st.integers(0, 100)), st.tuples(st.integers(1, 3), st.integers(1, 70)))
HALVES = arrays.arrays(np.float16, SHAPES, elements=st.floats(-65504, 65504, width=16))


def blocks_of(values: np.ndarray) -> np.ndarray:
    flat = values.astype(np.float64).ravel()
    return np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)


@given(HALVES)
@settings(deadline=None)
def test_rounding_is_within_its_bound_and_packing_loses_nothing(values: np.ndarray) -> None:
    kept = rounded(torch.from_numpy(values))
    assert kept.shape == values.shape and kept.dtype == torch.float16
    assert torch.equal(rounded(kept), kept), "rounded once is rounded"
    largest = np.abs(blocks_of(values)).max(axis=1, keepdims=True, initial=0)
    smallest = 2.0**-25  # half of float16's smallest number
    assert (np.abs(blocks_of(values) - blocks_of(kept.numpy())) <= np.maximum(largest / 127, smallest)).all()
    data = kept.numpy().astype("<f2").tobytes()
    packed = pack(data)
    assert len(packed) == kept.numel() + -(-kept.numel() // BLOCK)
    assert unpack(packed) == data
    assert held(data) and held(values.astype("<f2").tobytes()) == (values.astype("<f2").tobytes() == data)


def test_other_precisions_hold_the_same_numbers() -> None:
    made = torch.randn(5, 576, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 5)[:, None]
    kept = rounded(made)
    assert torch.equal(kept.to(torch.bfloat16).to(torch.float16), kept)
    assert torch.equal(rounded(made.to(torch.float16)), kept)
    assert torch.nn.functional.cosine_similarity(kept.float(), made, dim=-1).min() > 0.9999


def test_what_is_not_finite_stays_so() -> None:
    kept = rounded(torch.tensor([1.0, float("nan"), float("inf"), 1e6]))
    assert kept[1].isnan() and kept[2:].isinf().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0009765625, -0.0])
def test_finer_vectors_are_refused(value: float) -> None:
    data = np.array([value, 1.0], "<f2").tobytes()
    assert not held(data)
    with pytest.raises(InputError, match="8 bits do not hold"):
        pack(data)


def test_reading_in_8_bits_recalls_what_will_be_stored() -> None:
    """Every memory is rounded before the next segment recalls it, so one call reads as many calls do."""
    model, ids = tiny_model(), random_ids(100)
    before = model.empty_state(torch.float16)
    before = type(before)(**{**vars(before), "memory_bits": 8})
    whole = model.read(ids, before)
    pieces = before
    for piece in ids.split(16):
        pieces = model.read(piece, pieces)
        assert torch.equal(rounded(pieces.memory), pieces.memory) and pieces.memory_bits == 8
    torch.testing.assert_close(whole.memory, pieces.memory, atol=2e-2, rtol=2e-2)
    finer = model.read(ids, model.empty_state(torch.float16)).memory
    assert not torch.equal(whole.memory, finer)
    torch.testing.assert_close(whole.memory, finer, atol=0.2, rtol=0.2)
