"""A tiny GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from tiny import byte_tokenizer


def write(path: Path) -> Path:
    """Write a Llama of two layers with a byte-level tokenizer. Returns the path."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256), writer.add_embedding_length(32), writer.add_block_count(2)
    writer.add_feed_forward_length(48), writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_dimension_count(8), writer.add_vocab_size(261)
    tokenizer = byte_tokenizer()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2"), writer.add_token_list([*tokens, "th", "the"])
    writer.add_token_merges(["t h", "th e"])  # a single one is read as text by older releases
    writer.add_bos_token_id(257), writer.add_eos_token_id(256)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (261, 32), "output_norm.weight": (32,), "output.weight": (261, 32)}
    for layer in range(2):
        block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
        block |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48), "attn_norm": (32,), "ffn_norm": (32,)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return path
