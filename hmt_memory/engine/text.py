"""Text to token ids and back, by a model's own tokenizer and chat template. Knows tokenizers; no weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ..errors import InputError

_copying = threading.Lock()  # tokenizers, one at a time


class TextCodec:
    """The text functions of a backbone."""

    name: str
    tokenizer: Any  # stays as it is; None: there is no text
    _literal: Any = None  # its twin, see `encode`

    def encode(self, text: str, *, literal: bool = False) -> list[int]:
        """Token ids of `text`, without start or end tokens.

        With `literal`, what looks like a special token is text like any other: a document cannot end its own turn.

        Raises:
            InputError: there is no tokenizer, or `text` is not Unicode text (lone surrogates).
        """
        tokenizer = self._tokenizer()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}. Decode it with errors='replace'.") from error
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if literal and self.holds_special(text):
            tokenizer, options = self._literal_tokenizer(), options | {"split_special_tokens": True}
        return list(tokenizer(text, **options)["input_ids"])

    def holds_special(self, text: str) -> bool:
        """Whether part of `text` reads like one of the tokenizer's special tokens."""
        return any(special in text for special in self._special_texts)

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        tokenizer = self._tokenizer()
        marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        return frozenset(marked.union(tokenizer.all_special_tokens))  # ByT5 does not mark its end token

    def _literal_tokenizer(self) -> Any:
        """A copy, made once, because the setting is the tokenizer's own and other threads may be using it."""
        with _copying:
            if self._literal is None:
                self._literal = copy.deepcopy(self._tokenizer())
            return self._literal

    def start_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text: the start token in families that depend on one, else nothing."""
        if self.tokenizer is None:
            return []
        whole, bare = list(self._tokenizer()("a", verbose=False)["input_ids"]), self.encode("a")
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:at]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; incomplete UTF-8 decodes to U+FFFD."""
        return str(self._tokenizer().decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The tokenizer's chat template applied to `messages` (role, content) and `tools` (JSON schemas).

        Raises:
            InputError: the model has no chat template, or the template refuses these messages.
        """
        tokenizer = self._tokenizer()
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(f"{self.name} has no chat template. Pass a plain text prompt, or choose an instruct model.")
        try:
            return str(
                tokenizer.apply_chat_template(
                    list(messages), tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # jinja2's own errors, and whatever a template raises
            raise InputError(f"the chat template of {self.name} refused the messages: {error}") from error

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(f"{self.name} was wrapped without a tokenizer. Pass token ids, or wrap it with a tokenizer.")
        return self.tokenizer
