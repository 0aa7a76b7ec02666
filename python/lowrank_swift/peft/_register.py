# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Making PEFT know a tuner that it does not bring."""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType, register_peft_method

__all__ = ["prefix_of", "register", "tuner_type"]


def tuner_type(name: str) -> PeftType:
    """Return the member of PEFT's enumeration of tuners that has this name, which is also its value; new if need be.

    PEFT, accelerate and transformers look tuners up by value, by name and as members, so a plain string won't do.
    """
    members: Any = PeftType
    if name not in members._value2member_map_:
        member: Any = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        member.__objclass__ = PeftType
        member._sort_order_ = len(members._member_names_)
        members._member_names_.append(name)
        members._member_map_[name] = member
        members._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    return PeftType(name)


def prefix_of(peft_type: PeftType) -> str:
    """Return what the attributes of a tuner's layers begin with: transformers expects just this."""
    return f"{peft_type.value.lower()}_"


def register(peft_type: PeftType, config: type, model: type) -> None:
    """Make a tuner known to ``get_peft_model``, ``PeftModel.from_pretrained`` and all that look there."""
    register_peft_method(name=peft_type.value.lower(), config_cls=config, model_cls=model, prefix=prefix_of(peft_type))
