# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from support import run_python


def test_malformed_capsules_are_refused() -> None:
    folder = Path(__file__).parent
    output = run_python(f"import sys; sys.path.insert(0, {str(folder)!r}); import capsules; capsules.main()")
    assert int(output.split()[-1]) > 1000
