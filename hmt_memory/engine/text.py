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
        """Return the token ids of `text`, without start or end tokens.

        With `literal`, special tokens in the text are plain text: a document cannot end its own turn.

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
        """Return whether part of `text` reads like one of the tokenizer's special tokens."""
        return any(special in text for special in self._special_texts)

    @cached_property
    def _special_texts(self) -> frozenset[str]:
        tokenizer = self._tokenizer()
        marked = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        return frozenset(marked.union(tokenizer.all_special_tokens))  # ByT5 does not mark its end token

    def _literal_tokenizer(self) -> Any:
        """Return a copy of the tokenizer, made once: the setting belongs to the tokenizer, which other threads may be using."""
        with _copying:
            if self._literal is None:
                self._literal = copy.deepcopy(self._tokenizer())
            return self._literal

    def start_ids(self) -> list[int]:
        """Return what the tokenizer itself puts before a text: the start token in families that need one, else nothing."""
        if self.tokenizer is None:
            return []
        whole, bare = list(self._tokenizer()("a", verbose=False)["input_ids"]), self.encode("a")
        start = next((start for start in range(len(whole)) if whole[start : start + len(bare)] == bare), 0)
        return whole[:start]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens; incomplete UTF-8 decodes to U+FFFD."""
        return str(self._tokenizer().decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Apply the tokenizer's chat template.

        Args:
            messages: dicts with role and content.
            add_generation_prompt: whether to open the model's turn.
            tools: JSON schemas of the functions that it may call.

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
