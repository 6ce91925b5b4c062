"""The `hmt` command where a model is never loaded to the end: torch is at work on it."""

from typing import Any

import torch

from hmt_memory import HMTModel
from hmt_memory.cli import main


def load(*_: Any, **__: Any) -> Any:
    square = torch.ones(64, 64)
    while True:
        square.matmul(square)


HMTModel.from_pretrained = load  # type: ignore[method-assign]
main()
