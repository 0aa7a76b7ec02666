# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The adapter modules. Which one a layer gets depends on what trains, never on the method.

Letters as everywhere: up B [m, r], core C, down A [r, n], delta W = s B C A; a 0 marks the start values.
Frozen factors are buffers in the dtype of the base's weight; trained factors are Parameters in the dtype in which they
were computed (float32, or float64 over a float64 base). The start values are kept in both forms of the base: they tell
what was subtracted from a residual, and what an intact adapter is the difference from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_swift import Factors, LinAlgError

from ._ops import effective_up
from ._precision import working_dtype
from .methods import Option

__all__ = ["Adapter", "CoreAdapter", "Term", "UpCoreAdapter", "UpDownAdapter", "make_adapter"]


class Term(NamedTuple):
    """One summand ``scale * ((x A^T) C^T) B^T`` of an adapted layer.

    With ``start`` (m x r) it is ``scale * (x A^T) (B C - start)^T``, and with ``start_down`` (r x n) too, which has no
    core, ``scale * x (B A - start start_down)^T``. ``frozen_columns`` (int64, no dimensions) is the number of leading
    columns of ``up`` whose gradient is zero.
    """

    scale: float
    down: Tensor
    core: Tensor | None
    up: Tensor
    start: Tensor | None = None
    frozen_columns: Tensor | None = None
    start_down: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All but the scale, in this order."""
        return self[1:]

    @torch.no_grad()
    def factors(self, dtype: torch.dtype | None = None) -> Factors:
        """Return the summand as detached factors, of a dtype or of their own; a start is taken off in ``up``.

        Two factors that have both changed make one change of twice the rank, ``B (A - A0) + (B - B0) A0``.
        """
        down, core, up, start, start_down = (
            None if tensor is None else tensor.detach().to(dtype or tensor.dtype)
            for tensor in (self.down, self.core, self.up, self.start, self.start_down)
        )
        assert up is not None
        if start_down is not None:
            assert down is not None and start is not None
            up, down = torch.cat((up, up - start), 1), torch.cat((down - start_down, start_down))
        elif start is not None:
            up, core = effective_up(up, core, start), None
        return Factors(method="", up=up, core=core, down=down, scale=self.scale)


class Adapter(nn.Module, ABC):
    """One adapter of one layer.

    Attributes:
        method (str): name of the method that made the starting factors.
        options (dict): the method's options, for the record.
        scale (float): s.
        intact (bool): whether the base is the pretrained weight W, else it is the residual W - s B0 C0 A0.
        up, core, down (Tensor): what the forward uses. Parameters where they train, else buffers.
    """

    up: Tensor
    core: Tensor | None
    down: Tensor

    def __init__(self, method: str, scale: float, intact: bool) -> None:
        super().__init__()
        self.method = method
        self.options: dict[str, Option] = {}
        self.scale = scale
        self.intact = intact

    @property
    def trains(self) -> frozenset[str]:
        """Which of "up", "core" and "down" are Parameters, frozen for now or not."""
        return frozenset(name for name, _ in self.named_parameters())

    @abstractmethod
    def change(self) -> tuple[Term, ...]:
        """Return what the adapter has changed: how the layer differs from the pretrained one, in both forms.

        The first term has all that trains.
        """

    @abstractmethod
    def start(self) -> Term:
        """Return the starting values, which the residual form subtracts from the base."""

    def trained(self) -> Term:
        """Return the present values of the factors."""
        return Term(self.scale, self.down, self.core, self.up)

    def terms(self) -> tuple[Term, ...]:
        """Return what the layer adds to its base's output."""
        return self.change() if self.intact else (self.trained(),)

    def pretrained_terms(self) -> tuple[Term, ...]:
        """Return what turns the base's output into the pretrained one."""
        return () if self.intact else (self.start(),)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a ``state_dict``, with their dtypes.

        Raises:
            ValueError: if a number is out of range.
        """
        self.load_state_dict(state, assign=True)

    def factors(self) -> Factors:
        """Return the factors as the method means them: the Parameters and buffers themselves where that is possible."""
        return Factors(method=self.method, up=self.up, core=self.core, down=self.down, scale=self.scale)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        form = "intact" if self.intact else "residual"
        return f"method={self.method}, rank={self.down.shape[0]}, scale={self.scale:g}, base={form}"


class CoreAdapter(Adapter):
    """Only the core trains. Over an intact base it is stored as its deviation C - C0, zero at the start."""

    def __init__(self, factors: Factors, intact: bool, frozen_dtype: torch.dtype) -> None:
        super().__init__(factors.method, factors.scale, intact)
        self.register_buffer("up", _frozen("up", factors.up, frozen_dtype))
        self.register_buffer("down", _frozen("down", factors.down, frozen_dtype))
        self.register_buffer("start_core", factors.core)
        self.core = nn.Parameter(torch.zeros_like(self.start_core) if intact else self.start_core.clone())

    core: Tensor
    start_core: Tensor

    def change(self) -> tuple[Term, ...]:
        """Return one term with the core's deviation; over an intact base that is what is stored."""
        core = self.core if self.intact else self.core - self.start_core
        return (Term(self.scale, self.down, core, self.up),)

    def start(self) -> Term:
        """Return the term with the core's start."""
        return Term(self.scale, self.down, self.start_core, self.up)

    def factors(self) -> Factors:
        """Return the factors with the core itself; over an intact base it is a sum."""
        core = self.core + self.start_core if self.intact else self.core
        return Factors(method=self.method, up=self.up, core=core, down=self.down, scale=self.scale)


