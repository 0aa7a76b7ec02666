# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import lowrank_swift as lrs
import pytest
import torch
from support import minilm_weights

# They need the libraries that test_cuda.py makes, and a process of their own.
collect_ignore = [] if "LOWRANK_CUDA_LIBRARIES" in os.environ else ["cuda"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_device = torch.cuda.is_available() or "LOWRANK_GPU_TEST_DEVICE" in os.environ
    for item in items:
        if "gpu" in item.keywords and not has_device:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
        if "peft" in item.keywords and importlib.util.find_spec("peft") is None:
            item.add_marker(pytest.mark.skip(reason="PEFT is not installed"))


def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    counts = {name: len(reporter.getreports(name)) for name in ("passed", "failed", "error", "skipped")}
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"pytest: {counts['passed']} passed, {counts['failed'] + counts['error']} failed{skipped}", flush=True)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    yield
    lrs.set_num_threads(0)


@pytest.fixture(scope="session")
def minilm() -> dict[str, torch.Tensor]:
    """A few weights of the pretrained all-MiniLM-L6-v2, float32."""
    return minilm_weights()
