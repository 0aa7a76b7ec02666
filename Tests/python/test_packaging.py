# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What `setup.py` says where something is missing, in a copy without sources, so that nothing is compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not here")

GOOD_SWIFT = "Swift version 6.3.1 (swift-6.3.1-RELEASE)"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "python/lowrank_swift").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "python/lowrank_swift/_version.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("README.md", "LICENSE", "python/lowrank_swift/__init__.py"):
        (folder / name).write_text("")
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder to be the whole PATH, with a Swift that builds nothing and a pkg-config that finds everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    add_tool(
        folder, "swift", f'if [ "$1" = --version ]; then echo "{GOOD_SWIFT}"; else echo "no such module"; exit 1; fi'
    )
    add_tool(folder, "pkg-config", "exit 0")
    return folder


def add_tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def build(project: Path, tools: Path, *, include: str | None = None, platform: str = "linux") -> list[str]:
    """Run `setup.py build_ext`, which must fail, and return the lines of its message."""
    code = "import runpy, sys, sysconfig; sys.argv = ['setup.py', 'build_ext', '--inplace']\n"
    # Kept before the platform is another one, whose variables are not here.
    code += f"import setuptools; sysconfig.get_config_vars(); sys.platform = {platform!r}\n"
    if include is not None:
        code += "get_path = sysconfig.get_path\n"
        code += f"sysconfig.get_path = lambda n, *a: {include!r} if n == 'include' else get_path(n, *a)\n"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=project,
        env={**os.environ, "PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert not list(project.rglob("*.so"))
    return (result.stdout + result.stderr).splitlines()[1:]  # the first line is "running build_ext"


def test_no_swift(project: Path, tools: Path) -> None:
    (tools / "swift").unlink()
    (line,) = build(project, tools)
    assert line.startswith(
        "error: lowrank_swift is built with Swift 6.2 or newer, but no `swift` was found: install it"
    )
    assert "https://www.swift.org/install" in line


def test_old_swift(project: Path, tools: Path) -> None:
    add_tool(tools, "swift", 'echo "Swift version 5.10.1 (swift-5.10.1-RELEASE)"')
    (line,) = build(project, tools)
    assert re.match(r"error: lowrank_swift is built with Swift 6.2 or newer, but .*/swift is 5\.10: install", line)


def test_broken_swift(project: Path, tools: Path) -> None:
    add_tool(tools, "swift", "exit 127")
    (line,) = build(project, tools)
    assert "`swift --version`" in line
    assert "does not work: install" in line


def test_no_openblas(project: Path, tools: Path) -> None:
    add_tool(tools, "pkg-config", "exit 1")
    (line,) = build(project, tools)
    assert line.startswith("error: lowrank_swift is linked with OpenBLAS, but pkg-config does not find `openblas`:")
    assert "apt install libopenblas-dev" in line


def test_no_pkg_config(project: Path, tools: Path) -> None:
    (tools / "pkg-config").unlink()
    (line,) = build(project, tools)
    assert "no `pkg-config` was found" in line
    assert "apt install libopenblas-dev pkg-config" in line


def test_no_python_header(project: Path, tools: Path) -> None:
    (line,) = build(project, tools, include="/nonexistent")
    assert line.startswith("error: lowrank_swift needs Python's C headers, but /nonexistent/Python.h does not exist:")
    assert "apt install python3-dev" in line


def test_each_missing_thing_has_its_sentence(project: Path, tools: Path) -> None:
    for tool in tools.iterdir():
        tool.unlink()
    assert len(build(project, tools, include="/nonexistent")) == 3


def test_other_platforms(project: Path, tools: Path) -> None:
    (line,) = build(project, tools, platform="darwin")
    assert line == "error: lowrank_swift runs on Linux only so far, and this is darwin."


def test_failed_build_shows_what_swift_said(project: Path, tools: Path) -> None:
    if not Path(sys.base_prefix, "include").is_dir():
        pytest.skip("Python's headers are not installed")
    lines = build(project, tools)
    assert "no such module" in lines
    assert lines[-1] == "error: `swift build` failed to build lowrank_swift; what it printed stands above."
