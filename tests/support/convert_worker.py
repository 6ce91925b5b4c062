"""Convert a tiny backbone for OpenVINO in a process of its own, at the same time as others do."""

from __future__ import annotations

import os
from typing import Any

import torch
from tiny import random_ids, tiny_model

from hmt_memory.engine import openvino


def convert_together(everybody: Any, cache: str, path: str) -> None:
    """Convert, wait in the middle of it for everybody else, and keep what is computed then in a file.

    Args:
        everybody: a barrier of all that convert.
        cache: the folder of conversions.
        path: of the file.
    """
    torch.set_num_threads(1)
    os.environ["HMT_CACHE"] = cache
    graph = openvino.body_graph

    def graph_of_all(*given: Any) -> Any:
        everybody.wait(60)  # nobody has written a conversion yet
        return graph(*given)

    openvino.body_graph = graph_of_all  # type: ignore[assignment]
    backbone = tiny_model().backbone
    backbone.use_openvino()
    with torch.no_grad():
        torch.save(backbone.body(backbone.embed(random_ids(30)[None])), path)
