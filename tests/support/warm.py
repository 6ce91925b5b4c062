"""What takes long to import, imported once by the fork server. Nothing here computes: threads would not survive a fork."""

from __future__ import annotations

import langchain.agents
import langgraph.checkpoint.sqlite
import llama_index.core
import llama_index.llms.hmt
import llama_index.memory.hmt
import llama_index.retrievers.hmt
import transformers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import hmt_memory.assistant
import hmt_memory.model
import hmt_memory.sessions.memory_store
import langchain_hmt

IMPORTED = (
    langchain.agents,
    langchain_hmt,
    langgraph.checkpoint.sqlite,
    llama_index.core,
    llama_index.llms.hmt,
    llama_index.memory.hmt,
    llama_index.retrievers.hmt,
    transformers,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    hmt_memory.assistant,
    hmt_memory.model,
    hmt_memory.sessions.memory_store,
)
