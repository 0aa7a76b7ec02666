# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Bad input to adapt and to adapted layers: clear errors, and a model that is what it was."""

from __future__ import annotations

import lowrank_swift as lrs
import pytest
import torch
from lowrank_swift import Factors, LinAlgError
from lowrank_swift.torch import LaMDA, LoLDU, OLoRA, PiSSA, adapt
from lowrank_swift.torch._layer import AdaptedLayer
from torch import nn
from torch_support import LIMIT, adapted_linear, blocks, error_ratio, every_base, every_method


def snapshot(model: nn.Module) -> dict[str, tuple[type, bool, bytes]]:
    """Everything that a failed call must leave alone."""
    modules = {name: type(module) for name, module in model.named_modules()}
    return {
        name: (modules[name.rpartition(".")[0]], p.requires_grad, p.detach().view(torch.uint8).numpy().tobytes())
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"targets": []}, ValueError, "targets: expected at least one"),
        ({"targets": ["query", ""]}, ValueError, "targets: expected at least one"),
        ({"targets": "query"}, TypeError, "targets: expected a sequence"),
        ({"targets": ["query", "key"]}, ValueError, "'key', which none has"),
        ({"targets": ["uery"]}, ValueError, "'uery', which none has"),
        ({"targets": ["norm"]}, ValueError, r"expected torch.nn.Linear, .* modules, got LayerNorm at '0.norm'"),
        ({"targets": ["0"]}, ValueError, r"expected torch.nn.Linear, .* modules, got Block at '0'"),
        ({"base": "copy"}, ValueError, 'base: expected "intact" or "residual", got \'copy\''),
        ({"name": "a.b"}, ValueError, "name: expected"),
        ({"name": ""}, ValueError, "name: expected"),
        ({"name": "keys"}, ValueError, "name: expected"),
        ({"method": OLoRA}, TypeError, "method: expected a method"),
        ({"method": OLoRA(9)}, ValueError, r"0\.query: rank: expected 1 <= rank <= min\(m, n\) = 8, got 9"),
        ({"method": OLoRA({"0.query": 2})}, ValueError, "got none for '1.query'"),
        ({"method": OLoRA({"0.query": 2, "1.query": 2, "2": 2})}, ValueError, "rank: expected only names .* got '2'"),
        ({"method": LoLDU(2, diagonal="two")}, ValueError, r"0\.query: diagonal"),
        ({"method": PiSSA(2, alpha=-1)}, ValueError, r"0\.query: .*scale"),
        ({"method": LaMDA(2, tol=-1)}, ValueError, r"0\.query: .*tol"),
    ),
)
@every_base
def test_bad_arguments_leave_the_model_alone(arguments, error, message, base):
    model = blocks()
    before = snapshot(model)
    arguments = {"method": OLoRA(2), "targets": ["query"], "base": base} | arguments
    with pytest.raises(error, match=message):
        adapt(model, arguments.pop("method"), **arguments)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    (
        ({"rank": 0}, ValueError, "rank: expected at least 1, got 0"),
        ({"rank": {"a": -1}}, ValueError, "rank: expected at least 1, got -1"),
        ({"rank": 2.0}, TypeError, "rank: expected an int"),
        ({"rank": True}, TypeError, "rank: expected an int"),
        ({"rank": 2, "alpha": "4"}, TypeError, "alpha: expected a number or None, got '4'"),
        ({"rank": 2, "alpha": 0}, ValueError, "alpha: expected a finite number"),
        ({"rank": 2, "alpha": float("nan")}, ValueError, "alpha: expected a finite number"),
    ),
)
@every_method
def test_bad_method_options(method, options, error, message):
    with pytest.raises(error, match=message):
        method(**options)


def test_model_that_is_none():
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        adapt(None, OLoRA(2), targets=["query"])


@every_method
@every_base
def test_a_bad_weight_leaves_the_model_alone(method, base):
    model = blocks()
    model[1].query.weight.data[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"^1\.query: "):
        adapt(model, method(2), targets=["query"], base=base)
    assert snapshot(model) == before


@every_base
def test_an_unsupported_dtype(base):
    model = blocks()
    model[1].query.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int32), requires_grad=False)
    with pytest.raises(TypeError, match=r"^1\.query: "):
        adapt(model, OLoRA(2), targets=["query"], base=base)


def test_a_factor_that_does_not_fit_the_base_dtype():
    """The first row of U is w / pivot = 60000 / 2^-14, far above float16's largest number."""
    model = nn.Sequential(nn.Linear(2, 2)).half()
    model[0].weight.data.copy_(torch.tensor([[2**-14, 60000], [2**-14, 0]]))
    with pytest.raises(LinAlgError, match=r"^0: down: expected values that fit torch\.float16"):
        adapt(model, LoLDU(1), targets=["0"])
    assert type(model[0]) is nn.Linear


