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
from hmt_memory.server.app import Settings, create_app

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 40 if LONG else 2
ROUTES = [
    (method, path)
    for path, methods in create_app(Assistant("none"), Settings()).openapi()["paths"].items()
    for method in methods
]


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
def schema(app: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("invalid", [False, True], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_calls_made_up_from_the_description_are_answered_as_it_says(schema: Any, method: str, path: str, invalid: bool) -> None:
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
    @given(case=operation.as_strategy(generation_mode=mode), known=strategies.booleans())
    def held(case: Any, known: bool) -> None:
        if known and "name" in case.path_parameters:
            case.path_parameters["name"] = "garden" if "corpora/{" in path else "alice"
        answer = case.call()
        case.validate_response(answer, excluded_checks=[schemathesis.checks.positive_data_acceptance])

    held()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_examples_are_such_bodies_and_are_answered(app: Any, model: HMTModel, tmp_path: Path, method: str, path: str) -> None:
    whole = app.openapi()
    content = whole["paths"][path][method].get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    body = whole["components"]["schemas"][content["schema"]["$ref"].rsplit("/")[-1]]
    api = TestClient(made(model, tmp_path))
    assert body["examples"], f"{path} shows none"
    for example in body["examples"]:
        Draft202012Validator({**body, "components": whole["components"]}).validate(example)
        name = "garden" if "corpora/{" in path else "alice"
        answer = api.request(
            method, path.replace("{name}", name), json={**example, **({"model": None} if "model" in example else {})}
        )
        assert answer.is_success, answer.text


def test_errors_and_tokens_are_described(app: Any, tmp_path: Path) -> None:
    whole = app.openapi()
    operations = [operation for methods in whole["paths"].values() for operation in methods.values()]
    assert all("default" in operation["responses"] and "422" not in operation["responses"] for operation in operations)
    assert whole["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    error = TestClient(app).get("/v1/sessions/nobody").json()
    Draft202012Validator(whole["components"]["schemas"]["Error"]).validate(error)
