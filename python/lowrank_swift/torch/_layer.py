# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""A frozen layer with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ._adapter import Adapter, Term
from ._calls import at_its_device
from ._function import adapted_output
from .layers import layer_type_of

__all__ = ["AdaptedLayer", "adapted_layers", "require_frozen"]


class AdaptedLayer(nn.Module):
    """A frozen layer with its adapters, all of which act. Made by :func:`adapt`.

    The layer computes with the parameters of ``base`` and does not call it, so hooks set on ``base`` do not run. Where
    accelerate has placed ``base`` on a device, inputs are brought there. What the layer does not have itself, such as
    ``in_features``, is read from ``base``.

    Attributes:
        base (torch.nn.Module): the layer that was adapted. Its weight and bias must stay frozen.
        layer_type (LayerType): what ``base`` computes.
        adapters (torch.nn.ModuleDict): the adapters by name.
        merged_weight (torch.Tensor | None): what the layer computes with while it is merged; not in ``state_dict``,
            where base and adapters say the same.
        disabled (bool): whether the layer computes the pretrained function.
    """

    merged_weight: Tensor | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.layer_type = layer_type_of(base)
        self.adapters = nn.ModuleDict()
        self.register_buffer("merged_weight", None, persistent=False)
        self.disabled = False
        self.train(base.training)

    @property
    def weight(self) -> Tensor:
        """The weight, as the base has it: merged, the residual, or the untouched one."""
        return self.base_weight if self.merged_weight is None else self.merged_weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias, None for a type of layer that has none."""
        bias: Tensor | None = getattr(self.base, "bias", None)
        return bias

    @property
    def base_weight(self) -> Tensor:
        """The base's weight."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def __getattr__(self, name: str) -> Any:
        """Return what only the base has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None:
                raise
            return getattr(base, name)

    def named_adapters(self) -> Iterator[tuple[str, Adapter]]:
        """Yield the layer's adapters by name, in the order in which they were added."""
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name, adapter

    def terms(self) -> tuple[Term, ...]:
        """Return what all adapters add to the output of ``base``."""
        return tuple(term for _, adapter in self.named_adapters() for term in adapter.terms())

    def pretrained_terms(self) -> tuple[Term, ...]:
        """Return what turns the output of ``base`` into the pretrained layer's."""
        return tuple(term for _, adapter in self.named_adapters() for term in adapter.pretrained_terms())

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *reports: list[str]
    ) -> None:
        """Refuse to load into a merged layer, which would go on computing with what was merged before."""
        if self.merged_weight is not None and any(key.startswith(prefix) for key in state_dict):
            reports[-1].append(f"{prefix}merged_weight: expected a layer that is not merged; call unmerge first")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the adapters', accumulated in place; merged or disabled, that of one weight.

        Args:
            x (Tensor): as the base takes it; activations of the dtype of its weight (any float dtype under autocast).

        Raises:
            ValueError: if the last dimension of a linear layer's ``x`` is not ``in_features``, or a base parameter
                requires grad.
        """
        weight, bias = self.base_weight, self.bias
        require_frozen(weight, bias)
        if self.disabled:
            terms = self.pretrained_terms()
        elif self.merged_weight is not None:
            weight, terms = self.merged_weight, ()
        else:
            terms = self.terms()
        x = at_its_device(x, self.base)
        if not terms:
            return self.layer_type.plain(x, weight, bias)
        # Reshaped out here, where autograd sees it: an in-place operation on the output is then allowed.
        prepared = self.layer_type.prepare(x)
        return self.layer_type.finish(adapted_output(prepared, weight, bias, self.layer_type, terms), x)


def require_frozen(weight: Tensor, bias: Tensor | None) -> None:
    """Refuse to compute with parameters that want a gradient.

    Raises:
        ValueError: if one does.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError(
            "base: expected frozen parameters (requires_grad=False), got a weight or bias that requires grad; "
            "an adapted layer computes no gradient for them"
        )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """Yield the adapted layers of a model by qualified name."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLayer):
            yield name, module
