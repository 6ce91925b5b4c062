"""LangChain's suite for chat models on the real default model. Four tests ask for what a model of 135 million parameters has
only sometimes; how often was measured."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_abilities import Abilities
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,  # test_langchain_standard.py runs the suite on scripted answers
]


class TestHMTChatModelReal(Abilities, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"max_tokens": 48}

    @property
    def supports_model_override(self) -> bool:
        return False

    # How often a model of this size gets these right: benchmarks/tool_rates.py, sampled at temperature 0.7.

    @pytest.mark.xfail(strict=False, reason="135M parameters: the argument is copied in 12 of 20 answers")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @pytest.mark.xfail(strict=False, reason="135M parameters: the argument is copied in 12 of 20 answers")
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(strict=False, reason="135M parameters: a call is decided on in 1 of 20 answers")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(strict=False, reason="135M parameters: rare characters are copied in 19 of 20 answers")
    def test_unicode_tool_call_integration(
        self, model: BaseChatModel, *, tool_choice: str | None = None, force_tool_call: bool = True
    ) -> None:
        super().test_unicode_tool_call_integration(model, tool_choice=tool_choice, force_tool_call=force_tool_call)
