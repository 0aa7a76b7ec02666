# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The model card of a saved adapter."""

from __future__ import annotations

from pathlib import Path

__all__ = ["add_import_to_card"]

_HEADING = "## Loading this adapter"
_SECTION = f"""
{_HEADING}

The adapter is of a type that PEFT learns from the package `lowrank_swift`, which has to be imported first:

```python
import lowrank_swift.peft  # pip install "lowrank_swift[peft]"
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this-folder-or-repository")
```

Without it PEFT stops with a `KeyError` that names the type.
"""


def add_import_to_card(folder: str) -> None:
    """Say in the folder's model card what has to be imported. Where there is no card nothing happens."""
    card = Path(folder) / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        if _HEADING not in text:
            card.write_text(f"{text.rstrip()}\n{_SECTION}", encoding="utf-8")
