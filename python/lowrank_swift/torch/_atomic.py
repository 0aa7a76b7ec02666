# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Writing files so that none is ever half written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

__all__ = ["write_files"]


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, which is made if need be, replacing those of the same names.

    All are written beside their places first and renamed only then, in the order given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suffix = f".{secrets.token_hex(8)}.tmp"
    try:
        for name, content in contents.items():
            # Not tempfile, whose files only their owner can read.
            with open(folder / f"{name}{suffix}", "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(folder / f"{name}{suffix}", folder / name)
    finally:
        for name in contents:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
