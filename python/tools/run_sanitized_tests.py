# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Runs the tests on builds that watch memory (AddressSanitizer, with its leak check) and threads (ThreadSanitizer).

Usage: python run_sanitized_tests.py [address] [thread]

Both build and run the Swift tests and the C program; address also builds the Python extension and runs the tests that
go through it, in the Python that runs this script, which needs the tests' requirements. Each build has its own folder
below .build. A finding ends the process that has it with a report and a status, which fails here.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "Tests" / "python"
# What the extension does with arrays, arguments and errors. The rest runs nothing more of it.
PYTHON_TESTS = (
    "test_adapters.py",
    "test_arrays.py",
    "test_dlpack.py",
    "test_dlpack_exchange.py",
    "test_errors.py",
    "test_factorizations.py",
    "test_initializers.py",
    "fuzz/test_capsules.py",
)
# They measure memory, and the sanitizer keeps what is freed.
LEFT_OUT = "not test_no_float32_copy_of_the_weight"
# Tests ask for more memory than there is; an allocation that fails is then what it is without a sanitizer.
COMMON = "allocator_may_return_null=1"


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the project's folder, and end with its status where it fails."""
    print("+", *(f"{name}={value}" for name, value in environment.items()), *command, flush=True)
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode
    if status != 0:
        raise SystemExit(status)


def build_options(kind: str) -> list[str]:
    """Return the options of SwiftPM for a sanitizer."""
    return [f"--sanitize={kind}", "--scratch-path", str(ROOT / ".build" / kind)]


def run_swift(kind: str) -> None:
    """Run the Swift tests and the C program."""
    options = {"ASAN_OPTIONS": f"{COMMON}:detect_stack_use_after_return=1", "TSAN_OPTIONS": COMMON}
    # The run of XCTest, of which there are no tests here, leaks memory of its own.
    command = [sys.executable, str(ROOT / "python/tools/run_swift_tests.py"), "--disable-xctest"]
    # The double of CUDA runs kernels on stacks of its own, which the sanitizers take for overflows.
    command += ["--skip", "CUDA"]
    run(*command, *build_options(kind), **options)
    run("swift", "run", *build_options(kind), "ABITests", **options)


def address_runtime() -> Path:
    """Return AddressSanitizer's library, which has to be in a process before all others."""
    swift = shutil.which("swift")
    assert swift is not None
    pattern = f"lib/clang/*/lib/linux/libclang_rt.asan-{platform.machine()}.so"
    found = sorted(Path(swift).resolve().parents[1].glob(pattern))
    if not found:
        raise SystemExit(f"the Swift toolchain has no {pattern}")
    return found[-1]


def run_python() -> None:
    """Run the tests of the Python extension with AddressSanitizer. Python itself leaks on purpose: no leak check."""
    include = sysconfig.get_path("include")
    run("swift", "build", "--product", "_native", *build_options("address"), LOWRANK_PYTHON_INCLUDE=include)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "lowrank_swift")
        shutil.copytree(ROOT / "python/lowrank_swift", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copy(ROOT / ".build/address/debug/lib_native.so", package / "_native.abi3.so")
        environment = {
            "LD_PRELOAD": str(address_runtime()),
            "ASAN_OPTIONS": f"{COMMON}:detect_leaks=0",
            "PYTHONPATH": folder,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
        run(*command, *(TESTS / name for name in PYTHON_TESTS), **environment)


def main(arguments: list[str]) -> int:
    """Run what was asked for, by default everything."""
    if shutil.which("swift") is None:
        print("no `swift` was found: install it from https://www.swift.org/install/linux and put it on PATH")
        return 1
    kinds = arguments or ["address", "thread"]
    for kind in kinds:
        if kind not in ("address", "thread"):
            raise SystemExit(f"expected address or thread, got {kind}")
        run_swift(kind)
        if kind == "address":
            run_python()
    print(f"sanitized: {' and '.join(kinds)}, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
