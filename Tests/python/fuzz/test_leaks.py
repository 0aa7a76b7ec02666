# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""No call leaves memory behind, whether it succeeds or fails; nor does a training step of the PyTorch layer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import python_environment

# Every block is malloc's own, and none waits in a thread's cache: the count of bytes is exact.
EXACT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "PYTHONMALLOC": "malloc"}


@pytest.mark.parametrize("examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_no_call_leaks(examples: int) -> None:
    script = Path(__file__).with_name("leaks.py")
    result = subprocess.run(
        [sys.executable, script, str(examples), "1"],
        env=python_environment(**EXACT),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("functions: ")
