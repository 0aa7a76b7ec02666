# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""What the tests of the PEFT methods share: small models made from configurations, and a few steps of training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from lowrank_swift.peft import LaMDAConfig, LoLDUConfig, OLoRAConfig
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

CONFIGS = (LoLDUConfig, LaMDAConfig, OLoRAConfig)
PEFT_VERSION = tuple(map(int, peft.__version__.split(".")[:2]))
EPS = torch.finfo(torch.float32).eps

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)


@dataclass(frozen=True)
class Case:
    """A model, its task, and a batch that it takes."""

    make: Callable[[], nn.Module]
    task: str | None
    targets: tuple[str, ...]
    batch: Callable[[], dict[str, Tensor]]

    def model(self) -> nn.Module:
        """The same pretrained model every time."""
        torch.manual_seed(0)
        return self.make().eval()


def _tokens(seed: int = 1) -> Tensor:
    return torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(seed))


def _causal() -> dict[str, Tensor]:
    return {"input_ids": _tokens(), "labels": _tokens()}


MODELS = {
    "opt": Case(
        lambda: OPTForCausalLM(
            OPTConfig(
                vocab_size=40,
                hidden_size=16,
                word_embed_proj_dim=16,
                ffn_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                dropout=0.0,
            )
        ),
        "CAUSAL_LM",
        ("q_proj", "fc1"),
        _causal,
    ),
    "gpt2": Case(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=40,
                n_embd=16,
                n_layer=2,
                n_head=2,
                n_positions=16,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        "CAUSAL_LM",
        ("c_attn", "c_proj"),
        _causal,
    ),
    "llama": Case(
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=16,
            )
        ),
        "CAUSAL_LM",
        ("q_proj", "v_proj", "down_proj"),
        _causal,
    ),
    "bert": Case(
        lambda: BertForSequenceClassification(
            BertConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=16,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        ),
        "SEQ_CLS",
        ("query", "value"),
        lambda: {"input_ids": _tokens(), "labels": torch.tensor([0, 1])},
    ),
    "t5": Case(
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=40,
                d_model=16,
                d_kv=8,
                d_ff=24,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                decoder_start_token_id=0,
            )
        ),
        # This transformers has no method that older PEFTs' class for the task asks for.
        "SEQ_2_SEQ_LM" if PEFT_VERSION >= (0, 21) else None,
        ("q", "wo"),
        _causal,
    ),
}

every_model = pytest.mark.parametrize("name", MODELS)


class MLP(nn.Module):
    """Two linear layers, and a third that trains as a whole where it is asked for."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20, dtype=dtype)
        self.lin1 = nn.Linear(20, 20, bias=False, dtype=dtype)
        self.head = nn.Linear(20, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lin1(torch.relu(self.lin0(x))))


def mlp(dtype: torch.dtype = torch.float32, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(dtype).eval()


def rows(dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(6, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def output(model: nn.Module, batch: dict[str, Tensor] | Tensor) -> Tensor:
    """The logits in eval mode, without a graph."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result: Any = model(**batch) if isinstance(batch, dict) else model(batch)
    model.train(was_training)
    return result if isinstance(result, Tensor) else result.logits


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(model: nn.Module, batch: dict[str, Tensor] | Tensor, steps: int = 3, lr: float = 0.05) -> None:
    optimizer = torch.optim.AdamW(trained(model), lr=lr)
    model.train()
    for _ in range(steps):
        result: Any = model(**batch) if isinstance(batch, dict) else model(batch)
        loss = result.square().mean() if isinstance(result, Tensor) else result.loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all tensors that the pretrained model had."""
    return {
        key.replace("base_model.model.", "").replace("base_layer.", ""): copy.deepcopy(value)
        for key, value in model.state_dict().items()
        if "_adapter." not in key
    }


def close(actual: Tensor, expected: Tensor, unit: float = EPS, size: int = 64) -> bool:
    """Equal to the rounding of a few sums of this size, of terms as large as the largest entry."""
    return bool((actual - expected).abs().max() <= size * unit * expected.abs().max())
