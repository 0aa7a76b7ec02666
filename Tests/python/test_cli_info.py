# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift info`: what a report of a problem should hold."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import lowrank_swift
import pytest
from lowrank_swift.cli import info as command
from lowrank_swift.cli.app import app
from support import run_python
from typer.testing import CliRunner

RUN = "import sys; sys.argv = ['lowrank-swift', 'info', *{arguments}]; from lowrank_swift.cli import main; main()"


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["info", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_holds_what_the_library_and_the_machine_say() -> None:
    facts = json.loads(invoke("--json"))
    config = lowrank_swift.show_config("dicts")
    assert config is not None
    assert facts["lowrank_swift"] == lowrank_swift.__version__ == config.pop("version")
    assert {name: facts[name] for name in config} == config
    assert facts["python"] == platform.python_version()
    assert facts["libraries"]["torch"] == metadata.version("torch")
    assert facts["processors"] == len(os.sched_getaffinity(0))
    assert facts["cuda"] is None  # Nothing is opened to answer.
    assert platform.machine() in facts["cpu"]


def test_table_shows_the_same_facts() -> None:
    lines = invoke().splitlines()
    facts = command.collect_info()
    shown = {
        **facts.pop("libraries"),
        **facts.pop("environment"),
        **{name if name == "lowrank_swift" else name.replace("_", " "): value for name, value in facts.items()},
    }
    assert len(lines) == len(shown)
    for line, (name, value) in zip(sorted(lines), sorted(shown.items()), strict=True):
        assert line.startswith(f"{name} ")
        text = ", ".join(value) if isinstance(value, list) else "not in use" if value is None else str(value)
        assert line.removeprefix(name).strip() == text


def test_no_library_is_imported() -> None:
    code = """
from lowrank_swift.cli.info import collect_info
import sys
collect_info()
print([name for name in ("numpy", "torch", "peft", "transformers", "safetensors") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.99"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(command.metadata, "version", version)
    assert json.loads(invoke("--json"))["libraries"] == {
        "numpy": None,
        "torch": "2.99",
        "peft": None,
        "transformers": None,
        "safetensors": None,
    }
    (line,) = [line for line in invoke().splitlines() if line.startswith("peft ")]
    assert line.split(maxsplit=1)[1].strip() == "not installed"


def test_environment_variables_that_are_set() -> None:
    facts = json.loads(run_python(RUN.format(arguments=["--json"]), LOWRANK_ISA="reference", LOWRANK_THREADS="serial"))
    assert facts["environment"]["LOWRANK_ISA"] == facts["instruction_set"] == "reference"
    assert facts["environment"]["LOWRANK_THREADS"] == facts["thread_team"] == "serial"


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nFeatures\t: fp asimd\n"])
def test_a_kernel_that_tells_no_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(command, "Path", lambda _: path)
    assert command.collect_info()["cpu"] == platform.machine()


def test_the_name_of_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A CPU: fast\nprocessor\t: 1\nmodel name\t: A CPU: fast\n")
    monkeypatch.setattr(command, "Path", lambda _: path)
    assert command.collect_info()["cpu"] == f"A CPU: fast ({platform.machine()})"
