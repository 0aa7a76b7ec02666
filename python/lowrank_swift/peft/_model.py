# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The tuners: they find the layers and hand them to the adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from lowrank_swift.torch._errors import errors_naming

from ._base import check_parent
from ._config import LaMDAConfig, LoLDUConfig, LowRankConfig, OLoRAConfig
from ._layer import LowRankLayer, make_layer
from ._register import prefix_of, register, tuner_type

__all__ = ["LaMDAModel", "LoLDUModel", "LowRankModel", "OLoRAModel"]


class LowRankModel(BaseTuner):
    """A model whose layers have adapters. ``get_peft_model`` makes it."""

    tuner_layer_cls = LowRankLayer
    target_module_mapping = cast(dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into all layers that its configuration names or, after an exception, into none."""
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            _take_out(model, adapter_name)
            raise

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, LowRankConfig)
        ranks, alphas = peft_config.rank_pattern, peft_config.alpha_pattern
        rank = ranks.get(get_pattern_key(list(ranks), current_key), peft_config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), current_key), peft_config.lora_alpha)
        with errors_naming(current_key):
            method = peft_config.method(rank, alpha)
            if isinstance(target, BaseTunerLayer):
                self._check_own(target).update_layer(adapter_name, method, rank, peft_config)
                return
            check_parent(parent)
            layer = make_layer(target, self.prefix)
            layer.update_layer(adapter_name, method, rank, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _check_own(self, layer: BaseTunerLayer) -> LowRankLayer:
        """Refuse a layer with adapters of another type: PEFT finds an adapter's tensors by the type's prefix."""
        if isinstance(layer, LowRankLayer) and layer.adapters_key.startswith(self.prefix):
            return layer
        kind = type(layer)
        raise ValueError(
            "target_modules: expected layers without adapters of another type, got a "
            f"{kind.__module__}.{kind.__qualname__} with {', '.join(layer.adapter_layer_names)}"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what PEFT's LoRA alone can do, instead of leaving it out.

        Raises:
            ValueError: if a forward is to use an adapter of its own for each row of the batch.
        """
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "adapter_names: expected None, since batches of several adapters are LoRA's alone, got "
                f"{kwargs['adapter_names']!r}; export_lora writes LoRA"
            )
        yield

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put a layer in place of another. It shares what it has to, and is where it has to be, already."""
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave what trains in float32 (or 64), or convert it to the base's dtype; frozen factors have that already."""
        for module in self.model.modules():
            if isinstance(module, LowRankLayer) and not autocast_adapter_dtype:
                module.cast_to_base(adapter_name)


def _take_out(model: nn.Module, adapter_name: str) -> None:
    for parent in list(model.modules()):
        for attribute, child in list(parent.named_children()):
            if isinstance(child, LowRankLayer) and adapter_name in child.adapters:
                if len(child.adapters) == 1:
                    setattr(parent, attribute, child.base_layer)
                else:
                    child.delete_adapter(adapter_name)


class LoLDUModel(LowRankModel):
    """A model with adapters of :class:`LoLDUConfig`."""

    prefix = prefix_of(tuner_type("LOWRANK_LOLDU"))


class LaMDAModel(LowRankModel):
    """A model with adapters of :class:`LaMDAConfig`."""

    prefix = prefix_of(tuner_type("LOWRANK_LAMDA"))


class OLoRAModel(LowRankModel):
    """A model with adapters of :class:`OLoRAConfig`."""

    prefix = prefix_of(tuner_type("LOWRANK_OLORA"))


register(tuner_type("LOWRANK_LOLDU"), LoLDUConfig, LoLDUModel)
register(tuner_type("LOWRANK_LAMDA"), LaMDAConfig, LaMDAModel)
register(tuner_type("LOWRANK_OLORA"), OLoRAConfig, OLoRAModel)
