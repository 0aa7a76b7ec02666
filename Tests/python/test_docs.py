# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The user's guide: its Python runs, what it names exists, its reference is complete, Sphinx has no complaint."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import lowrank_swift
import pytest
import torch
from lowrank_swift.cli.app import app
from support import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the sources are not here")


class Block(NamedTuple):
    """A fenced block: what stands behind the fence, the number of its first line, and its text."""

    kind: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^```(\S*)[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(match[1], text[: match.start(2)].count("\n") + 1, match[2]) for match in found]


def test_the_pages_are_found() -> None:
    pages = {"index", "methods", "training", "saving", "peft", "swift", "c", "api", "api-torch", "api-peft"}
    assert pages <= {page.stem for page in PAGES}
    assert sum(block.kind == "python" for page in PAGES for block in blocks(page)) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_kind_of_block_is_checked(page: Path) -> None:
    """Anything that looks like code has to be Python, a command, or taken from a file that other tests run."""
    kinds = {block.kind for block in blocks(page)}
    assert kinds <= {"python", "console", "text", "{eval-rst}", "{literalinclude}", "{toctree}"}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.kind == "python" for block in blocks(page))],
    ids=lambda page: page.stem,
)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    """The blocks of a page, in order, as one program in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.kind == "python":
            for library in ("peft", "transformers"):
                if f"from {library} import" in block.text:
                    pytest.importorskip(library)
            # Blank lines before the code make the numbers in a traceback those of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_commands_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= targets
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"lowrank-swift ([a-z]+)", text)) <= commands
    for name in re.findall(r"`((?:CBridge|Sources|Tests|python)/[^`<]+)`", text):
        assert (ROOT / name).exists(), name
    for block in blocks(page):
        if block.kind == "console":
            assert all(line.startswith("$ ") for line in block.text.splitlines())


@pytest.mark.parametrize("page", ["api", "api-torch", "api-peft", "api-transformers"])
def test_every_public_name_is_documented_once(page: str) -> None:
    library = page.removeprefix("api").removeprefix("-")
    if library:
        pytest.importorskip(library)
    module = importlib.import_module(f"lowrank_swift.{library}".removesuffix("."))
    text = (DOCS / f"{page}.md").read_text()
    documented = re.findall(r"^\.\. (?:autofunction|autoclass|autoexception|data):: (\w+)", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(module.__all__)


def test_printed_results_of_the_examples_are_those_of_their_tests() -> None:
    """The programs behind these pages are built and run by test_swift_consumer."""
    expected = (ROOT / "Tests/python/test_swift_consumer.py").read_text()
    for page in ("swift", "c"):
        (block,) = [block for block in blocks(DOCS / f"{page}.md") if block.kind == "text"]
        assert block.text.splitlines()[-1] in expected
        included = [block for block in blocks(DOCS / f"{page}.md") if block.kind == "{literalinclude}"]
        assert len(included) == 2


@pytest.fixture
def build_docc(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "python/tools"))
    return importlib.import_module("build_docc")


def test_swift_symbols_without_a_comment_are_found(build_docc: ModuleType) -> None:
    def symbol(*path: str, comment: bool = False, place: bool = True) -> dict[str, object]:
        result: dict[str, object] = {"identifier": {"precise": ".".join(path)}, "pathComponents": list(path)}
        return result | ({"docComment": {}} if comment else {}) | ({"location": {}} if place else {})

    symbols = [symbol("Method", comment=True), symbol("Method", "start", comment=True), symbol("OLoRA", comment=True)]
    symbols += [
        symbol("OLoRA", "start"),
        symbol("OLoRA", "rank"),
        symbol("OLoRA", "init", place=False),
        symbol("other"),
    ]
    relations = [
        {"kind": "conformsTo", "source": "OLoRA", "target": "Method"},
        {"kind": "requirementOf", "source": "Method.start", "target": "Method"},
        *({"kind": "memberOf", "source": f"OLoRA.{name}", "target": "OLoRA"} for name in ("start", "rank", "init")),
    ]
    assert build_docc.undocumented({"symbols": symbols, "relationships": relations}) == ["OLoRA.rank", "other"]


@pytest.mark.slow
def test_reference_of_the_swift_library_has_no_warning(build_docc: ModuleType, tmp_path: Path) -> None:
    if shutil.which("swift") is None or shutil.which("docc") is None:
        pytest.skip("no Swift toolchain")
    assert build_docc.main([str(tmp_path / "swift")]) == 0
    folder = tmp_path / "swift/data/documentation/lowrank"
    for page in ("gettingstarted", "adapterform", "memoryanderrors", "matrixview", "factors", "olora"):
        assert (folder / f"{page}.json").exists()


def test_sphinx_has_no_complaint(tmp_path: Path) -> None:
    for library in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    result = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    html = (tmp_path / "html/api.html").read_text()
    assert all(f'id="lowrank_swift.{name}"' in html for name in lowrank_swift.__all__)
