# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The configurations, in LoraConfig's words."""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

from peft import PeftConfig

from lowrank_swift.torch import LaMDA, LoLDU, OLoRA
from lowrank_swift.torch.methods import Method, check_alpha, check_rank

from ._card import add_import_to_card
from ._register import tuner_type

__all__ = ["LaMDAConfig", "LoLDUConfig", "LowRankConfig", "OLoRAConfig"]


@dataclass
class LowRankConfig(PeftConfig):
    """What the configurations of all methods have.

    Attributes:
        r (int): rank.
        target_modules (list[str] | str | None): names of modules or their last parts, a regular expression of whole
            names, or "all-linear"; None takes what PEFT's LoRA takes for the model's architecture.
        exclude_modules (list[str] | str | None): likewise, modules to leave out.
        lora_alpha (float | None): numerator of the scale ``lora_alpha / r``; None means r, a scale of 1.
        lora_dropout (float): probability with which the input of what trains is dropped; frozen terms see all.
        use_rslora (bool): the scale is ``lora_alpha / sqrt(r)``.
        modules_to_save (list[str] | None): further modules that train and are saved.
        init_weights (bool): True starts at the pretrained function. False shifts the trained factors at random, for
            tests.
        layers_to_transform (list[int] | int | None): indices of the layers that ``target_modules`` means.
        layers_pattern (list[str] | str | None): name of the list of layers, where PEFT doesn't know it.
        rank_pattern (dict[str, int]): ranks other than ``r``, by names or regular expressions of modules.
        alpha_pattern (dict[str, float]): values other than ``lora_alpha``, likewise.
    """

    r: int = field(default=8, metadata={"help": "Rank."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Numerator of the scale; None means r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of what trains."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by 1 / sqrt(r) instead of 1 / r."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Further modules to train and save."})
    init_weights: bool = field(default=True, metadata={"help": "Whether to start at the pretrained function."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Indices of the layers."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Ranks other than r."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Values other than lora_alpha."})

    core_dimensions: ClassVar[int]

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: expected None where target_modules is a str, got {getattr(self, name)!r}"
                    )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_to_transform: expected indices where layers_pattern is given, got None")
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name}: expected a dict, got {getattr(self, name)!r}")
        check_rank(self.r, "r")
        check_alpha(self.lora_alpha, "lora_alpha")
        for key, rank in self.rank_pattern.items():
            check_rank(rank, f"rank_pattern[{key!r}]")
        for key, alpha in self.alpha_pattern.items():
            check_alpha(alpha, f"alpha_pattern[{key!r}]")
        if not isinstance(self.lora_dropout, Real):
            raise TypeError(f"lora_dropout: expected a number, got {self.lora_dropout!r}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout: expected 0 <= lora_dropout < 1, got {self.lora_dropout}")
        self.method(self.r, self.lora_alpha)

    @abstractmethod
    def method(self, rank: int, alpha: float | None) -> Method:
        """Return the method of :mod:`lowrank_swift.torch` for layers of this rank and alpha.

        Raises:
            TypeError: if the rank is not an int or alpha no number.
            ValueError: if the rank is not positive, or alpha is zero or not finite.
        """

    def keeps_factors(self) -> bool:
        """Return whether checkpoints hold the frozen factors."""
        return True

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does, and say in the model card, where there is one, what has to be imported."""
        super().save_pretrained(save_directory, **kwargs)
        add_import_to_card(os.fspath(save_directory))


@dataclass
class LoLDUConfig(LowRankConfig):
    """LoLDU (arXiv 2410.13618): r numbers train for each layer, between frozen factors of its weight W = P L D U.

    Attributes:
        diagonal (str): start of the diagonal: "ldu" (that of D), "ones", "zeros", "mean", "uniform" or "normal".
        seed (int): seed of the random diagonals.
        save_projection (bool): True saves the frozen factors too, so that the checkpoint means the same everywhere.
            False saves r numbers for each layer and a fingerprint of its base weight; loading computes the factors
            again, and refuses another weight.

    Example:
        >>> model = get_peft_model(model, LoLDUConfig(r=64, target_modules="all-linear"))
    """

    diagonal: str = field(default="ldu", metadata={"help": "Start of the diagonal."})
    seed: int = field(default=0, metadata={"help": "Seed of the random diagonals."})
    save_projection: bool = field(default=True, metadata={"help": "Whether to save the frozen factors."})

    core_dimensions: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        self.peft_type = tuner_type("LOWRANK_LOLDU")

    def method(self, rank: int, alpha: float | None) -> Method:
        """Return the method for layers of this rank and alpha."""
        return LoLDU(rank, alpha=alpha, rslora=self.use_rslora, diagonal=self.diagonal, seed=self.seed)

    def keeps_factors(self) -> bool:
        """Return whether checkpoints hold the frozen factors."""
        return self.save_projection


@dataclass
class LaMDAConfig(LowRankConfig):
    """LaMDA (arXiv 2406.12832): an r x r core trains between singular vectors of the weight, and ``up`` at first.

    :class:`lowrank_swift.transformers.GradualFreezeCallback` freezes ``up`` step by step, or without the Trainer
    :class:`lowrank_swift.torch.GradualFreeze`.

    Attributes:
        tol (float): bound on the residual norms of the singular triplets, over the largest singular value.
        seed (int): seed of the factorisation's random start.
        core_only (bool): whether the core alone trains, from the start.

    Example:
        >>> model = get_peft_model(model, LaMDAConfig(r=32, target_modules=["q_proj", "v_proj"]))
    """

    tol: float = field(default=1e-4, metadata={"help": "Tolerance of the singular triplets."})
    seed: int = field(default=0, metadata={"help": "Seed of the factorisation's random start."})
    core_only: bool = field(default=False, metadata={"help": "Whether the core alone trains, from the start."})

    core_dimensions: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        self.peft_type = tuner_type("LOWRANK_LAMDA")

    def method(self, rank: int, alpha: float | None) -> Method:
        """Return the method for layers of this rank and alpha."""
        return LaMDA(rank, alpha=alpha, rslora=self.use_rslora, tol=self.tol, seed=self.seed, core_only=self.core_only)


@dataclass
class OLoRAConfig(LowRankConfig):
    """OLoRA (arXiv 2406.01775) over an intact base: LoRA whose factors start as those of W = Q R.

    Unlike PEFT's ``init_lora_weights="olora"`` it does not change the base, so that several adapters,
    ``disable_adapter`` and ``unload`` mean what they say. It is saved as it is; :func:`export_lora` writes plain LoRA
    of twice the rank.

    Example:
        >>> model = get_peft_model(model, OLoRAConfig(r=16, target_modules="all-linear"))
    """

    core_dimensions: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        self.peft_type = tuner_type("LOWRANK_OLORA")

    def method(self, rank: int, alpha: float | None) -> Method:
        """Return the method for layers of this rank and alpha."""
        return OLoRA(rank, alpha=alpha, rslora=self.use_rslora)
