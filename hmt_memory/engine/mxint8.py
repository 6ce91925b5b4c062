"""Memories in 8 bits: the MXINT8 of the OCP Microscaling formats. Knows bytes; no torch, no store.

32 successive values share a power of two, and each is an integer of 8 bits times it. Float16 and bfloat16 hold such numbers
exactly, so what was rounded once (`rounding.py`) is packed without loss, and what is read on is what is stored.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

from ..errors import InputError

BLOCK = 32  # values that share a power of two
SMALLEST = -24  # exponent of float16's smallest number
FRACTION = 6  # bits of a block's largest value behind its first
LARGEST = 127  # code
_UNROUNDED = "8 bits do not hold these vectors exactly. Round them first, or store them with 16."


def pack(halves: bytes) -> bytes:
    """Return float16 values, little-endian, as an int8 exponent for each 32 of them and, behind all of these, int8 codes.

    Raises:
        InputError: 8 bits do not hold one of them.
    """
    import numpy as np

    values = np.frombuffer(halves, "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(_UNROUNDED)
    blocks = np.pad(values, (0, -len(values) % BLOCK)).reshape(-1, BLOCK)
    _, exponents = np.frexp(np.abs(blocks).max(axis=1))
    exponents = np.maximum(exponents - 1 - FRACTION, SMALLEST)
    codes = np.ldexp(blocks, -exponents[:, None]).astype(np.int8)
    packed = bytes(exponents.astype(np.int8).tobytes() + codes.tobytes()[: len(values)])
    if unpack(packed) != halves:
        raise InputError(_UNROUNDED)
    return packed


def unpack(packed: bytes) -> bytes:
    """Return the float16 values, little-endian, that were packed."""
    import numpy as np

    count = -(-len(packed) // (BLOCK + 1))
    exponents = np.frombuffer(packed[:count], np.int8).astype(np.int32)
    codes = np.frombuffer(packed[count:], np.int8).astype(np.float32)
    return np.ldexp(codes, np.repeat(exponents, BLOCK)[: len(codes)]).astype("<f2").tobytes()


def held(halves: bytes) -> bool:
    """Return whether 8 bits hold float16 values, little-endian, exactly."""
    try:
        pack(halves)
    except InputError:
        return False
    return True
