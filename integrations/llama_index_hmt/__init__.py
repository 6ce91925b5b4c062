"""The base of HMT's LlamaIndex classes, which themselves are in `llama_index.{llms,memory,retrievers}.hmt`."""

try:
    import llama_index.core as _  # noqa: F401
except ImportError as error:
    raise ImportError("llama_index.*.hmt needs LlamaIndex. Run: pip install 'hmt-memory[llama-index]'") from error
