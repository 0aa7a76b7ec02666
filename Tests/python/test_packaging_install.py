# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The ways to install from source, without a network, and life beside another Swift library."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT, run_python

HAS_SWIFT = shutil.which("swift") is not None and shutil.which("swiftc") is not None
in_source_tree = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the sources are not here")

CHECK = """
import os, sys, numpy as np, lowrank_swift as lrs
assert os.path.realpath(lrs.__file__).startswith(sys.argv[1]), lrs.__file__
q, r = lrs.qr(np.eye(5, 4, dtype=np.float32), 2)
assert abs(q @ r[:, :2] - np.eye(5, 2)).max() < 1e-6
print("works")
"""

# Things of the Swift runtime that two copies in one process could disagree on: generics, casts, the type registry.
OTHER_LIBRARY = """
protocol Shape { var area: Double { get } }
struct Square: Shape { var side: Double; var area: Double { side * side } }
final class Circle: Shape { let radius = 2.0; var area: Double { 3 * radius * radius } }

@_cdecl("other_sum")
public func otherSum(_ count: Int) -> Double {
    var values: [String: Any] = [:]
    for i in 0..<count { values["key \\(i)"] = i.isMultiple(of: 2) ? Square(side: Double(i)) : Circle() as Any }
    return values.values.compactMap { ($0 as? any Shape)?.area }.reduce(0, +)
}
"""

BOTH_LIBRARIES = """
import ctypes, sys, numpy as np

def other():
    library = ctypes.CDLL(sys.argv[1])
    library.other_sum.restype = ctypes.c_double
    return library.other_sum

def ours():
    import lowrank_swift as lrs
    return lrs

if sys.argv[2] == "before":
    total, lrs = other(), ours()
else:
    lrs, total = ours(), other()
matrix = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
expected = lrs.olora(matrix, 5).up.tobytes()
for _ in range(20):
    assert total(10) == 0 + 4 + 16 + 36 + 64 + 5 * 12
    assert lrs.olora(matrix, 5).up.tobytes() == expected
    try:
        lrs.qr(matrix, 31)
    except ValueError:
        pass
maps = open("/proc/self/maps").read()
print("libswiftCore" in maps)
"""


@pytest.mark.skipif(not HAS_SWIFT, reason="Swift is not installed")
def test_another_swift_library_in_the_process(tmp_path: Path) -> None:
    source, library = tmp_path / "Other.swift", tmp_path / "libOther.so"
    source.write_text(OTHER_LIBRARY)
    subprocess.run(["swiftc", "-O", "-emit-library", "-o", library, source], cwd=tmp_path, check=True)
    for order in ("before", "after"):
        code = f"import sys; sys.argv = ['', {str(library)!r}, {order!r}]\n{BOTH_LIBRARIES}"
        assert run_python(code).strip() == "True", "the other library brings the shared Swift runtime"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of this tree."""
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def tree(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution; what is built in it stays for the next test."""
    folder = tmp_path_factory.mktemp("tree")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (path,) = folder.iterdir()
    return path


def install(folder: Path, *arguments: str | Path) -> Path:
    """Install without a network into a new environment that sees this one's packages, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    # Read after the .pth file of an editable install, which so comes first on the path.
    (site / "zz_outer.pth").write_text(sysconfig.get_path("purelib"))
    command: Sequence[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install"]
    command = [*command, "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--ignore-installed", *arguments]
    if subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], check=False).returncode == 0:
        command = ["unshare", "--user", "--map-root-user", "--net", *command]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return python


def check_import(python: Path, place: Path) -> None:
    """Use the package in a folder of its own, where it must come from `place`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", CHECK, str(place.resolve())]
    result = subprocess.run(command, cwd=python.parent, env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("works", "")


@in_source_tree
def test_source_distribution_is_complete(sdist: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Package.swift", "setup.py", "pyproject.toml", "LICENSE", "README.md", "Makefile"}
    for folder, pattern in (("Sources", "*.swift"), ("CBridge", "*.[ch]"), ("python/lowrank_swift", "*.py*")):
        paths = (path for path in (ROOT / folder).rglob(pattern) if path.suffix != ".pyc")
        wanted |= {path.relative_to(ROOT).as_posix() for path in paths}
    assert len(wanted) > 100
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.endswith((".so", ".pyc")) or name.startswith((".build", "build"))]


@in_source_tree
@pytest.mark.slow
@pytest.mark.skipif(not HAS_SWIFT, reason="Swift is not installed")
class TestInstalls:
    """In this order: the last one builds in the tree of the one before, which takes little time."""

    def test_source_distribution(self, sdist: Path, tmp_path: Path) -> None:
        pytest.importorskip("setuptools", minversion="77")
        check_import(install(tmp_path / "venv", sdist), tmp_path)

    def test_folder(self, tree: Path, tmp_path: Path) -> None:
        pytest.importorskip("setuptools", minversion="77")
        check_import(install(tmp_path / "venv", tree), tmp_path)

    def test_editable(self, tree: Path, tmp_path: Path) -> None:
        pytest.importorskip("setuptools", minversion="77")
        python = install(tmp_path / "venv", "--editable", tree)
        check_import(python, tree)
        # An edit is seen without another install.
        version = tree / "python/lowrank_swift/_version.py"
        version.write_text(version.read_text().replace("__version__ = ", "__version__ = 'edited ' + "))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        code = "import lowrank_swift; print(lowrank_swift.__version__)"
        output = subprocess.run(
            [python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert output.stdout.startswith("edited ")


@pytest.fixture
def build_wheel() -> ModuleType:
    path = ROOT / "python/tools/build_wheel.py"
    if not path.exists():
        pytest.skip("the sources are not here")
    spec = importlib.util.spec_from_file_location("build_wheel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wheel_is_tried_on_pythons_that_work(
    build_wheel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("PATH", f"{path}:/bin:/usr/bin")
    version = "3.98"  # no system has it
    assert build_wheel.find_python(version) is None
    python = path / f"python{version}"
    for script in ("exit 127", "echo 3.97"):  # a shim without an interpreter, and one of another version
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        assert build_wheel.find_python(version) is None
    python.write_text(f"#!/bin/sh\necho {version}\n")
    assert build_wheel.find_python(version) == str(python)
    pyenv = tmp_path / "pyenv/versions" / f"{version}.1/bin" / python.name
    pyenv.parent.mkdir(parents=True)
    shutil.copy(python, pyenv)
    assert build_wheel.find_python(version) == str(pyenv)
