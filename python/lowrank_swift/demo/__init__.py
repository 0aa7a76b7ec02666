# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What `lowrank-swift demo` runs: fine-tune one pretrained transformer by several methods and compare them.

Importing this package imports neither torch nor transformers; `lowrank_swift.demo.experiment` does.
"""

from __future__ import annotations

from lowrank_swift.demo.settings import DemoError, Settings

__all__ = ["DemoError", "Settings"]
