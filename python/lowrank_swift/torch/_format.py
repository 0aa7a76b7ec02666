# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What adapter files hold: every file name and key of a checkpoint is here.

An adapter is two files: the tensors of each layer's adapter as its ``state_dict`` has them, under
``<layer>.<tensor>``, and a JSON object with the fields of :class:`AdapterRecord`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from .methods import Option

__all__ = [
    "CONFIG_FILE",
    "FORMAT_VERSION",
    "LORA_CONFIG_FILE",
    "LORA_EMBEDDING_FACTOR",
    "LORA_FACTOR",
    "LORA_TENSORS_FILE",
    "TENSORS_FILE",
    "AdapterRecord",
    "LayerRecord",
    "lora_config",
    "lora_keys",
    "tensor_key",
]

FORMAT_VERSION = 1
CONFIG_FILE = "lowrank_adapter.json"
TENSORS_FILE = "lowrank_adapter.safetensors"

LORA_CONFIG_FILE = "adapter_config.json"
LORA_TENSORS_FILE = "adapter_model.safetensors"
LORA_FACTOR = "lora_{}.weight"
LORA_EMBEDDING_FACTOR = "lora_embedding_{}"


def tensor_key(layer: str, tensor: str) -> str:
    """Return the key of one tensor of a layer's adapter."""
    return f"{layer}.{tensor}"


@dataclass(frozen=True)
class LayerRecord:
    """One layer's adapter.

    Attributes:
        method (str): the method that made the starting factors.
        options (dict): the method's options.
        base (str): "intact" or "residual".
        trains (list[str]): which of "up", "core" and "down" train.
        rank (int): r.
        core_dimensions (int): 0 for no core, 1 for a diagonal, 2 for a square one.
        scale (float): s.
        layer (str): the type of the layer: "Linear", "Conv1D", "Embedding" or "Conv2d".
        shape (list[int]): of the base's weight, as the layer has it.
        dtype (str): of the base's weight.
    """

    method: str
    options: dict[str, Option]
    base: str
    trains: list[str]
    rank: int
    core_dimensions: int
    scale: float
    layer: str
    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class AdapterRecord:
    """The JSON file.

    Attributes:
        format_version (int): changes when older versions can't read the file.
        name (str): the adapter's name.
        tensors_sha256 (str): of the file of tensors, which shows that both belong together and are whole.
        layers (dict[str, LayerRecord]): by qualified name.
    """

    format_version: int
    name: str
    tensors_sha256: str
    layers: dict[str, LayerRecord]

    def to_json(self) -> bytes:
        """Return the file's content."""
        # NumPy's numbers, which an option may be, become floats.
        return (json.dumps(asdict(self), indent=2, allow_nan=False, default=float) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> AdapterRecord:
        """Read the file's content.

        Raises:
            ValueError: if it is of another version, or anything is missing, unknown or of another type.
        """
        try:
            data = json.loads(content)
        except ValueError as error:
            raise ValueError(f"expected JSON, got {error}") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            raise ValueError(f"format_version: expected {FORMAT_VERSION}, got {version}, of another lowrank_swift")
        record = _parsed(cls, data, "")
        if not record.layers:
            raise ValueError("layers: expected at least one, got none")
        return replace(record, layers={name: _layer(layer, f"layers.{name}.") for name, layer in record.layers.items()})


def _layer(data: Any, where: str) -> LayerRecord:
    record = _parsed(LayerRecord, data, where)
    if record.base not in ("intact", "residual"):
        raise ValueError(f'{where}base: expected "intact" or "residual", got {record.base!r}')
    if not math.isfinite(record.scale):
        raise ValueError(f"{where}scale: expected a finite number, got {record.scale}")
    if not ("core" in record.trains) <= record.core_dimensions <= 2:
        raise ValueError(
            f"{where}core_dimensions: expected 0, 1 or 2, and a core where it trains, got {record.core_dimensions}"
        )
    return record


_Record = TypeVar("_Record", AdapterRecord, LayerRecord)

_TYPES: dict[str, type | tuple[type, ...]] = {
    "dict[str, LayerRecord]": dict,
    "dict[str, Option]": dict,
    "float": (float, int),
    "int": int,
    "list[int]": list,
    "list[str]": list,
    "str": str,
}
_ITEM_TYPES: dict[str, type | tuple[type, ...]] = {
    "dict[str, Option]": (str, float, int, type(None)),
    "list[int]": int,
    "list[str]": str,
}


def _parsed(record: type[_Record], data: Any, where: str) -> _Record:
    """Return ``data`` as a record whose fields have the types that they are declared with."""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the file'}: expected a JSON object, got {data!r:.80}")
    declared = {field.name: str(field.type) for field in fields(record)}
    for name in sorted(declared.keys() ^ data.keys()):
        raise ValueError(f"{where}{name}: expected the entries {sorted(declared)}, got {sorted(data)}")
    for name, annotation in declared.items():
        value = data[name]
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        kinds = _ITEM_TYPES.get(annotation, object)
        flag = isinstance(value, bool) or ("int" in annotation and any(isinstance(item, bool) for item in items))
        if flag or not isinstance(value, _TYPES[annotation]) or not all(isinstance(item, kinds) for item in items):
            raise ValueError(f"{where}{name}: expected {annotation}, got {value!r:.80}")
    return record(**data)


def lora_keys(layer: str, factor: str) -> tuple[str, str]:
    """Return PEFT's keys of A and B of a layer, whose type calls a factor so."""
    prefix = f"base_model.model.{layer}."
    return prefix + factor.format("A"), prefix + factor.format("B")


def lora_config(layers: Sequence[str], rank: int, fan_in_fan_out: bool) -> Mapping[str, Any]:
    """Return PEFT's configuration of plain LoRA without a scale of its own, in the terms that servers read too."""
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "target_modules": list(layers),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "inference_mode": True,
    }
