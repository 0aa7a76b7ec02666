# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from support import run_python


def test_malformed_capsules_are_refused() -> None:
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    output = run_python(f"import sys; sys.path[:0] = {folders}; import capsules; capsules.main()")
    assert int(output.split()[-1]) > 1000
