# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA kernels with NVRTC, which needs no GPU, and ends with one line: ``nvrtc: N passed, N failed``.

Usage: python compile_cuda_kernels.py [architectures, by default sm_80 sm_90 sm_100]

NVRTC is that of the package nvidia-cuda-nvrtc in the Python that runs this. A kernel passes for an architecture if the machine
code has it.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "CBridge" / "CCUDA" / "cuda.c"
PACKAGE = "nvidia-cuda-nvrtc"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def kernel_source() -> str:
    """Return the text that the library compiles, which cuda.c puts together from files."""
    names = re.findall(r'^#embed "(.+)"$', SOURCE.read_text(), re.MULTILINE)
    return "\n".join((SOURCE.parent / name).read_text() for name in names)


def load_nvrtc() -> ctypes.CDLL:
    """Load NVRTC.

    Raises:
        SystemExit: if the package is not installed.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise SystemExit(f"{PACKAGE} is not installed: `pip install {PACKAGE}`") from None
    libraries = sorted(Path(str(file.locate())) for file in files if ".so" in file.name and "alt" not in file.name)
    # The compiler looks for its builtins by name only.
    for library in libraries:
        if "builtins" in library.name:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(library for library in libraries if library.name.startswith("libnvrtc.so"))))


def compile_for(nvrtc: ctypes.CDLL, source: str, architecture: str) -> tuple[bytes, str]:
    """Return the machine code, empty where compiling fails, and what the compiler says."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"lowrank.cu", 0, None, None) != 0:
        raise SystemExit("nvrtcCreateProgram failed")
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(max(size.value, 1))
    nvrtc.nvrtcGetProgramLog(program, log)
    code = b""
    if status == 0 and nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0:
        buffer = ctypes.create_string_buffer(size.value)
        if nvrtc.nvrtcGetCUBIN(program, buffer) == 0:
            code = buffer.raw
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code, log.value.decode(errors="replace") or f"status {status}"


def main(architectures: Sequence[str]) -> int:
    """Compile for each architecture, and return the exit status."""
    nvrtc, source = load_nvrtc(), kernel_source()
    kernels = re.findall(r"^LR_KERNEL\((\w+)\) \{", source, re.MULTILINE)
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    print(f"NVRTC {major.value}.{minor.value}, {len(kernels)} kernels")
    passed = failed = 0
    for architecture in architectures:
        code, log = compile_for(nvrtc, source, architecture)
        missing = [kernel for kernel in kernels if f"\0.text.{kernel}\0".encode() not in code]
        passed, failed = passed + len(kernels) - len(missing), failed + len(missing)
        print(f"{architecture}: {len(code)} bytes" + (f", without {', '.join(missing)}\n{log}" if missing else ""))
    print(f"nvrtc: {passed} passed, {failed} failed", flush=True)
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ARCHITECTURES))
