# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Rank allocation over safetensors files, and the file that keeps spectra."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import _native
from support import run_python, weight

safetensors = pytest.importorskip("safetensors.torch")


def matrices() -> dict[str, torch.Tensor]:
    return {
        "embed.weight": weight(30, 8, seed=1),
        "layers.0.query.weight": weight(16, 12, torch.bfloat16, seed=2),
        "layers.0.query.bias": weight(1, 16)[0],
        "layers.0.value.weight": weight(12, 16, torch.float16, seed=3),
        "layers.1.query.weight": weight(16, 12, torch.float64, seed=4),
        "layers.1.value.weight": weight(12, 16, seed=5),
        "layers.1.norm.weight": torch.ones(12),
        "steps": torch.tensor([[3]]),
    }


NAMES = [name.removesuffix(".weight") for name in matrices() if "query.weight" in name or "value" in name]


def in_memory() -> dict[str, torch.Tensor]:
    return {name: matrices()[f"{name}.weight"] for name in NAMES}


def write_shards(folder: Path) -> Path:
    tensors = matrices()
    parts = [dict(list(tensors.items())[:4]), dict(list(tensors.items())[4:])]
    index = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def test_files_give_what_their_tensors_give(tmp_path: Path) -> None:
    expected = lrs.allocate_ranks(in_memory(), 5)
    file = tmp_path / "model.safetensors"
    safetensors.save_file(matrices(), file)
    targets = ["query", "value"]
    assert lrs.allocate_ranks(file, 5, targets=targets) == expected
    assert lrs.allocate_ranks(str(file), 5, targets=targets) == expected
    assert lrs.allocate_ranks(tmp_path, 5, targets=targets) == expected
    assert list(lrs.allocate_ranks(file, 5)) == ["embed", *NAMES], "all matrices called *.weight, by name"
    ten = {f"layers.{i}.weight": weight(4, 4) for i in (10, 2, 1)}
    safetensors.save_file(ten, tmp_path / "ten")
    assert list(lrs.allocate_ranks(tmp_path / "ten", 2)) == ["layers.1", "layers.2", "layers.10"]
    assert lrs.allocate_ranks(file, 5, targets=["layers.1.query"]) == {"layers.1.query": 5}
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shards(shards)
    assert lrs.allocate_ranks(shards, 5, targets=targets) == expected
    assert lrs.allocate_ranks(sorted(shards.glob("*.safetensors")), 5, targets=targets) == expected


def test_files_need_no_framework(tmp_path: Path) -> None:
    safetensors.save_file(matrices(), tmp_path / "model.safetensors")
    code = f"""
import lowrank_swift as lrs, sys
ranks = lrs.allocate_ranks({str(tmp_path)!r}, 5, targets=["query", "value"])
print(dict(ranks), [name for name in ("torch", "numpy", "safetensors", "rich") if name in sys.modules])
"""
    expected = dict(lrs.allocate_ranks(tmp_path, 5, targets=["query", "value"]))
    assert run_python(code).strip() == f"{expected} []"