def test_a_residual_that_does_not_fit_the_base_dtype():
    model = nn.Sequential(nn.Linear(4, 4)).half()
    before = snapshot(model)
    with pytest.raises(
        LinAlgError, match=r"^0: scale: expected entries W \+ scale \* B C A within the range of float16"
    ):
        adapt(model, OLoRA(2, alpha=1e7), targets=["0"], base="residual")
    assert snapshot(model) == before


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_a_residual_that_does_not_fit_leaves_the_other_layers_alone(dtype):
    """Not to rounding: what a huge scale has taken from a weight can't be added again."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype)
    model[1].weight.data.mul_(100)
    before = snapshot(model)
    scale = torch.finfo(dtype).max / 4
    with pytest.raises(LinAlgError, match=r"^1: scale: expected entries"):
        adapt(model, OLoRA(2, alpha=2 * scale), targets=["0", "1"], base="residual")
    assert snapshot(model) == before
    adapt(model, OLoRA(2, alpha=2 * scale), targets=["0"], base="residual")


def test_an_interrupted_subtraction_is_undone(monkeypatch):
    model = blocks()
    weights = [block.query.weight.detach().clone() for block in model[:2]]
    original, calls = lrs.unmerge_, []

    def interrupted(weight: torch.Tensor, factors: Factors) -> torch.Tensor:
        calls.append(weight)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(weight, factors)

    monkeypatch.setattr(lrs, "unmerge_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, OLoRA(3), targets=["query"], base="residual")
    assert not any(isinstance(module, AdaptedLayer) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    for block, weight in zip(model[:2], weights, strict=True):
        assert error_ratio(block.query.weight, weight, weight, 8, torch.finfo(torch.float32).eps) < LIMIT


def test_shared_modules_and_weights():
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="shared as 0, 1"):
        adapt(nn.Sequential(shared, shared), OLoRA(2), targets=["0"])
    with pytest.raises(ValueError, match=r"shared as 0\.0, 1\.0"):
        block = nn.Sequential(nn.Linear(4, 4))
        adapt(nn.Sequential(block, block), OLoRA(2), targets=["1.0"])

    tied = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    tied[1].weight = tied[0].weight
    before = snapshot(tied)
    with pytest.raises(ValueError, match=r"'1\.weight', which shares its memory with 0\.weight"):
        adapt(tied, OLoRA(2), targets=["1"], base="residual")
    assert snapshot(tied) == before

    fused = torch.randn(8, 4)
    parts = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    parts[0].weight, parts[1].weight = nn.Parameter(fused[:4]), nn.Parameter(fused[4:])
    parts.register_buffer("last_row", fused[-1])
    adapt(parts, OLoRA(2), targets=["0"], base="residual")
    with pytest.raises(ValueError, match="shares its memory with last_row"):
        adapt(parts, OLoRA(2), targets=["1"], base="residual")
    adapt(tied, OLoRA(2), targets=["1"])

    repeated = nn.Sequential(nn.Linear(4, 4))
    repeated[0].weight = nn.Parameter(torch.randn(4, 1).expand(4, 4))
    with pytest.raises(ValueError, match=r"a weight that overlaps itself, got \"residual\" for '0.weight'"):
        adapt(repeated, OLoRA(2), targets=["0"], base="residual")


def test_layers_whose_forward_is_not_their_own():
    with pytest.raises(ValueError, match="meta device at '0'"):
        adapt(nn.Sequential(nn.Linear(4, 4, device="meta")), OLoRA(2), targets=["0"])
    hooked = nn.Sequential(nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without hooks"):
        adapt(hooked, OLoRA(2), targets=["0"])
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="got ParametrizedLinear at '0'"):
        adapt(normed, OLoRA(2), targets=["0"])
    encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    with pytest.raises(ValueError, match=r"NonDynamicallyQuantizableLinear at 'self_attn.out_proj'"):
        adapt(encoder, OLoRA(2), targets=["out_proj"])
    with pytest.raises(ValueError, match="'linear1'; in eval mode"):
        adapt(encoder, OLoRA(2), targets=["linear1"])


def test_a_second_adapter_needs_a_free_name_and_an_intact_base():
    model = adapt(blocks(), LoLDU(2), targets=["query"])
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"name: expected one that is free, got 'default', which '0.query' has"):
        adapt(model, OLoRA(2), targets=["query"])
    with pytest.raises(ValueError, match=r"got \"residual\" at '0.query'"):
        adapt(model, OLoRA(2), targets=["query"], name="second", base="residual")
    with pytest.raises(ValueError, match="'base', which none has"):
        adapt(model, OLoRA(2), targets=["base"], name="second")
    assert snapshot(model) == before
    residual = adapt(blocks(), LoLDU(2), targets=["query"], base="residual")
    with pytest.raises(ValueError, match=r"got \"residual\" at '0.query'"):
        adapt(residual, OLoRA(2), targets=["query"], name="second")


def test_calls_with_bad_input():
    layer, _ = adapted_linear(LoLDU, "intact")
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 6, got shape \[3, 2\]"):
        layer(torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 6, got shape \[\]"):
        layer(torch.tensor(1.0))
    layer.base.bias.requires_grad_()
    with pytest.raises(ValueError, match="base: expected frozen parameters"):
        layer(torch.randn(3, 6))
