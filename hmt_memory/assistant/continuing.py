"""Text that goes on where another one ends: no messages, no template, no session, nothing stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.reader import token_ids
from ..errors import BudgetError, ConfigError, InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..engine.decoding import DecodingOptions
    from ..engine.generate import Generation
    from .assistant import Assistant


def continued(assistant: Assistant, text: str, **options: Unpack[DecodingOptions]) -> Generation:
    """Continue a text, as an iterator of text pieces.

    A model that reads for itself continues a text of any length, from memory where it is long. Any other is shown all of it.

    Args:
        assistant: whose model continues it.
        text: special tokens in it count as such: whoever writes a raw prompt writes its template, too.
        **options: fields of `Decoding`.

    Raises:
        InputError: the text is empty, the model is behind an address, or an option is out of range.
        BudgetError: it is too long for a model that does not read for itself.
    """
    if assistant.only_answers:
        raise InputError(f"{assistant.name} is given messages, no raw text. Send a conversation, or continue the text there.")
    model = assistant.model
    ids = token_ids(model, text, literal=False)
    options.setdefault("abstain_from", 0.0)  # a text is no question
    if assistant.reader is not model:
        room = len(ids) + model.config.segment_length + options.get("max_new_tokens", 0)
        try:
            model = model.with_config(mode="plain", recent_tokens=room, pinned_tokens=0, replay_tokens=0)
        except ConfigError as error:
            raise BudgetError(
                f"the prompt has {len(ids):,} tokens, which with the answer is more than {model.backbone.name} can see. Send "
                "less, or ask for less."
            ) from error
    return model.generate(ids, **options)
