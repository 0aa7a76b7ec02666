# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Builds ``lowrank_swift/_native.abi3.so`` with ``swift build``; all metadata is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError

ROOT = Path(__file__).resolve().parent
SWIFT_MINIMUM = (6, 2)


def swift_problem() -> str | None:
    """Says in one sentence why the Swift toolchain can't build this, or returns None."""
    needed = "lowrank_swift is built with Swift {}.{} or newer".format(*SWIFT_MINIMUM)
    remedy = "install it from https://www.swift.org/install/linux and put `swift` on PATH."
    if shutil.which("swift") is None:
        return f"{needed}, but no `swift` was found: {remedy}"
    result = subprocess.run(["swift", "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"Swift version (\d+)\.(\d+)", result.stdout)
    if version is None:
        return f"{needed}, but `swift --version` at {shutil.which('swift')} does not work: {remedy}"
    if (int(version[1]), int(version[2])) < SWIFT_MINIMUM:
        return f"{needed}, but {shutil.which('swift')} is {version[1]}.{version[2]}: {remedy}"
    return None


def openblas_problem() -> str | None:
    """Says in one sentence why OpenBLAS can't be linked, or returns None."""
    remedy = "on Debian or Ubuntu run `apt install libopenblas-dev pkg-config`."
    if shutil.which("pkg-config") is None:
        return f"lowrank_swift finds OpenBLAS through pkg-config, but no `pkg-config` was found: {remedy}"
    if subprocess.run(["pkg-config", "--exists", "openblas"], check=False).returncode != 0:
        return f"lowrank_swift is linked with OpenBLAS, but pkg-config does not find `openblas`: {remedy}"
    return None


def python_header_problem() -> str | None:
    """Says in one sentence that Python's C headers are missing, or returns None."""
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        return (
            f"lowrank_swift needs Python's C headers, but {include}/Python.h does not exist: on Debian or Ubuntu run "
            "`apt install python3-dev`."
        )
    return None


def check_requirements() -> None:
    """Raises an error with one sentence for each thing that is missing, before any compiler is started."""
    if sys.platform != "linux":
        raise PlatformError(f"lowrank_swift runs on Linux only so far, and this is {sys.platform}.")
    problems = [swift_problem(), openblas_problem(), python_header_problem()]
    found = [problem for problem in problems if problem is not None]
    if found:
        raise PlatformError("\n".join(found))


class BuildNativeFirst(build):
    """Builds the native library before the Python files are copied, so that what is missing is said at once."""

    sub_commands = sorted(build.sub_commands, key=lambda command: command[0] != "build_ext")

    def run(self) -> None:
        """Builds into an empty folder: a module deleted since the last build must not come back in the wheel."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildSwift(build_ext):
    """Has SwiftPM build the extension, and copies it to where setuptools wants it."""

    def run(self) -> None:
        """Says what is missing before setuptools looks for a C compiler, which is not needed."""
        check_requirements()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Builds the product ``_native`` in release mode with the Swift runtime inside."""
        scratch = ROOT / ".build" / "python"
        exports = ROOT / "CBridge" / "PythonExtension" / "exports.map"
        command = ["swift", "build", "--package-path", str(ROOT), "--scratch-path", str(scratch)]
        # A cached build plan would keep the flags and the header folder of another Python.
        command += ["--configuration", "release", "--product", "_native", "--disable-build-manifest-caching"]
        # `--static-swift-stdlib` does not act on dynamic libraries.
        command += ["-Xswiftc", "-static-stdlib"]
        # lld, which comes with Swift: gold keeps Swift's protected symbols in the dynamic table.
        command += ["-Xswiftc", "-use-ld=lld", "-Xlinker", "-s", "-Xlinker", f"--version-script={exports}"]
        environment = {**os.environ, "LOWRANK_PYTHON_INCLUDE": sysconfig.get_path("include")}
        if subprocess.run(command, env=environment, check=False).returncode != 0:
            raise PlatformError("`swift build` failed to build lowrank_swift; what it printed stands above.")
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copied beside and renamed: a process that has the old library mapped keeps it whole.
        partial = target.with_suffix(".partial")
        shutil.copy2(scratch / "release" / "lib_native.so", partial)
        partial.replace(target)


setup(
    ext_modules=[Extension("lowrank_swift._native", sources=[], py_limited_api=True)],
    cmdclass={"build": BuildNativeFirst, "build_ext": BuildSwift},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
