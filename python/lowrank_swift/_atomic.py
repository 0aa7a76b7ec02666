# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Writing files so that none is ever half written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing_files"]


@contextmanager
def replacing_files(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Yield paths to write files of a folder to, which is made if need be, and then replace those of the names.

    All are written beside their places and renamed after the block, in the order given; after an exception none is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{secrets.token_hex(8)}.tmp"
    paths = [folder / f"{name}{suffix}" for name in names]
    try:
        for path in paths:
            path.touch(exist_ok=False)
        mode = paths[0].stat().st_mode
        yield paths
        for path in paths:
            # safetensors and tempfile make files that only their owner can read.
            path.chmod(mode)
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path, name in zip(paths, names, strict=True):
            os.replace(path, folder / name)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
