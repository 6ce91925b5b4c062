"""What the server says of itself at /openapi.json, held against what it does with calls made up from it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings, strategies
from jsonschema import Draft202012Validator
from tiny import LONG, randomize

from hmt_memory import Assistant, HMTConfig, HMTModel
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 40 if LONG else 2
ROUTES = [
    (method, path)
    for path, methods in create_app(Assistant("none"), Settings()).openapi()["paths"].items()
    for method in methods
]
ABOUT_MEMORY = ("/v1/sessions", "/v1/corpora", "/v1/search")


@pytest.fixture(scope="module")
def model(chatty: str) -> HMTModel:
    config = HMTConfig(segment_length=48, key_dim=16)
    return randomize(HMTModel.from_pretrained(chatty, config=config, dtype="float32", device="cpu"))


def made(model: HMTModel, folder: Path) -> Any:
    """The application of a store with a session and a corpus."""
    assistant = Assistant(model, store=folder / "store")
    assistant.session("alice").add([{"role": "user", "content": "Ida grows roses."}])
    assistant.corpus("garden").add_documents([{"text": "Roses grow in the sun."}])
    app = create_app(assistant, Settings(hosts=("*",), longest=4))
    app.router.lifespan_context = lambda _: nullcontext()  # every call would begin it anew; tools alone need it
    return app


@pytest.fixture(scope="module")
def app(model: HMTModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(model, tmp_path_factory.mktemp("described"))


@pytest.fixture(scope="module")
def known(app: Any) -> dict[str, str]:
    """What there is to find: a name for each kind of routes, and that of an item."""
    app.state.assistant.session("bob").add([{"role": "user", "content": "Ann keeps bees."}])
    api = TestClient(app)
    response = api.post("/v1/responses", json={"input": "Who grows roses?"}).json()["id"]
    item = api.get("/v1/conversations/bob/items").json()["data"][0]["id"]
    return {"sessions": "alice", "corpora": "garden", "responses": response, "conversations": "bob", "item": item}


@pytest.fixture(scope="module")
def schema(app: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("invalid", [False, True], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_calls_made_up_from_the_description_are_answered_as_it_says(
    schema: Any, known: dict[str, str], method: str, path: str, invalid: bool
) -> None:
    operation = schema[path][method.upper()]
    mode = schemathesis.GenerationMode.NEGATIVE if invalid else schemathesis.GenerationMode.POSITIVE
    if invalid and not (list(operation.query) or "application/json" in [body.media_type for body in operation.body]):
        pytest.skip("there is nothing to get wrong")

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), finds=strategies.booleans())
    def held(case: Any, finds: bool) -> None:
        if finds and "name" in case.path_parameters:
            case.path_parameters["name"] = known.get(path.split("/")[2], "nobody")
        if finds and "item" in case.path_parameters:
            case.path_parameters["item"] = known["item"]
        answer = case.call()
        case.validate_response(answer, excluded_checks=[schemathesis.checks.positive_data_acceptance])

    held()


@pytest.fixture(scope="module")
def api(model: HMTModel, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(made(model, tmp_path_factory.mktemp("examples")))


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_examples_are_such_bodies_and_are_answered(app: Any, api: TestClient, method: str, path: str) -> None:
    whole = app.openapi()
    content = whole["paths"][path][method].get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    body = whole["components"]["schemas"][content["schema"]["$ref"].rsplit("/")[-1]]
    assert body["examples"], f"{path} shows none"
    for example in body["examples"]:
        Draft202012Validator({**body, "components": whole["components"]}).validate(example)
        name = "garden" if "corpora/{" in path else "alice"
        answer = api.request(
            method, path.replace("{name}", name), json={**example, **({"model": None} if "model" in example else {})}
        )
        assert answer.is_success, answer.text


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[1].startswith(ABOUT_MEMORY)])
def test_what_comes_back_of_a_memory_is_described(app: Any, method: str, path: str) -> None:
    answers = app.openapi()["paths"][path][method]["responses"]
    (answer,) = (answers[status] for status in answers if status.startswith("2"))
    schema = answer.get("content", {}).get("application/json", {}).get("schema")
    assert schema is None or "$ref" in schema, "an object of any kind tells a client nothing"
    erases = method == "delete" and "messages" not in path
    assert (schema is None) is (erases or path.endswith("export")), "or nothing, or a file"


def test_errors_and_tokens_are_described(app: Any) -> None:
    whole = app.openapi()
    operations = [operation for methods in whole["paths"].values() for operation in methods.values()]
    assert all("default" in operation["responses"] and "422" not in operation["responses"] for operation in operations)
    assert whole["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    error = TestClient(app).get("/v1/sessions/nobody").json()
    Draft202012Validator(whole["components"]["schemas"]["Error"]).validate(error)
