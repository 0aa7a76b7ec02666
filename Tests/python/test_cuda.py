# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""CUDA tensors without a GPU: with the test double of CUDA's libraries, and without any driver.

The libraries are opened once in a process, so each case has a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import ROOT, run_command, run_python

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
    # What is compiled for the double is not for the user's own processes.
    run_command(*command, cwd=ROOT, timeout=300, LOWRANK_CUDA_LIBRARIES=str(libraries), LOWRANK_CUDA_CACHE="off")


COMPILATIONS = """
import ctypes, json, os
import lowrank_swift as lrs
lrs.warmup("cuda:0")
double = ctypes.CDLL(os.path.join(os.environ["LOWRANK_CUDA_LIBRARIES"], "libcuda.so.1"))
print(double.cuda_double_count(b"nvrtcCompileProgram"), json.dumps(json.loads(lrs._native.config())["cuda"]["cache"]))
"""


def compilations(libraries: Path, **variables: str) -> tuple[int, str | None]:
    """How often a process that uses a device compiles the kernels, and where it caches them."""
    count, folder = run_python(COMPILATIONS, LOWRANK_CUDA_LIBRARIES=str(libraries), **variables).split(" ", 1)
    return int(count), json.loads(folder)


def test_kernels_are_compiled_once_for_all_processes(libraries: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    assert compilations(libraries, LOWRANK_CUDA_CACHE=str(folder)) == (1, str(folder))
    assert compilations(libraries, LOWRANK_CUDA_CACHE=str(folder)) == (0, str(folder))
    (file,) = folder.iterdir()
    for damaged in (file.read_bytes()[:-1], b"", b"something else"):
        file.write_bytes(damaged)
        assert compilations(libraries, LOWRANK_CUDA_CACHE=str(folder))[0] == 1
        assert compilations(libraries, LOWRANK_CUDA_CACHE=str(folder))[0] == 0


def test_where_kernels_are_cached(libraries: Path, tmp_path: Path) -> None:
    home, caches = tmp_path / "home", tmp_path / "caches"
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(caches), "LOWRANK_CUDA_CACHE": ""}
    assert compilations(libraries, **places) == (1, str(caches / "lowrank_swift"))
    for relative in ("", "caches"):
        expected = 1 if relative == "" else 0, str(home / ".cache" / "lowrank_swift")
        assert compilations(libraries, **{**places, "XDG_CACHE_HOME": relative}) == expected
    assert compilations(libraries, **{**places, "LOWRANK_CUDA_CACHE": "off"}) == (1, None)
    assert compilations(libraries, **{**places, "HOME": "", "XDG_CACHE_HOME": ""}) == (1, None)


def test_a_folder_that_can_not_be_written(libraries: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert compilations(libraries, LOWRANK_CUDA_CACHE=str(tmp_path / "file" / "kernels"))[0] == 1


def test_processes_that_compile_at_the_same_time(libraries: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "kernels")
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: compilations(libraries, LOWRANK_CUDA_CACHE=folder)[0], range(6)))
    assert 1 <= sum(counts) <= 6
    assert len(list(Path(folder).iterdir())) == 1
    assert compilations(libraries, LOWRANK_CUDA_CACHE=folder)[0] == 0


def test_kernels_that_the_driver_refuses_are_compiled_again(libraries: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "kernels")
    compilations(libraries, LOWRANK_CUDA_CACHE=folder)
    refusing = COMPILATIONS.replace(
        "import lowrank_swift as lrs",
        "double = ctypes.CDLL(os.path.join(os.environ['LOWRANK_CUDA_LIBRARIES'], 'libcuda.so.1'))\n"
        "double.cuda_double_fail(b'cuModuleLoadData', 0, 209)\nimport lowrank_swift as lrs",
    )
    result = run_python(refusing, LOWRANK_CUDA_LIBRARIES=str(libraries), LOWRANK_CUDA_CACHE=folder)
    assert result.split()[0] == "1"


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
