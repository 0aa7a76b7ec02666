# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import lowrank_swift as lrs
import pytest
from lowrank_swift import _native
from support import ROOT, run_python


def test_import_brings_no_framework() -> None:
    code = (
        "import lowrank_swift, sys; print([m for m in ('torch', 'numpy', 'typer', 'rich', 'peft') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_import_brings_nothing_that_is_slow() -> None:
    """What of the standard library takes as long as this package itself; `python -X importtime` measures it."""
    slow = (
        "argparse",
        "asyncio",
        "ctypes",
        "dataclasses",
        "importlib.metadata",
        "inspect",
        "json",
        "logging",
        "pathlib",
    )
    code = f"import sys; old = set(sys.modules); import lowrank_swift; print(set({slow!r}) & (set(sys.modules) - old))"
    assert run_python(code).strip() == "set()"


def test_import_leaves_the_environment_and_threads_alone() -> None:
    code = """
import os, numpy, torch
before = dict(os.environ), torch.get_num_threads(), os.sched_getaffinity(0), os.getcwd()
import lowrank_swift as lrs
lrs.qr(numpy.ones((64, 64), "f"), 8)
lrs.set_num_threads(1)
lrs.svd(numpy.eye(64, dtype="f"), 8)
after = dict(os.environ), torch.get_num_threads(), os.sched_getaffinity(0), os.getcwd()
print(before == after)
"""
    assert run_python(code).strip() == "True"


def test_import_prints_nothing() -> None:
    assert run_python("import lowrank_swift") == ""


def test_exports_are_the_entry_point_and_the_c_abi() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    exported = {line.split()[-1] for line in listing.splitlines()}
    header = (ROOT / "CBridge/CLowRank/include/lowrank.h").read_text()
    declared = set(re.findall(r"^\S.*?\b(lr_[a-z_]+)\(", header, flags=re.MULTILINE))
    assert len(declared) > 10
    assert exported == declared | {"PyInit__native"}


def test_swift_runtime_is_inside() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run(["readelf", "-d", _native.__file__], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in dynamic
    assert "libswift" not in dynamic


@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("linux", "the native library can't be loaded (cannot import name '_native'"),
        ("darwin", "it runs on Linux only so far, and this is darwin"),
        ("win32", "it runs on Linux only so far, and this is win32"),
    ],
)
def test_missing_library_is_one_sentence(tmp_path: Path, platform: str, message: str) -> None:
    package = tmp_path / "lowrank_swift"
    shutil.copytree(Path(lrs.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = f"import sys; sys.platform = {platform!r}; import lowrank_swift"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: lowrank_swift: {message}")
    assert ("pip install ." in last) == (platform == "linux")


def test_all_is_sorted_and_complete() -> None:
    assert list(lrs.__all__) == sorted(lrs.__all__)
    assert all(getattr(lrs, name).__doc__ for name in lrs.__all__ if name != "__version__")


def test_stub_lists_what_the_extension_has() -> None:
    stub = (ROOT / "python/lowrank_swift/_native.pyi").read_text()
    signatures = dict(re.findall(r"^def (\w+)\((.*?)\) ->", stub, flags=re.MULTILINE | re.DOTALL))
    classes = set(re.findall(r"^class (\w+)", stub, flags=re.MULTILINE))
    public = {name for name in vars(_native) if not name.startswith("__")}
    assert public == set(signatures) | classes
    for name, parameters in signatures.items():
        expected = re.findall(r"(\w+):", parameters)
        text = getattr(_native, name).__text_signature__
        assert re.findall(r"\w+", text) == expected, name


def test_version_is_the_same_everywhere() -> None:
    assert lrs.show_config("dicts")["version"] == lrs.__version__


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert lrs.show_config() is None
    assert json.loads(capsys.readouterr().out) == lrs.show_config("dicts")
    with pytest.raises(ValueError, match="mode: expected"):
        lrs.show_config("xml")


def test_threads_can_be_set(threads: None) -> None:
    default = lrs.get_num_threads()
    assert default >= 1
    lrs.set_num_threads(3)
    assert lrs.get_num_threads() == 3
    lrs.set_num_threads(0)
    assert lrs.get_num_threads() == default
