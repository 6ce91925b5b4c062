"""Texts that are continued, and vectors of texts, through OpenAI's own client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, NotFoundError, OpenAI
from tiny import randomize

from hmt_memory import Assistant, HMTConfig, HMTModel
from hmt_memory.retrieval import embedding
from hmt_memory.retrieval.ranking import key_of, nearest
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

ROSES = "Ida grows roses."


def client_of(assistant: Assistant, settings: Settings | None = None) -> OpenAI:
    app = create_app(assistant, settings or Settings(hosts=("testserver",)))
    return OpenAI(base_url="http://testserver/v1", api_key="none", http_client=TestClient(app), max_retries=0)


@pytest.fixture
def client(assistant: Assistant) -> Iterator[OpenAI]:
    yield client_of(assistant)


@pytest.fixture(scope="module")
def keyed(chatty: str) -> HMTModel:
    """A model that makes keys by meaning."""
    config = HMTConfig(segment_length=48, key_dim=16)
    return randomize(HMTModel.from_pretrained(chatty, config=config, dtype="float32", device="cpu"))


@pytest.fixture
def remembering(keyed: HMTModel, tmp_path: Path) -> Assistant:
    return Assistant(keyed, store=tmp_path / "store")


# --- completions --------------------------------------------------------------------------------------------------------


def complete(client: OpenAI, prompt: Any = ROSES, **options: Any) -> Any:
    return client.completions.create(**{"model": client.models.list().data[0].id, "prompt": prompt, "max_tokens": 6, **options})


def test_a_text_is_continued_as_the_model_does(client: OpenAI, assistant: Assistant) -> None:
    answer = complete(client)
    expected = assistant.model.generate(ROSES, max_new_tokens=6).finish()
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert answer.usage.completion_tokens == len(expected.ids)
    assert answer.usage.prompt_tokens == len(ROSES) and assistant.store.sessions() == []
    assert complete(client, max_tokens=None).usage.completion_tokens == 16, "as OpenAI has it"


def test_special_tokens_of_a_raw_prompt_count_as_such(client: OpenAI) -> None:
    assert complete(client, "<s>user").usage.prompt_tokens in (4, 5) and complete(client, "abcuser").usage.prompt_tokens == 7


def test_several_texts_are_continued_each_by_itself(client: OpenAI) -> None:
    both, alone = complete(client, [ROSES, "The sea"]), [complete(client, text) for text in (ROSES, "The sea")]
    assert [choice.text for choice in both.choices] == [answer.choices[0].text for answer in alone]
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.total_tokens == sum(answer.usage.total_tokens for answer in alone)


@pytest.mark.parametrize("echo", [False, True])
def test_chunks_add_up_to_the_whole(client: OpenAI, echo: bool) -> None:
    prompts = [ROSES, "The sea"]
    whole = complete(client, prompts, echo=echo)
    chunks = list(complete(client, prompts, echo=echo, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices] and chunks[-1].usage == whole.usage
    assert all(text.startswith(prompt) is echo for text, prompt in zip(texts, prompts, strict=True))
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_a_seed_repeats_a_text_and_a_stop_ends_it(client: OpenAI) -> None:
    texts = [complete(client, temperature=1.0, seed=seed, max_tokens=30).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    stop = next(char for char in texts[0] if char.isprintable() and char != "\ufffd")
    cut = complete(client, temperature=1.0, seed=1, max_tokens=30, stop=stop).choices[0]
    assert cut.text == texts[0][: texts[0].index(stop)] and cut.finish_reason == "stop"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": [1, 2]}, "Send text"),
        ({"prompt": [[1, 2]]}, "Send text"),
        ({"prompt": []}, "Send 1 to 64"),
        ({"prompt": ""}, "nothing to continue"),
        ({"suffix": "end"}, "suffix cannot be given"),
        ({"best_of": 2}, "best_of=2"),
        ({"n": 2}, "n=2 cannot be given"),
        ({"logprobs": 2}, "logprobs cannot be given"),
        ({"logprobs": 0}, "logprobs cannot be given"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_headers": {"X-HMT-Session": "a"}}, "belongs to no session"),
        ({"extra_body": {"metadata": {"session_id": "a"}}}, "belongs to no session"),
    ],
)
def test_what_cannot_be_done_with_a_text_is_said(client: OpenAI, given: Any, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(BadRequestError, match=message):
            complete(client, **{"stream": stream, **given})


def test_a_text_is_of_any_length_for_a_model_that_reads_itself_and_bounded_for_another(
    assistant: Assistant, bundled: str, chatty: str, tmp_path: Path
) -> None:
    long = "The sea is wide. " * 300  # 5,100 tokens, of 4,096 positions
    assert complete(client_of(assistant), long).usage.prompt_tokens == len(long)
    other = Assistant(chatty, store=tmp_path / "other", dtype="float32", device="cpu")
    assert other.reader is not other.model
    with pytest.raises(BadRequestError, match=r"5,100 tokens.*Send less"):
        complete(client_of(other), long)
    short = complete(client_of(other)).choices[0].text
    plain = other.model.with_config(mode="plain").generate(ROSES, max_new_tokens=6).finish()
    assert short == plain.text


def test_a_call_with_the_same_key_is_given_the_same_texts(client: OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": [ROSES, "The sea"], "temperature": 1.0, "extra_headers": {"Idempotency-Key": "one"}}
    whole = complete(client, **asked)
    assert complete(client, **asked) == whole
    asked |= {"stream": True, "stream_options": {"include_usage": True}, "extra_headers": {"Idempotency-Key": "two"}}
    first, again = ([chunk.model_dump() for chunk in complete(client, **asked)] for _ in range(2))
    assert {chunk["id"] for chunk in (*first, *again)} == {first[0]["id"]} and first[-1] == again[-1]
    texts = [
        ["".join(c["text"] for x in chunks for c in x["choices"] if c["index"] == n) for n in (0, 1)]
        for chunks in (first, again)
    ]
    assert texts[0] == texts[1] != [choice.text for choice in whole.choices]
    with pytest.raises(BadRequestError, match="used for another call"):
        complete(client, **{**asked, "prompt": "The land"})


def test_a_text_that_takes_too_long_is_given_up(assistant: Assistant) -> None:
    assistant.model  # noqa: B018
    app = create_app(assistant, Settings(hosts=("testserver",), seconds=0.0))
    body = {"prompt": ROSES, "max_tokens": 400}
    answer = TestClient(app).post("/v1/completions", json=body)
    assert answer.status_code == 504 and "too long" in answer.text
    streamed = TestClient(app).post("/v1/completions", json=body | {"stream": True})
    assert "too long" in streamed.text and streamed.text.rstrip().endswith("[DONE]")
    assert "hmt_answering 0.0" in TestClient(app).get("/metrics").text


# --- embeddings ---------------------------------------------------------------------------------------------------------


def embed(client: OpenAI, given: Any, **options: Any) -> list[np.ndarray[Any, Any]]:
    made = client.embeddings.create(model=client.models.list().data[0].id, input=given, **options)
    return [np.array(one.embedding) for one in made.data]


QUERY: dict[str, Any] = {"extra_body": {"input_type": "query"}}


def test_the_inner_product_is_what_recall_compares(remembering: Assistant) -> None:
    client = client_of(remembering)
    corpus = remembering.corpus("garden")
    corpus.add_documents([{"text": ROSES}])
    question = "Who grows roses?"
    key = key_of(remembering.model, question)
    (query,), (passage,) = embed(client, question, **QUERY), embed(client, ROSES)
    scores = corpus._sources(())(lambda shards: nearest(remembering.model, shards, key))
    assert key is not None and np.allclose(query, key.numpy(), atol=1e-6)
    assert scores[0, 0][0] == pytest.approx(float(query @ passage), abs=1e-3), "stored in float16"


def test_a_longer_text_is_the_mean_of_its_stretches_and_the_shortest_has_a_vector(remembering: Assistant) -> None:
    client, model = client_of(remembering), remembering.model
    vectors = embed(client, [ROSES * 20, "a", ROSES])
    assert all(np.linalg.norm(vector) == pytest.approx(1) for vector in vectors)
    state = embedding.unroll(
        model,
        model.states(None, 1),
        [embedding._ids(model, ROSES * 20)],
        keep_hidden=False,
        final=True,
    )[0][0]
    mean = np.concatenate([keys.float().numpy() for keys in state.keys]).mean(axis=0)
    assert len(state.keys) > 1 and np.allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-3)
    assert np.allclose(embed(client, ROSES)[0], vectors[2]), "alone or not"


def test_bytes_and_numbers_are_the_same_vector_and_tokens_are_counted(remembering: Assistant) -> None:
    client = client_of(remembering)
    made = {
        form: client.embeddings.create(model=remembering.name, input=ROSES, encoding_format=form)
        for form in ("float", "base64")
    }  # type: ignore[arg-type, call-overload]
    raw: Any = made["base64"].data[0].embedding
    assert np.allclose(
        np.frombuffer(base64.b64decode(raw), "<f4") if isinstance(raw, str) else raw, made["float"].data[0].embedding
    )
    assert made["float"].usage.prompt_tokens == len(ROSES) and len(embed(client, ROSES, dimensions=16)[0]) == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": [1, 2]}, "check_embedding_ctx_length"),
        ({"input": []}, "Send 1 to"),
        ({"input": ["a", ""]}, "empty"),
        ({"input": "x" * 9000}, "Cut it"),
        ({"input": "a", "dimensions": 8}, "Vectors have 16"),
        ({"input": "a", "extra_body": {"input_type": "other"}}, "input_type"),
    ],
)
def test_what_cannot_be_embedded_is_said(remembering: Assistant, given: Any, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        client_of(remembering).embeddings.create(model=remembering.name, **given)


def test_another_model_embeds_nothing_and_one_without_keys_says_so(client: OpenAI, assistant: Assistant) -> None:
    with pytest.raises(NotFoundError, match="no model 'text-embedding-3-small' here"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(BadRequestError, match="no keys by meaning"):
        client.embeddings.create(model=assistant.name, input="a")
