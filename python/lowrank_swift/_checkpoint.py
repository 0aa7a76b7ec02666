# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The matrices in safetensors files, read one at a time, without a framework."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import _native

__all__ = ["Checkpoint", "StoredMatrix"]

_DTYPES = {"F32": "float32", "F64": "float64", "BF16": "bfloat16", "F16": "float16"}
_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_LONGEST_HEADER = 100_000_000  # as the format's own readers have it
_CHUNK = 1 << 22


class StoredMatrix(NamedTuple):
    """A two-dimensional tensor of a dtype that factorisations take, and where its bytes are."""

    path: Path
    offset: int
    shape: tuple[int, int]
    dtype: str

    def read(self) -> _native.Tensor:
        """Return the matrix.

        Raises:
            OSError: if the file can't be read.
        """
        tensor = _native.Tensor(self.shape, self.dtype)
        with self.path.open("rb") as file:
            _native.read_file(file.fileno(), self.offset, tensor)
        return tensor

    def hash_into(self, digest: Any) -> None:
        """Feed the matrix's bytes, row by row, to an object of hashlib.

        Raises:
            OSError: if the file can't be read.
        """
        left = math.prod(self.shape) * _BYTES[self.dtype]
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left > 0:
                block = file.read(min(left, _CHUNK))
                if not block:
                    raise ValueError(f"{self.path}: expected {left} more bytes, got the end of the file")
                digest.update(block)
                left -= len(block)


class Checkpoint:
    """All weight matrices of a checkpoint by their layer, the tensor's name without ``.weight``, in natural order.

    Args:
        source (str | os.PathLike | Sequence[str | os.PathLike]): a safetensors file, several of one model, or a folder
            with an index of them, a ``model.safetensors``, or other safetensors files.

    Raises:
        TypeError: if one of several is no path.
        ValueError: if there are no such files, two hold the same tensor, or one is no safetensors file.
        OSError: if a file can't be read.
    """

    def __init__(self, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        paths = [source] if isinstance(source, (str, os.PathLike)) else list(source)
        for path in paths:
            if not isinstance(path, (str, os.PathLike)):
                raise TypeError(f"weights: expected a path or a sequence of paths, got one of {path!r:.40}")
        files = [file for path in paths for file in _files(Path(path).expanduser())]
        if not files:
            raise ValueError("weights: expected at least one safetensors file, got none")
        found: dict[str, StoredMatrix] = {}
        for file in files:
            for name, matrix in _matrices(file):
                if name in found:
                    other = found[name].path
                    raise ValueError(f"weights: expected one weight of {name!r}, got it in {other} and {file}")
                found[name] = matrix
        if not found:
            raise ValueError(f"weights: expected matrices called *.weight in {files[0]}, got none")
        # A file's own order is that of its dtypes.
        self.matrices = {name: found[name] for name in sorted(found, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Order names so that layer 10 comes after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _files(path: Path) -> list[Path]:
    """Return the safetensors files that a path stands for."""
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"weights: expected a safetensors file or a folder with them, got {str(path)!r}")
        return [path]
    for pattern in ("*.safetensors.index.json", "model.safetensors", "*.safetensors"):
        found = sorted(path.glob(pattern))
        if found and pattern.endswith(".json"):
            if len(found) > 1:
                raise ValueError(f"weights: expected one index in {path}, got {', '.join(p.name for p in found)}")
            return _indexed(found[0])
        if found:
            return found
    raise ValueError(f"weights: expected safetensors files in the folder {path}, got none")


def _indexed(index: Path) -> list[Path]:
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
        names = sorted(name for name in files if Path(name).name == name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a JSON object with a weight_map, got {error!r}") from None
    if len(names) < len(files) or not names:
        raise ValueError(f"{index}: expected names of files in the same folder, got {sorted(map(str, files))!r:.80}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index}: expected the files that it names, {missing[0]} is missing")
    return [index.parent / name for name in names]


def _matrices(path: Path) -> Iterable[tuple[str, StoredMatrix]]:
    """Yield the file's weight matrices by layer."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in {size}")
            entries = json.loads(file.read(length))
            if not isinstance(entries, dict):
                raise ValueError(f"{entries!r:.40} as its header")
            begin = 8 + length
            for name, entry in entries.items():
                if name != "__metadata__":
                    matrix = _matrix(path, entry, begin, size)
                    if matrix is not None and name.endswith(".weight"):
                        yield name.removesuffix(".weight"), matrix
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from None


def _matrix(path: Path, entry: dict[str, Any], begin: int, size: int) -> StoredMatrix | None:
    """Return the tensor of a header's entry; None where it is of another dtype or has other dimensions."""
    dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    numbers = (*shape, first, last)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError(f"the sizes and offsets {numbers}")
    if begin + last > size or first > last:
        raise ValueError(f"data at {first} to {last} in {size - begin} bytes")
    if dtype not in _DTYPES or len(shape) != 2:
        return None
    if last - first != math.prod(shape) * _BYTES[_DTYPES[dtype]]:
        raise ValueError(f"{last - first} bytes for {dtype} of shape {list(shape)}")
    return StoredMatrix(path, begin + first, (shape[0], shape[1]), _DTYPES[dtype])