BROKEN = {
    "empty": b"",
    "no header": b"\x10\0\0\0\0\0\0\0{}",
    "huge header": b"\xff" * 8 + b"{}",
    "no JSON": b"\x04\0\0\0\0\0\0\0nope",
    "a list": b"\x02\0\0\0\0\0\0\0[]",
    "no offsets": b'{"a.weight": {"dtype": "F32", "shape": [1, 1]}}',
    "outside": b'{"a.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}',
    "negative": b'{"a.weight": {"dtype": "F32", "shape": [1, -1], "data_offsets": [0, 0]}}',
    "wrong size": b'{"a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 4]}}\0\0\0\0',
    "text for sizes": b'{"a.weight": {"dtype": "F32", "shape": ["2", 2], "data_offsets": [0, 4]}}\0\0\0\0',
    "a float": b'{"a.weight": {"dtype": "F32", "shape": [1.0, 1], "data_offsets": [0, 4]}}\0\0\0\0',
    "an entry of another type": b'{"a.weight": 3}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_broken(name: str, tmp_path: Path) -> None:
    content = BROKEN[name]
    if content.startswith(b"{") or name == "deep":
        length = content.index(b"}}") + 2 if b"}}" in content else len(content)
        content = length.to_bytes(8, "little") + content
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file}: expected a safetensors file, got")):
        lrs.allocate_ranks(file, 2)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "no.safetensors", tmp_path, []):
        with pytest.raises(ValueError, match="weights: expected"):
            lrs.allocate_ranks(source, 2)
    safetensors.save_file({"bias": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights: expected matrices called \*.weight"):
        lrs.allocate_ranks(tmp_path, 2)
    safetensors.save_file(matrices(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="weights: expected one weight of '"):
        lrs.allocate_ranks([tmp_path / "model.safetensors"] * 2, 2)
    with pytest.raises(ValueError, match="targets: expected names of weight matrices, got 'norm'"):
        lrs.allocate_ranks(tmp_path, 2, targets=["norm"])


@pytest.mark.parametrize(
    "index", ["[]", "no", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../a"}}', '{"weight_map": {"a": 3}}']
)
def test_indices_that_are_broken(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"index\.json: expected"):
        lrs.allocate_ranks(tmp_path, 2)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "away.safetensors"}}')
    with pytest.raises(ValueError, match=r"away\.safetensors is missing"):
        lrs.allocate_ranks(tmp_path, 2)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    safetensors.save_file({"a.weight": weight(20, 10)}, file)
    read = _native.read_file

    def cut(descriptor: int, offset: int, out: Any) -> None:
        os.truncate(file, file.stat().st_size - 1)
        read(descriptor, offset, out)

    monkeypatch.setattr(_native, "read_file", cut)
    with pytest.raises(ValueError, match=r"a: .*end of the file"):
        lrs.allocate_ranks(file, 2)


# The cache


def test_the_cache_serves_only_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "model.safetensors", tmp_path / "new folder" / "spectra.json"
    safetensors.save_file(matrices(), file)
    expected = lrs.allocate_ranks(file, 5, targets=NAMES)
    assert lrs.allocate_ranks(file, 5, targets=NAMES, cache=cache) == expected
    written = cache.read_bytes()
    assert [path.name for path in cache.parent.iterdir()] == ["spectra.json"]
    computed: list[int] = []
    spectrum = _native.spectrum

    def counted(*arguments: Any) -> Any:
        computed.append(1)
        return spectrum(*arguments)

    monkeypatch.setattr(_native, "spectrum", counted)
    for source in (file, in_memory(), {name: tensor.T.contiguous().T for name, tensor in in_memory().items()}):
        assert lrs.allocate_ranks(source, 5, targets=NAMES, cache=cache) == expected
    assert not computed
    assert cache.read_bytes() == written
    changed = matrices()
    changed["layers.0.query.weight"][3, 2] += 1
    safetensors.save_file(changed, file)
    fresh = lrs.allocate_ranks(file, 5, targets=NAMES)
    computed.clear()
    assert lrs.allocate_ranks(file, 5, targets=NAMES, cache=cache) == fresh
    assert len(computed) == 1, "one weight has changed"
    assert lrs.allocate_ranks(file, 5, targets=NAMES, cache=cache, tol=1e-3) == fresh
    assert len(computed) == 1 + len(NAMES), "another tolerance is another spectrum"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format_version": 9, "spectra": {}}',
        '{"format_version": 1, "spectra": {"a": {"norm": NaN, "singular_values": [1.0]}}}',
        '{"format_version": 1, "spectra": {"a": [1]}}',
    ],
)
def test_files_that_are_no_cache(content: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    with pytest.raises(ValueError, match="cache: expected a file that allocate_ranks wrote"):
        lrs.allocate_ranks(in_memory(), 5, cache=cache)
    assert cache.read_text() == content


def test_caches_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        lrs.allocate_ranks(in_memory(), 5, cache=tmp_path / "file" / "cache.json")
    with pytest.raises(OSError):
        lrs.allocate_ranks(in_memory(), 5, cache=tmp_path)
    with pytest.raises(TypeError):
        lrs.allocate_ranks(in_memory(), 5, cache=3)  # type: ignore[arg-type]
