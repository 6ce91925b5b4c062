"""The container and the service: nothing is built here, but what they name exists, and the health check tells."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from places import ROOT
from served import listening

from hmt_memory import Assistant
from hmt_memory.cli import doctor
from hmt_memory.cli.command import app
from hmt_memory.server.app import create_app
from hmt_memory.server.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "guides" / "server.md").read_text(encoding="utf-8")


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(name + " ")]


def options(words: list[str]) -> dict[str, Any]:
    """The options of `hmt serve`, as the command understands them."""
    assert words[0] == "serve"
    command: Any = typer.main.get_command(app)
    with command.commands["serve"].make_context("serve", words[1:]) as context:
        return dict(context.params)


def test_the_command_of_the_image_is_understood_and_needs_a_token() -> None:
    assert instructions("ENTRYPOINT") == ['["hmt"]']
    given = options(json.loads(instructions("CMD")[0]))
    assert given["host"] == "0.0.0.0" and str(given["port"]) in instructions("EXPOSE")


def test_the_image_has_what_it_copies_and_installs() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word.split("/")[0] for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    (extras,) = re.findall(r'"\.\[(.*)\]"', "\n".join(LINES))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    packages = {name.split("/")[0] for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    assert packages | {project["project"]["readme"], *project["project"]["license-files"]} <= copied


def test_the_core_brings_what_doctor_needs() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    brought = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    assert set(doctor._NEEDED) <= brought
    assert any(line.startswith("llguidance") for line in project["optional-dependencies"]["serve"])  # tools in chat


def test_it_runs_as_nobody_in_particular_and_keeps_its_store_in_the_volume() -> None:
    last = LINES[max(at for at, line in enumerate(LINES) if line.startswith("FROM ")) :]
    assert "USER hmt" in last and not any(line.startswith(("USER root", "RUN")) for line in last[last.index("USER hmt") :])
    (volume,) = instructions("VOLUME")
    assert f"--home-dir {volume} " in "\n".join(instructions("RUN"))  # a library that caches at home writes there, too
    environment = dict(word.split("=", 1) for line in instructions("ENV") for word in line.split())
    assert all(environment[name].startswith(f"{volume}/") for name in ("HMT_STORE", "HMT_CACHE"))
    service = COMPOSE["services"]["memory"]
    assert service["volumes"] == [f"memory:{volume}"] and set(COMPOSE["volumes"]) == {"memory"}
    assert service["ports"] == ["127.0.0.1:8399:8399"] and "8399" in instructions("EXPOSE")
    assert set(service["build"]["args"]) == {line.split("=")[0] for line in instructions("ARG")}


@pytest.fixture
def port(assistant: Assistant) -> Iterator[int]:
    with listening(create_app(assistant, Settings(hosts=("*",)))) as port:
        yield port


@pytest.mark.enable_socket
def test_the_health_check_tells_whether_it_answers(port: int) -> None:
    (check,) = (line for line in LINES if line.startswith("HEALTHCHECK "))
    python, *words = json.loads(check[check.index("CMD") + 3 :])
    assert python == "python"
    for number, healthy in ((port, True), (1, False)):
        given = [word.replace(":8399/", f":{number}/") for word in words]
        assert (subprocess.run([sys.executable, *given], capture_output=True).returncode == 0) is healthy


def test_the_service_of_systemd_is_understood() -> None:
    (command,) = re.findall(r"^ExecStart=/opt/hmt/bin/hmt (.*)$", PAGE, re.MULTILINE)
    given = options(shlex.split(command))
    assert str(given["store"]) == "/var/lib/hmt/store" and given["host"] == "127.0.0.1"
    assert "StateDirectory=hmt\n" in PAGE and "CacheDirectory=hmt\n" in PAGE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd, which knows its options, is not installed")
def test_systemd_knows_every_option_of_the_service(tmp_path: Path) -> None:
    (unit,) = re.findall(r"^```ini\n(\[Unit\]\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    file = tmp_path / "hmt.service"
    file.write_text(unit.replace("/opt/hmt/bin/hmt", sys.executable))  # which has to be there
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
    about = [line for line in (checked.stdout + checked.stderr).splitlines() if file.name in line]
    assert not about, "nothing is said of this unit; others are not ours"
