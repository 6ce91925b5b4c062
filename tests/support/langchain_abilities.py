"""What the chat model can do, for LangChain's suites: what is not said here they find out."""

from __future__ import annotations

from langchain_hmt import HMTChatModel


class Abilities:
    """Before a standard suite among the bases of a test class."""

    @property
    def chat_model_class(self) -> type[HMTChatModel]:
        return HMTChatModel

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
