# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from collections.abc import Iterator

import lowrank_swift as lrs
import pytest
from device import LIBRARY


@pytest.fixture(autouse=True)
def correct_calls() -> Iterator[None]:
    """Expects no wrong call, nothing left to run and nothing kept but what a device needs once."""
    lrs.warmup("cuda:0")
    lrs.warmup("cuda:1")
    blocks = LIBRARY.cuda_double_count(b"blocks")
    assert LIBRARY.cuda_double_violations() == b""
    yield
    gc.collect()
    assert LIBRARY.cuda_double_violations() == b""
    assert LIBRARY.cuda_double_count(b"operations") == 0
    assert LIBRARY.cuda_double_count(b"blocks") == blocks
