# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Spectra that are kept for the next time, in a JSON file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from pathlib import Path
from typing import Any

from . import _native
from ._arrays import Array, device_of, framework_of
from ._atomic import replacing_files
from ._checkpoint import StoredMatrix

__all__ = ["SpectrumCache"]

_FORMAT_VERSION = 1


class SpectrumCache:
    """Computes spectra, or finds them in a file, where they are kept under a SHA-256 of the weight.

    Args:
        path (str | os.PathLike | None): the file; None keeps nothing.
        tol (float): tolerance of singular values.
        seed (int): seed of their computation.

    Raises:
        TypeError: if ``path`` is no path.
        ValueError: if there is a file that is not such a cache.
        OSError: if it can't be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, tol: float, seed: int) -> None:
        self._path = None if path is None else Path(os.fspath(path)).expanduser()
        self._tol, self._seed = tol, seed
        self._entries = _read(self._path) if self._path is not None and self._path.exists() else {}
        self._changed = False

    def spectrum(self, source: Array | StoredMatrix, rank: int) -> tuple[array[float], float]:
        """Return the ``rank`` leading singular values of a matrix, or more, and its Frobenius norm."""
        key = "" if self._path is None else self._fingerprint(source)
        known = self._entries.get(key)
        if known is not None and len(known["singular_values"]) >= rank:
            return array("d", known["singular_values"]), known["norm"]
        if isinstance(source, StoredMatrix):
            weight: Array = source.read()
        else:
            weight = framework_of(source, "weight").shared(source, "weight")
        out = _native.Tensor((rank,), "float64", device_of(weight))
        norm, _ = _native.spectrum(weight, rank, self._tol, self._seed, out)
        values = array("d", _native.contents(out, "values"))
        if self._path is not None:
            self._entries[key] = {"singular_values": values.tolist(), "norm": norm}
            self._changed = True
        return values, norm

    def save(self) -> None:
        """Write the file, if there is one and something is new. It is never half written."""
        if self._path is not None and self._changed:
            content = json.dumps({"format_version": _FORMAT_VERSION, "spectra": self._entries}, allow_nan=False)
            with replacing_files(self._path.parent, (self._path.name,)) as (path,):
                path.write_bytes(content.encode() + b"\n")
            self._changed = False

    def _fingerprint(self, source: Array | StoredMatrix) -> str:
        if isinstance(source, StoredMatrix):
            digest = self._digest(source.shape, source.dtype)
            source.hash_into(digest)
        else:
            shared = framework_of(source, "weight").shared(source, "weight")
            rows, columns, dtype = _native.check_weight(shared, 1)
            digest = self._digest((rows, columns), dtype)
            digest.update(_native.contents(shared, "weight"))
        return str(digest.hexdigest())

    def _digest(self, shape: tuple[int, int], dtype: str) -> Any:
        return hashlib.sha256(f"{shape[0]} {shape[1]} {dtype} {self._tol!r} {self._seed} ".encode())


def _read(path: Path) -> dict[str, Any]:
    """Return the file's entries."""
    try:
        data = json.loads(path.read_bytes())
        if data["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"version {data['format_version']!r:.40}")
        entries: dict[str, Any] = data["spectra"]
        for entry in entries.values():
            numbers = [entry["norm"], *entry["singular_values"]]
            if not all(isinstance(number, float) and math.isfinite(number) and number >= 0 for number in numbers):
                raise ValueError("numbers that are no singular values")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cache: expected a file that allocate_ranks wrote, got {path} ({error!r:.120})") from None
    return entries
