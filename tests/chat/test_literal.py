"""Text that looks like a special token is text: the ids of a tokenizer's copy, which is made once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_causal_lm

from hmt_memory.engine import text as text_module
from hmt_memory.engine.backbone import Backbone

TEXTS = ["Hello.", "a</s>b", "<s>user\nHi</s>\n", "</s>", " <t> </t> <extra_id_0>", "Zürich [SEP] </s>", "x<keep>y</s>", ""]


def with_added_tokens() -> Any:
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<keep>", special=False), AddedToken("[SEP]", special=True, lstrip=True, rstrip=True)])
    return tokenizer


def with_prefix() -> Any:
    """As Llama 2 has it: a start token, and a space before the first word."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = ["▁", *(chr(code) for code in range(33, 127))]
    tokenizer = Tokenizer(models.BPE({char: at for at, char in enumerate(["<unk>", *letters])}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", start)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def slow() -> Any:
    """A tokenizer in Python, without a file."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been copied."""
    made: list[Any] = []

    class Counting:
        @staticmethod
        def deepcopy(value: Any) -> Any:
            made.append(value)
            return copy.deepcopy(value)

    monkeypatch.setattr(text_module, "copy", Counting)
    return made


@pytest.mark.parametrize("make", [byte_tokenizer, with_added_tokens, with_prefix, slow])
def test_literal_ids_are_those_of_a_copy_of_its_own(make: Callable[[], Any], copies: list[Any]) -> None:
    backbone, reference = Backbone(tiny_causal_lm(), make()), make()
    for text in TEXTS * 2:
        plain = reference(text, add_special_tokens=False)["input_ids"]
        alone = copy.deepcopy(reference)
        split = alone(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        marked = {token.content for token in reference.added_tokens_decoder.values() if token.special}
        special = any(token in text for token in marked.union(reference.all_special_tokens))
        assert backbone.encode(text, literal=True) == (split if special else plain)
        assert backbone.encode(text) == plain
        assert backbone.holds_special(text) == special
    assert len(copies) == 1 and backbone.encode("</s>") != backbone.encode("</s>", literal=True)


def test_what_the_template_writes_is_markup_even_if_it_is_not_marked_special() -> None:
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer("{% for message in messages %}<|user|>{{ message.content }}{% endfor %}")
    tokenizer.add_tokens([AddedToken("<|user|>", special=False, normalized=False), AddedToken("<keep>", special=False)])
    backbone, markup = Backbone(tiny_causal_lm(), tokenizer), tokenizer.convert_tokens_to_ids("<|user|>")
    assert backbone.encode("a<|user|>b")[1] == markup and backbone.holds_special("a<|user|>b")
    assert markup not in backbone.encode("a<|user|>b", literal=True)
    assert backbone.decode(backbone.encode("a<|user|>b", literal=True)) == "a<|user|>b"
    assert backbone.encode("a<keep>b", literal=True) == backbone.encode("a<keep>b"), "what no template writes is text anyway"


def test_another_spelling_of_a_normalized_token_is_text_too() -> None:
    from tokenizers import AddedToken, normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True, normalized=True)], special_tokens=True)
    backbone, token = Backbone(tiny_causal_lm(), tokenizer), tokenizer.convert_tokens_to_ids("<|turn|>")
    assert token in backbone.encode("a＜|turn|＞b"), "the tokenizer reads it as the token"  # noqa: RUF001
    assert backbone.holds_special("a＜|turn|＞b") and not backbone.holds_special("a b")  # noqa: RUF001
    assert token not in backbone.encode("a＜|turn|＞b", literal=True)  # noqa: RUF001


def test_threads_share_one_copy_and_plain_ids_stay_plain(copies: list[Any]) -> None:
    backbone, text = Backbone(tiny_causal_lm(), byte_tokenizer()), "a</s>b"
    plain, literal = backbone.encode(text), byte_tokenizer()(text, split_special_tokens=True)["input_ids"]
    together, wrong = threading.Barrier(8, timeout=30), []

    def encode() -> None:
        together.wait()
        for _ in range(50):
            if (backbone.encode(text, literal=True), backbone.encode(text)) != (literal, plain):
                wrong.append(text)

    threads = [threading.Thread(target=encode) for _ in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not wrong and len(copies) == 1


def test_looking_for_special_tokens_asks_the_tokenizer_once() -> None:
    tokenizer, asked = byte_tokenizer(), []

    class Counted(type(tokenizer)):  # type: ignore[misc]
        @property
        def added_tokens_decoder(self) -> Any:
            asked.append(1)
            return super().added_tokens_decoder

    tokenizer.__class__ = Counted
    backbone = Backbone(tiny_causal_lm(), tokenizer)
    asked.clear()
    assert [backbone.holds_special(text) for text in ("a", "b</s>", "c")] == [False, True, False] and len(asked) == 1


def test_a_backbone_is_copied_and_pickled_with_its_tokenizers() -> None:
    import pickle

    backbone = Backbone(tiny_causal_lm(), byte_tokenizer())
    ids = backbone.encode("a</s>", literal=True)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert twin.encode("a</s>", literal=True) == ids
