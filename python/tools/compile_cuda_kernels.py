# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Compiles the CUDA kernels with NVRTC, which needs no GPU, and ends with one line: ``nvrtc: N passed, N failed``.

Usage: python compile_cuda_kernels.py FOLDER [architectures, by default sm_80 sm_90 sm_100]

FOLDER is that of `pip install --target FOLDER nvidia-cuda-nvrtc`. A kernel passes for an architecture if the machine
code has it. Skips where the folder has no NVRTC.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "CBridge" / "CCUDA" / "cuda.c"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def kernel_source() -> str:
    """Return the text that the library compiles, which cuda.c puts together from files."""
    names = re.findall(r'^#embed "(.+)"$', SOURCE.read_text(), re.MULTILINE)
    return "\n".join((SOURCE.parent / name).read_text() for name in names)


def load_nvrtc(folder: Path) -> ctypes.CDLL | None:
    """Load the NVRTC below a folder, or return None where there is none."""
    # The compiler looks for its builtins by name only.
    for library in folder.glob("nvidia/*/lib/libnvrtc-builtins.so*"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    compiler = next((path for path in folder.glob("nvidia/*/lib/libnvrtc.so*") if "alt" not in path.name), None)
    return None if compiler is None else ctypes.CDLL(str(compiler))


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


def main(folder: str, architectures: Sequence[str]) -> int:
    """Compile for each architecture, and return the exit status."""
    nvrtc, source = load_nvrtc(Path(folder)), kernel_source()
    if nvrtc is None:
        print(f"nvrtc: skipped, {folder} has no nvidia-cuda-nvrtc")
        return 0
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
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:] or ARCHITECTURES))