class UpCoreAdapter(Adapter):
    """Core and up train. Over an intact base the one m x r matrix B C - B0 C0 takes the place of both.

    ``start_product`` (B0 C0) has the dtype that sums are taken in, so that the difference is exactly zero at the start.
    ``frozen_columns`` counts the leading columns of ``up`` that do not train any more; :class:`GradualFreeze` sets it,
    and ``up_retired`` once ``up`` is to require no gradient for the rest of the training.
    """

    def __init__(self, factors: Factors, intact: bool, frozen_dtype: torch.dtype) -> None:
        super().__init__(factors.method, factors.scale, intact)
        self.register_buffer("down", _frozen("down", factors.down, frozen_dtype))
        assert factors.core is not None
        self.register_buffer("start_product", effective_up(factors.up, factors.core, None))
        self.register_buffer("frozen_columns", torch.zeros((), dtype=torch.int64, device=factors.up.device))
        self.up = nn.Parameter(factors.up)
        self.core = nn.Parameter(factors.core)
        self.up_retired = False

    up: nn.Parameter
    core: nn.Parameter
    start_product: Tensor
    frozen_columns: Tensor

    def change(self) -> tuple[Term, ...]:
        """Return one term, less the start's product."""
        return (self.trained()._replace(start=self.start_product),)

    def start(self) -> Term:
        """Return the start's product as one factor."""
        return Term(self.scale, self.down, None, self.start_product)

    def trained(self) -> Term:
        """Return the present values of the factors and how many columns are frozen."""
        return super().trained()._replace(frozen_columns=self.frozen_columns)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UpCoreAdapter:
        """Convert as torch does, except that ``start_product`` keeps the precision that sums are taken in.

        An adapter that has changed nothing yet still changes nothing, to the last bit.
        """
        up, core, start = self.up.detach(), self.core.detach(), self.start_product
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.up.dtype is up.dtype:
            return self
        self.start_product = start.to(self.up.device, working_dtype(self.up.dtype))
        has_values = {up.device.type, self.up.device.type} <= {"cpu", "cuda"}
        if self.intact and has_values and not effective_up(up, core, start).any():
            self.start_product = effective_up(self.up.detach(), self.core.detach(), None)
        return self

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a ``state_dict``; a wholly frozen ``up`` requires no gradient."""
        super().restore(state)
        frozen, rank = int(self.frozen_columns), self.up.shape[1]
        if not 0 <= frozen <= rank:
            raise ValueError(f"frozen_columns: expected 0 <= frozen_columns <= rank = {rank}, got {frozen}")
        if frozen == rank:
            self.up.requires_grad_(False)


class UpDownAdapter(Adapter):
    """Up and down train. Over an intact base their start, kept as a second, frozen adapter, is taken away.

    The trained factors start from the values that the frozen copies hold, so the start changes nothing, to the last
    bit, also over a 16-bit base.
    """

    def __init__(self, factors: Factors, intact: bool, frozen_dtype: torch.dtype) -> None:
        super().__init__(factors.method, factors.scale, intact)
        self.register_buffer("start_up", _frozen("up", factors.up, frozen_dtype))
        self.register_buffer("start_down", _frozen("down", factors.down, frozen_dtype))
        assert factors.core is None
        self.register_buffer("core", None)
        self.up = nn.Parameter(self.start_up.to(factors.up.dtype, copy=True))
        self.down = nn.Parameter(self.start_down.to(factors.down.dtype, copy=True))

    start_up: Tensor
    start_down: Tensor

    def change(self) -> tuple[Term, ...]:
        """Return the trained term and the frozen one, which takes the start away."""
        return (self.trained(), self.start()._replace(scale=-self.scale))

    def terms(self) -> tuple[Term, ...]:
        """Return both as the one change that they make over an intact base."""
        term = self.trained()
        return (term._replace(start=self.start_up, start_down=self.start_down) if self.intact else term,)

    def start(self) -> Term:
        """Return the frozen term."""
        return Term(self.scale, self.start_down, None, self.start_up)


_FORMS: dict[frozenset[str], type[CoreAdapter] | type[UpCoreAdapter] | type[UpDownAdapter]] = {
    frozenset({"core"}): CoreAdapter,
    frozenset({"up", "core"}): UpCoreAdapter,
    frozenset({"up", "down"}): UpDownAdapter,
}


def make_adapter(factors: Factors, trains: frozenset[str], *, intact: bool, frozen_dtype: torch.dtype) -> Adapter:
    """Make the adapter whose trained factors are ``trains``, starting at ``factors``.

    Raises:
        ValueError: if no adapter trains just these factors.
        LinAlgError: if a frozen factor holds a value that does not fit ``frozen_dtype``.
    """
    if trains not in _FORMS:
        expected = " or ".join(str(sorted(form)) for form in _FORMS)
        raise ValueError(f"trains: expected {expected}, got {sorted(trains)}")
    with torch.no_grad():
        return _FORMS[trains](factors, intact, frozen_dtype)


def _frozen(name: str, factor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = factor.to(dtype)
    if stored is not factor and not stored.isfinite().all():
        raise LinAlgError(f"{name}: expected values that fit {dtype}, got {factor.abs().max():g}")
    return stored
