# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The layers that PEFT puts in place: its bookkeeping around the adapters of :mod:`lowrank_swift.torch`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn

from lowrank_swift import Factors
from lowrank_swift.torch._adapter import Adapter, Term, UpCoreAdapter, make_adapter
from lowrank_swift.torch._calls import at_its_device
from lowrank_swift.torch._function import adapted_output, terms_output
from lowrank_swift.torch._layer import require_frozen
from lowrank_swift.torch._precision import working_dtype
from lowrank_swift.torch._sums import with_terms
from lowrank_swift.torch.layers import LayerType
from lowrank_swift.torch.methods import Method

from ._base import BaseLayer
from ._config import LowRankConfig
from ._fingerprint import FINGERPRINT, fingerprint
from ._weight import Weight, weight_of

__all__ = ["LowRankLayer", "LowRankLinear", "make_layer"]

# Of the starting value: how far init_weights=False shifts what trains.
_RANDOM_SHIFT = 0.1


class LowRankLayer(nn.Module, BaseTunerLayer):
    """A frozen layer with adapters, of which the active ones act.

    Attributes:
        base_layer (torch.nn.Module): the layer that was adapted. Its weight is what it was, unless it is merged.
    """

    def __init__(self, base_layer: nn.Module, prefix: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._base = BaseLayer.of(base_layer)
        self._adapters, self._dropouts = f"{prefix}adapter", f"{prefix}dropout"
        setattr(self, self._adapters, nn.ModuleDict())
        setattr(self, self._dropouts, nn.ModuleDict())
        # PEFT makes all parameters below the first names trainable, or not, and deletes adapters from both.
        self.adapter_layer_names = (self._adapters,)
        self.other_param_names = (self._dropouts,)
        self.merged_adapters: list[str] = []
        self._unmerged: Weight | None = None
        self.out_features, self.in_features = self._base.matrix_shape(base_layer)
        self.train(base_layer.training)

    @property
    def adapters(self) -> nn.ModuleDict:
        """The adapters by name."""
        return cast(nn.ModuleDict, getattr(self, self._adapters))

    @property
    def adapters_key(self) -> str:
        """What stands between the layer's name and an adapter's in a ``state_dict``."""
        return self._adapters

    @property
    def layer_type(self) -> LayerType:
        """How the base's weight is a matrix, and what the base computes with it."""
        return self._base.layer_type

    @property
    def dropouts(self) -> nn.ModuleDict:
        """The dropouts of the adapters that have one, by the adapters' names."""
        return cast(nn.ModuleDict, getattr(self, self._dropouts))

    def named_adapters(self, names: Sequence[str] | None = None) -> Iterator[tuple[str, Adapter]]:
        """Yield the layer's adapters by name: those with the names, or all."""
        for name in self.adapters if names is None else names:
            if name in self.adapters:
                yield name, cast(Adapter, self.adapters[name])

    def update_layer(self, adapter_name: str, method: Method, rank: int, config: LowRankConfig) -> None:
        """Give the layer another adapter.

        Raises:
            TypeError: if the weight's dtype is not supported.
            ValueError: if the rank does not fit, or the weight is not finite or not materialised.
            LinAlgError: if the factorisation fails.
        """
        base_layer = self.get_base_layer()
        if self.merged:
            raise ValueError("model: expected layers that are not merged, got a merged one")
        if not 1 <= rank <= min(self.in_features, self.out_features):
            raise ValueError(
                f"r: expected 1 <= r <= min(m, n) = {min(self.in_features, self.out_features)} for a weight of "
                f"{self.out_features} outputs and {self.in_features} inputs, got {rank}; rank_pattern sets the rank of "
                "single layers, exclude_modules leaves them out"
            )
        with gather_params_ctx(cast(nn.Parameter, base_layer.weight)):
            adapter = self._make_adapter(method, rank, config)
        self.adapters[adapter_name] = adapter.train(self.training)
        if config.lora_dropout > 0 and self._base.takes_dropout:
            self.dropouts[adapter_name] = nn.Dropout(config.lora_dropout).train(self.training)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _make_adapter(self, method: Method, rank: int, config: LowRankConfig) -> Adapter:
        base_layer = self.get_base_layer()
        frozen_dtype = self._base.frozen_dtype(base_layer)
        # With low_cpu_mem_usage PEFT makes parameters on the meta device: a checkpoint will fill them.
        if _parameters_are_meta() and config.keeps_factors():
            factors = self._zero_factors(method, rank, config, working_dtype(frozen_dtype))
        elif cast(Tensor, base_layer.weight).is_meta:
            raise ValueError("weight: expected a materialised base weight to factorise, got one on the meta device")
        else:
            weight = self._base.weight(base_layer)
            factors = self.layer_type.start(method.initialize(self.layer_type.matrix(weight), rank))
        adapter = make_adapter(factors, method.trains, intact=True, frozen_dtype=frozen_dtype)
        adapter.options = method.options()
        if not config.init_weights:
            _shift(adapter, factors)
        if not config.keeps_factors():
            print_of_base = fingerprint(weight, factors.up)
            for name, buffer in list(adapter.named_buffers(recurse=False)):
                adapter.register_buffer(name, buffer, persistent=False)
            adapter.register_buffer(FINGERPRINT, print_of_base)
        return adapter

    def _zero_factors(self, method: Method, rank: int, config: LowRankConfig, dtype: torch.dtype) -> Factors:
        core = torch.zeros([rank] * config.core_dimensions, dtype=dtype) if config.core_dimensions else None
        up, down = (torch.zeros(size, dtype=dtype) for size in ((self.out_features, rank), (rank, self.in_features)))
        return Factors(type(method).__name__.lower(), up, core, down, method.scale(rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output plus the active adapters'.

        Args:
            x (Tensor): as the base takes it.

        Raises:
            ValueError: if a parameter of the base requires grad.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else list(self.named_adapters(self.active_adapters))
        if not active:
            return cast(Tensor, self.base_layer(x))
        at_once: list[Term] = []
        dropped: list[tuple[nn.Module, Term]] = []
        for name, adapter in active:
            if self.training and name in self.dropouts:
                trained, *frozen = adapter.change()
                dropped.append((self.dropouts[name], trained))
                at_once += frozen
            else:
                at_once += adapter.terms()
        out = self._with_terms(x, at_once)
        for dropout, term in dropped:
            out = out + self._terms_alone(dropout(x), out, [term])
        return out

    def _with_terms(self, x: Tensor, terms: Sequence[Term]) -> Tensor:
        """Return the base's output plus terms, in one pass where the base is a plain layer."""
        base = self.base_layer
        if not terms:
            return cast(Tensor, base(x))
        if not self._base.is_plain(base):
            out = cast(Tensor, base(x))
            return out + self._terms_alone(x, out, terms)
        weight, bias = cast(Tensor, base.weight), cast("Tensor | None", getattr(base, "bias", None))
        require_frozen(weight, bias)
        x = at_its_device(x, base)
        out = adapted_output(self.layer_type.prepare(x), weight, bias, self.layer_type, terms)
        return self.layer_type.finish(out, x)

    def _terms_alone(self, x: Tensor, like: Tensor, terms: Sequence[Term]) -> Tensor:
        """Return what terms make of an input, in the shape and dtype of the layer's output."""
        x = at_its_device(x, self.base_layer)
        prepared, like = self.layer_type.prepare(x), self.layer_type.unfinish(like.detach(), x)
        return self.layer_type.finish(terms_output(prepared, like, self.layer_type, terms), x)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make the base's weight the sum of itself and of adapters, taken in float32 (or 64) and rounded once.

        A sum that is not finite is refused, with and without ``safe_merge``. What shares the weight keeps the
        untouched one. Over bitsandbytes' layers the sum is quantized again, with a warning.

        Args:
            safe_merge (bool): makes no difference.
            adapter_names (list[str] | None): which adapters; None means the active ones.

        Raises:
            ValueError: if the base is quantized by others than bitsandbytes, or a factor is not finite.
            LinAlgError: if the sum does not fit the weight's dtype.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.adapters]
        if not names:
            return
        base = self.get_base_layer()
        kept = self._unmerged or weight_of(base, quantized=self._base.quantized)
        terms = [t for _, adapter in self.named_adapters([*self.merged_adapters, *names]) for t in adapter.terms()]
        kept.merged(self.layer_type, terms).write(base)
        self._unmerged = kept
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Undo all merges: the base gets back the weight that it had, bit for bit."""
        if self._unmerged is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._unmerged.write(self.get_base_layer())
        self._unmerged = None
        self.merged_adapters.clear()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return what an adapter adds to the base's weight, in its layout, as float32 (float64 over a float64 base)."""
        weight = self._base.weight(self.get_base_layer())
        zeros = torch.zeros_like(weight, dtype=working_dtype(weight.dtype))
        return with_terms(self.layer_type, zeros, cast(Adapter, self.adapters[adapter_name]).terms())

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return whether PEFT's ``convert_to_lora`` knows the layer's type; ``export_lora`` knows all of them."""
        return self._base.is_linear

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active and, unless in inference mode, trainable; what has been frozen for good stays frozen."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._keep_frozen()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Make adapters trainable or not; what has been frozen for good stays frozen."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._keep_frozen()

    def _keep_frozen(self) -> None:
        for _, adapter in self.named_adapters():
            if isinstance(adapter, UpCoreAdapter) and adapter.up_retired:
                adapter.up.requires_grad_(False)

    def cast_to_base(self, adapter_name: str) -> None:
        """Convert what trains in an adapter to the dtype of the frozen factors."""
        dtype = self._base.frozen_dtype(self.get_base_layer())
        for _, adapter in self.named_adapters([adapter_name]):
            for name, parameter in list(adapter.named_parameters()):
                setattr(adapter, name, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter, whose dtypes are chosen already, unlike what PEFT expects here."""
        target = device or cast(Tensor, self.get_base_layer().weight).device
        for _, adapter in self.named_adapters([adapter_name]):
            if target.type != "meta" and not any(tensor.is_meta for tensor in adapter.state_dict().values()):
                adapter.to(target)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool, *reports: list[str]
    ) -> None:
        """Refuse factors of another base; take over the dtypes of the frozen factors, which converting would change."""
        for name, adapter in self.named_adapters():
            where = f"{prefix}{self._adapters}.{name}."
            for key, buffer in list(adapter.named_buffers()):
                value = state_dict.get(where + key)
                if value is None:
                    continue
                if key == FINGERPRINT and not torch.equal(value.cpu(), buffer.cpu()):
                    reports[-1].append(
                        f"{where}{key}: expected the base weight that the adapter was made from, got another one, to "
                        "compute its factors from; only checkpoints with save_projection=True have the factors"
                    )
                elif buffer.is_floating_point() and buffer.dtype != value.dtype:
                    setattr(adapter, key, buffer.to(value.dtype))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, *reports)


class LowRankLinear(LowRankLayer):
    """A linear layer with adapters. PEFT's "all-linear" finds layers that have adapters by this word in the name."""


def make_layer(base_layer: nn.Module, prefix: str) -> LowRankLayer:
    """Return a layer without adapters yet.

    Raises:
        ValueError: if the base is of a type that can't be adapted, or has an option that an adapter does not fit.
    """
    return (LowRankLinear if BaseLayer.of(base_layer).is_linear else LowRankLayer)(base_layer, prefix)


def _parameters_are_meta() -> bool:
    probe = nn.Module()
    probe.register_parameter("probe", nn.Parameter(torch.empty(0)))
    return bool(next(probe.parameters()).is_meta)


@torch.no_grad()
def _shift(adapter: Adapter, factors: Factors) -> None:
    for name, parameter in adapter.named_parameters():
        start = getattr(factors, name)
        parameter.add_(_RANDOM_SHIFT * start * torch.randn_like(start))
