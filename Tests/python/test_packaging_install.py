# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The ways to install from source, without a network, and life beside another Swift library."""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from lowrank_swift import _native
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
def build_wheel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = ROOT / "python/tools"
    if not folder.is_dir():
        pytest.skip("the sources are not here")
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("build_wheel")


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


LIBRARIES = ("libopenblasp-r0-aa3e1b30.3.21.so", "libgfortran-0c13ba2a.so.5.0.0")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel as auditwheel leaves it, without contents."""
    path = tmp_path / "lowrank_swift-1.0-cp310-abi3-manylinux_2_34_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("_native.abi3.so", "_native.pyi", "py.typed"):
            archive.writestr(f"lowrank_swift/{name}", name)
        for library in LIBRARIES:
            archive.writestr(f"lowrank_swift.libs/{library}", library)
        metadata = "Metadata-Version: 2.4\nName: x\nLicense-Expression: Apache-2.0\nLicense-File: LICENSE\n\nText\n"
        archive.writestr("lowrank_swift-1.0.dist-info/METADATA", metadata)
        archive.writestr("lowrank_swift-1.0.dist-info/RECORD", "")
    return path


def test_licenses_of_the_libraries_are_in_the_wheel(build_wheel: ModuleType, wheel: Path) -> None:
    with pytest.raises(SystemExit, match=r"has libgfortran-\w+.so.5.0.0 inside, but not its licence"):
        build_wheel.check_contents(wheel)
    texts = {f"{name}.txt": f"terms of {name}" for name in ("libopenblasp", "libgfortran", "swift-runtime", "GPL-3")}
    build_wheel.add_licenses(wheel, texts)
    build_wheel.check_contents(wheel)
    with zipfile.ZipFile(wheel) as archive:
        folder = "lowrank_swift-1.0.dist-info"
        for name, text in texts.items():
            assert archive.read(f"{folder}/licenses/third-party/{name}").decode() == text
        metadata = archive.read(f"{folder}/METADATA").decode()
        assert metadata.endswith("\n\nText\n")
        assert metadata.count("\nLicense-File: third-party/") == 4
        expression = "(GPL-3.0-or-later WITH GCC-exception-3.1) AND BSD-3-Clause"
        assert f"License-Expression: Apache-2.0 AND {expression}\n" in metadata
        rows = [line.split(",") for line in archive.read(f"{folder}/RECORD").decode().splitlines()]
        assert sorted(row[0] for row in rows) == sorted(archive.namelist())
        for name, checksum, size in rows:
            if checksum:
                digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).decode().rstrip("=")
                assert (checksum, int(size)) == (f"sha256={digest}", archive.getinfo(name).file_size)


def test_licenses_of_this_system(build_wheel: ModuleType, wheel: Path) -> None:
    if shutil.which("dpkg-query") is None or shutil.which("ldd") is None or not HAS_SWIFT:
        pytest.skip("they are found through Debian's packages")
    linked = build_wheel.linked_libraries(Path(_native.__file__))
    (blas,) = (path for path in linked if "openblas" in path.name)
    stem, _, rest = blas.name.partition(".")
    texts = build_wheel.license_texts([f"{stem}-0123abcd.{rest}"], linked)
    assert "BSD" in texts["libopenblasp.txt"]
    assert "Runtime Library Exception" in texts["swift-runtime.txt"]


def test_library_without_a_known_license_is_refused(build_wheel: ModuleType, wheel: Path) -> None:
    with pytest.raises(SystemExit, match=r"libother-0123abcd.so: no library of this system"):
        build_wheel.license_texts(["libother-0123abcd.so"], [Path("/lib/libmother.so")])
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("lowrank_swift.libs/libother-0123abcd.so", "")
    with pytest.raises(SystemExit, match=r"libother-0123abcd.so: add the SPDX expression"):
        build_wheel.add_licenses(wheel, {})
