"""Text to token ids and back, by a model's own tokenizer and chat template. Knows tokenizers; no weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ..errors import InputError

_copying = threading.Lock()  # tokenizers are copied one at a time


class TextCodec:
    """The text functions of a backbone."""

    name: str
    tokenizer: Any  # never changed; None: token ids only
    _literal: Any = None  # the copy for literal text, see `encode`

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
        """Tell whether part of `text` reads like one of the tokenizer's special tokens, or like the template's markup."""
        if any(special in text for special in self._markup):
            return True
        return bool(self._normalized) and not self._normalized.isdisjoint(self.encode(text))

    @cached_property
    def _markup(self) -> Mapping[str, Any]:
        """The tokens that structure a conversation, by their texts: special ones, and added ones that the template writes."""
        tokenizer = self._tokenizer()
        written = str(getattr(tokenizer, "chat_template", None) or "")
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        marked = {text: token for text, token in added.items() if token.special or (text.strip() and text in written)}
        return {text: None for text in tokenizer.all_special_tokens} | marked  # ByT5 does not mark its end token

    @cached_property
    def _normalized(self) -> frozenset[int]:
        """The ids of those markup tokens that other spellings of a text are read as, too."""
        folded = [text for text, token in self._markup.items() if token is not None and token.normalized]
        return frozenset(self._tokenizer().convert_tokens_to_ids(folded))

    def _literal_tokenizer(self) -> Any:
        """Return a copy, made once, because the setting is the tokenizer's own and other threads may be using it."""
        with _copying:
            if self._literal is None:
                twin = copy.deepcopy(self._tokenizer())
                unmarked = [token for token in self._markup.values() if token is not None and not token.special]
                if unmarked:  # only tokens that are marked special are split
                    twin.add_tokens([_as_special(token) for token in unmarked], special_tokens=True)
                self._literal = twin
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
        except Exception as error:  # jinja2's errors, and whatever a template raises
            raise InputError(f"the chat template of {self.name} refused the messages: {error}") from error

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError(f"{self.name} was wrapped without a tokenizer. Pass token ids, or wrap it with a tokenizer.")
        return self.tokenizer


def _as_special(token: Any) -> Any:
    """Return the same added token, marked special."""
    fields = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return type(token)(token.content, special=True, **fields)
