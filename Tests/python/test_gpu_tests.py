# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The tests for a GPU, which few machines run: that they can be collected, and that they pass on the CPU."""

from __future__ import annotations

import sys

import pytest
from support import ROOT, run_command


def run(*options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "Tests/python/gpu"]
    return run_command(*command, *options, cwd=ROOT, timeout=1200, LOWRANK_GPU_TEST_DEVICE="cpu")


def test_collection() -> None:
    names = run("--collect-only")
    for name in ("test_factorizations", "test_training", "test_graphs", "test_distributed_data_parallel"):
        assert f"::{name}" in names


@pytest.mark.slow
def test_on_the_cpu() -> None:
    """All but what only CUDA has."""
    assert " passed" in run()
