# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Adapted models on CUDA devices that torch only believes in: fake_cuda_tests.py, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, run_command

FOLDER = Path(__file__).parent

# What torch asks of CUDA is settled when it is imported.
RUN = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); import pytest; sys.exit(pytest.main(sys.argv[2:]))"


@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch with CUDA has devices of its own, or none")
def test_fake_devices(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    installed, library = Path(torch.__file__).parent, tmp_path / "fake_cuda.so"
    command = [compiler, "-std=c++20", "-O0", "-fPIC", "-shared", str(FOLDER / "fake_cuda.cpp"), "-o", str(library)]
    places = [f"-I{installed / 'include'}", f"-L{installed / 'lib'}", f"-Wl,-rpath,{installed / 'lib'}"]
    subprocess.run([*command, *places, "-lc10", "-ltorch_cpu"], check=True)
    tests = str(FOLDER / "fake_cuda_tests.py")
    command = [sys.executable, "-c", RUN, str(library), "-q", "-p", "no:cacheprovider", tests]
    run_command(*command, cwd=ROOT, timeout=300)
