# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What a type checker is told is what the package does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import lowrank_swift as lrs
import pytest
from support import ROOT

pytest.importorskip("mypy")

PACKAGE = Path(lrs.__file__).parent

GOOD = """
from typing import Any

import numpy as np
import lowrank_swift as lrs
from typing_extensions import assert_type

weight = np.ones((6, 4), dtype=np.float32)
factors = lrs.lamda_(weight, 2, scale=0.5, tol=1e-3, seed=1, dtype="float64")
assert_type(factors, lrs.Factors)
assert_type(factors.scale, float)
assert_type(lrs.qr(weight, rank=2, dtype=np.float64), lrs.QRResult)
assert_type(lrs.svd(weight, 2).passes, int)
assert_type(lrs.ldu(weight, 2), lrs.LDUResult)
assert_type(lrs.Tensor((2, 3), "bfloat16").shape, tuple[int, ...])
assert_type(lrs.get_num_threads(), int)
gradients = lrs.adapter_backward(weight, None, weight, factors, need={"x"})
assert_type(gradients, lrs.AdapterGradients)
try:
    lrs.set_num_threads(1)
except (lrs.LinAlgError, lrs.InternalError, lrs.BackendUnavailableError) as error:
    assert_type(error.args, tuple[Any, ...])
"""

BAD = {
    'lrs.qr(None, "2")': "arg-type",
    "lrs.qr(None)": "call-arg",
    "lrs.qr(None, 2, 3)": "call-arg",
    "lrs.olora(None, 2, scale='x')": "arg-type",
    "lrs.olora(None, 2, seed=1)": "call-arg",
    "lrs.orthogonal(None, 2)": "attr-defined",
    "lrs.Tensor([2, 3])": "arg-type",
    "lrs.set_num_threads()": "call-arg",
    "lrs.get_num_threads() + 'x'": "operator",
}


def check(folder: Path, *arguments: str, module: str = "mypy") -> tuple[int, str]:
    """Run a module of mypy on the package as users have it: installed, or as the folder on the path that it is."""
    environment = {key: value for key, value in os.environ.items() if key not in ("MYPYPATH", "PYTHONPATH")}
    if str(PACKAGE.parent) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        environment |= {"MYPYPATH": str(PACKAGE.parent), "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return result.returncode, result.stdout + result.stderr


def test_users_script(tmp_path: Path) -> None:
    assert (PACKAGE / "py.typed").is_file()
    (tmp_path / "script.py").write_text(GOOD)
    status, output = check(tmp_path, "--strict", "script.py")
    assert status == 0, output


def test_users_mistakes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import lowrank_swift as lrs\n" + "\n".join(BAD))
    status, output = check(tmp_path, "--strict", "script.py")
    assert status == 1, output
    for number, (line, kind) in enumerate(BAD.items(), start=2):
        (message,) = [text for text in output.splitlines() if text.startswith(f"script.py:{number}: error")]
        assert message.endswith(f"[{kind}]"), f"{line}: {message}"


def test_stub_is_that_of_the_extension(tmp_path: Path) -> None:
    status, output = check(tmp_path, "lowrank_swift._native", module="mypy.stubtest")
    assert status == 0, output


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="the sources are not here")
def test_package_is_strictly_typed(tmp_path: Path) -> None:
    command = ["--config-file", str(ROOT / "pyproject.toml"), "--strict", "--package", "lowrank_swift"]
    status, output = check(tmp_path, *command)
    assert status == 0, output
