# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The command `lowrank-swift`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of `lowrank-swift`."""
    try:
        from lowrank_swift.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"rich", "typer"}:
            raise
        sys.exit(f'lowrank-swift needs {error.name}; install it with: pip install "lowrank_swift[demo]"')
    app()
