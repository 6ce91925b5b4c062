"""llama.cpp as something to compare with: the same GGUF file, prompt and number of tokens. Knows no memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..engine import places
from ..errors import InputError, MissingDependencyError


class Spent(NamedTuple):
    """The seconds that one answer took."""

    prompt: float  # up to the first token
    writing: float  # the tokens after that


class LlamaCpp:
    """A model of a GGUF file, computed by llama.cpp.

    Args:
        file: the file.
        positions: the longest prompt with its answer.

    Raises:
        MissingDependencyError: llama-cpp-python is not installed.
    """

    def __init__(self, file: Path, positions: int) -> None:
        threads = torch.get_num_threads()
        make = self.check()
        self._model = make(model_path=str(file), n_ctx=positions, n_threads=threads, n_threads_batch=threads, verbose=False)

    @staticmethod
    def check() -> Any:
        """Return the class that loads a file.

        Raises:
            MissingDependencyError: llama-cpp-python is not installed.
        """
        try:
            from llama_cpp import Llama
        except ImportError as error:
            raise MissingDependencyError(
                f"llama.cpp is not here to compare with ({error}). Run: pip install llama-cpp-python"
            ) from error
        return Llama

    def answer(self, prompt: Sequence[int], tokens: int) -> Spent:
        """Read a prompt anew, and write greedily behind it.

        Args:
            prompt: token ids; those of the file, which are the backbone's.
            tokens: how many are written after the first.
        """
        self._model.reset()
        begun = time.perf_counter()
        written = self._model.generate(list(prompt), temp=0.0)
        next(written)
        first = time.perf_counter()
        for _ in range(tokens):
            next(written)
        return Spent(first - begun, time.perf_counter() - first)


def file_of(name: str) -> Path:
    """Return the GGUF file of a model.

    Args:
        name: a bundled name, or the path of a .gguf file.

    Raises:
        InputError: its weights are not in a GGUF file.
        ModelNotFoundError: there is no such file.
    """
    if name.lower() in places.BUNDLED:
        return places.bundled_file(name)
    path = places.local(name)
    if path is None or path.is_dir():
        raise InputError(f"llama.cpp reads GGUF files, and {name} is none. Name one with -m to compare with it.")
    return path
