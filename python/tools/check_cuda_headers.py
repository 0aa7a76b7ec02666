# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Compares cuda_api.h, which is written by hand, with NVIDIA's headers; ends with ``headers: N passed, N failed``.

Usage: python check_cuda_headers.py FOLDER

FOLDER is that of `pip install --target FOLDER` with the packages that the Makefile names. The number of each function's
arguments is compared, their sizes, and whether they are integers or floating-point numbers, and likewise the result; an
address on a device is an integer here and a pointer there. Constants are compared by their values. Skips where there
is no C++ compiler or no header.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "CBridge" / "CCUDA" / "include" / "cuda_api.h"

# NVIDIA's names where they are not the same without `LR_`.
CONSTANTS = {
    "LR_CUDA_SUCCESS": "CUDA_SUCCESS",
    "LR_CUDA_ERROR_(.+)": r"CUDA_ERROR_\1",
    "LR_CUDA_R_(.+)": r"CUDA_R_\1",
    "LR_CUDA_MULTIPROCESSOR_COUNT": "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT",
    "LR_CUDA_COMPUTE_CAPABILITY_(.+)": r"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_\1",
    "LR_CUDA_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
    "LR_CUDA_MEMORY_POOLS_SUPPORTED": "CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED",
    "LR_CUDA_MAX_DYNAMIC_SHARED_SIZE_BYTES": "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
    "LR_CUBLAS_FILL_(.+)": r"CUBLAS_FILL_MODE_\1",
    "LR_(.+)": r"\1",
}

# In C++ there is an older one beside it. A cast to another type than the header's would not compile.
OVERLOADED = {
    "cublasGemmEx": "static_cast<cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, "
    "int, const void *, const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *, "
    "cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t)>(&cublasGemmEx)"
}

PROGRAM = """
#include <cstdio>
#include <type_traits>
#include <cuda.h>
#include <cublas_v2.h>
#include <cusolverDn.h>
#include <nvrtc.h>
#include "{header}"

int passed = 0, failed = 0;

void report(const char *name, bool isRight) {{
  isRight ? passed++ : failed++;
  if (!isRight) std::printf("%s differs\\n", name);
}}

// Pointers are compared by what they point to, as far as those are numbers: handles and addresses have no common type.
template <class A, class B> constexpr bool isAlike() {{
  using To = std::remove_cv_t<std::remove_pointer_t<A>>;
  using Theirs = std::remove_cv_t<std::remove_pointer_t<B>>;
  constexpr bool isClass = sizeof(A) == sizeof(B) && std::is_floating_point_v<A> == std::is_floating_point_v<B>;
  constexpr bool isOfNumbers = std::is_arithmetic_v<To> && std::is_arithmetic_v<Theirs>;
  if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B> && isOfNumbers)
    return sizeof(To) == sizeof(Theirs) && std::is_floating_point_v<To> == std::is_floating_point_v<Theirs>;
  return isClass;
}}

template <class Ours, class Theirs> struct Same : std::false_type {{}};
template <class R, class... A, class S, class... B>
struct Same<R (*)(A...), S (*)(B...)> {{
  static constexpr bool arguments() {{
    if constexpr (sizeof...(A) == sizeof...(B)) return (isAlike<A, B>() && ...);
    return false;
  }}
  static constexpr bool value = arguments() && isAlike<R, S>();
}};

int main() {{
{checks}
  std::printf("headers: %d passed, %d failed\\n", passed, failed);
  return failed > 0 || passed == 0;
}}
"""


def their_name(constant: str) -> str:
    """Return NVIDIA's name of a constant."""
    for pattern, replacement in CONSTANTS.items():
        if re.fullmatch(pattern, constant):
            return re.sub(pattern, replacement, constant)
    raise AssertionError(constant)


def program() -> str:
    """Return the C++ program that compares everything the header declares."""
    text = HEADER.read_text()
    functions = re.findall(r"\(\*pfn_(\w+)\)", text)
    constants = re.findall(r"\b(LR_\w+) = ", text)
    theirs = {name: OVERLOADED.get(name, f"&{name}") for name in functions}
    checks = [f'  report("{name}", Same<pfn_{name}, decltype({theirs[name]})>::value);' for name in functions]
    checks += [f'  report("{name}", int({name}) == int({their_name(name)}));' for name in constants]
    return PROGRAM.format(header=HEADER, checks="\n".join(checks))


def main(folder: str) -> int:
    """Compile and run the program, and return its exit status."""
    compiler = next(filter(None, map(shutil.which, ("clang++", "c++", "g++"))), None)
    headers = sorted(Path(folder).glob("nvidia/*/include"))
    if compiler is None or not headers:
        print("headers: skipped, " + ("no C++ compiler" if compiler is None else f"no NVIDIA headers in {folder}"))
        return 0
    with tempfile.TemporaryDirectory() as work:
        source, binary = Path(work, "check.cpp"), Path(work, "check")
        source.write_text(program())
        includes = [f"-isystem{path}" for path in headers] + [f"-isystem{path}/cccl" for path in headers]
        command = [compiler, "-std=c++17", "-w", *includes, str(source), "-o", str(binary)]
        if subprocess.run(command, check=False).returncode != 0:
            return 1
        return subprocess.run([str(binary)], check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
