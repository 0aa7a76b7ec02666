# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The package in Tests/SwiftConsumer, which uses the products for Swift and for C as other packages do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "Tests/SwiftConsumer"
SCRATCH = ROOT / ".build/consumer"

pytestmark = [
    pytest.mark.skipif(not PACKAGE.is_dir(), reason="the sources are not here"),
    pytest.mark.skipif(shutil.which("swift") is None, reason="no Swift toolchain"),
]


@pytest.fixture(scope="module")
def programs() -> Path:
    """The folder of the built programs. The headers of Python are not to be needed."""
    command = ["swift", "build", "--package-path", str(PACKAGE), "--scratch-path", str(SCRATCH)]
    environment = {name: value for name, value in os.environ.items() if name != "LOWRANK_PYTHON_INCLUDE"}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert not re.search(r"SwiftConsumer/.*warning:", built.stdout), built.stdout
    return SCRATCH / "debug"


def run(program: Path) -> list[str]:
    result = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()


def test_the_example_of_the_guide_for_swift(programs: Path) -> None:
    columns, message = run(programs / "GuideExample")
    assert re.fullmatch(r"columns of W from the adapter: ok, error / \(m eps\) = \S+", columns)
    assert message == "rank: expected 1 <= rank <= min(m, n) = 4, got 0"


def test_the_public_interface(programs: Path) -> None:
    (line,) = run(programs / "PublicInterface")
    match = re.fullmatch(r"consumer: (\d+) passed, 0 failed", line)
    assert match
    assert int(match[1]) > 40


def test_the_example_of_the_guide_for_c(programs: Path) -> None:
    assert run(programs / "CExample") == [
        "residual of the first column: ok",
        "status 2: rank: expected 1 <= rank <= min(m, n) = 4, got 0",
    ]
