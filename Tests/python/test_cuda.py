# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""CUDA tensors without a GPU: with the test double of CUDA's libraries, and without any driver.

The libraries are opened once in a process, so each case has a process of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, python_environment, run_python

NAMES = ("libcuda.so.1", "libcublas.so.13", "libcusolver.so.12", "libnvrtc.so.13")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the double under the names of CUDA's libraries."""
    compiler = shutil.which("clang++")
    if compiler is None:
        pytest.skip("the double is compiled with clang++, which comes with Swift")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "openblas"], capture_output=True, text=True, check=False
    )
    if flags.returncode != 0:
        pytest.skip("the double is linked with OpenBLAS, which pkg-config does not find")
    folder = tmp_path_factory.mktemp("cuda")
    sources = sorted(map(str, (ROOT / "Tests" / "CUDADouble").glob("*.cpp")))
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", *sources, *flags.stdout.split()]
    subprocess.run([*command, "-o", str(folder / "double.so")], check=True)
    for name in NAMES:
        (folder / name).symlink_to("double.so")
    return folder


def test_device_arrays(libraries: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "Tests" / "python" / "cuda")]
    environment = python_environment(LOWRANK_CUDA_LIBRARIES=str(libraries))
    result = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


UNAVAILABLE = """
import numpy as np, lowrank_swift as lrs
class OnDevice:
    shape, dtype = (4, 6), np.dtype("float32")
    def __dlpack_device__(self): return 2, 0
    def __dlpack__(self, **arguments): return np.ones(self.shape, np.float32).__dlpack__()
for call in (lambda: lrs.warmup("cuda"), lambda: lrs.Tensor((2, 3), "float32", (2, 0)), lambda: lrs.warmup("cuda:1")):
    try:
        call()
        print("no error")
    except lrs.BackendUnavailableError as error:
        print(error)
print(lrs.qr(np.eye(3), 2).Q.shape)
"""


def test_without_a_driver(tmp_path: Path) -> None:
    lines = run_python(UNAVAILABLE, LOWRANK_CUDA_LIBRARIES=str(tmp_path)).splitlines()
    if lines[0] == "no error":
        pytest.skip("there is a CUDA driver here")
    assert len(set(lines[:3])) == 1
    assert "libcuda.so.1" in lines[0]
    assert lines[3] == "(3, 2)"


def test_libraries_that_do_not_load(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_text("not a library")
    lines = run_python(UNAVAILABLE, LOWRANK_CUDA_LIBRARIES=str(tmp_path)).splitlines()
    if lines[0] == "no error":
        pytest.skip("there is a CUDA driver here")
    assert "libcuda.so.1" in lines[0]


def test_incomplete_sets_of_libraries(libraries: Path, tmp_path: Path) -> None:
    """A driver alone: what is missing is named."""
    (tmp_path / NAMES[0]).symlink_to(libraries / NAMES[0])
    lines = run_python(UNAVAILABLE, LOWRANK_CUDA_LIBRARIES=str(tmp_path)).splitlines()
    if lines[0] == "no error":
        pytest.skip("cuBLAS, cuSOLVER and NVRTC are here")
    assert any(name in lines[0] for name in ("libcublas", "libcusolver", "libnvrtc"))
