# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""A model with a layer of every type: merging, removing, copying, converting, saving, compiling, exporting."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from layer_cases import TYPES, conv1d
from lowrank_swift.torch import (
    LaMDA,
    LoLDU,
    OLoRA,
    PiSSA,
    adapt,
    disabled,
    export_lora,
    load_adapter,
    merge,
    named_adapters,
    print_trainable_parameters,
    save_adapter,
    trainable_parameters,
    unadapt,
    unmerge,
)
from support import run_python
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_support import BASES, LIMIT, METHODS, error_ratio, every_base, every_method, shift_parameters

TARGETS = ["tokens", "mix", "convolution", "head"]
X = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(3))
EPS = torch.finfo(torch.float32).eps
WIDTH = 48  # The longest sum.


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.mix = conv1d(8, 12)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.mix(self.tokens(tokens)).unflatten(2, (3, 4)).permute(0, 2, 3, 1)
        return self.head(self.convolution(x).permute(0, 3, 1, 2).flatten(2).contiguous())


def mixed(seed: int = 0) -> Mixed:
    torch.manual_seed(seed)
    model = Mixed()
    nn.init.normal_(model.mix.weight, std=0.3)
    return model


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def trained(method, base) -> tuple[nn.Module, nn.Module]:
    """A trained model and what it was before it was adapted."""
    # Frozen, since torch may fold a product otherwise where a gradient is asked for.
    pretrained = mixed().requires_grad_(False)
    model = adapt(copy.deepcopy(pretrained), method(3, alpha=5), targets=TARGETS, base=base)
    train(model)
    return model, pretrained


def close(actual: Tensor, expected: Tensor, eps: float = EPS) -> bool:
    return error_ratio(actual, expected, expected, WIDTH, eps) < LIMIT


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    mine, other = ours.state_dict(), theirs.state_dict()
    return list(mine) == list(other) and all(torch.equal(mine[key], other[key]) for key in mine)


@every_method
@every_base
def test_merging_and_removing(method, base):
    model, pretrained = trained(method, base)
    before, expected = model(X), pretrained(X)
    state = copy.deepcopy(model)
    assert not close(before, expected)
    with disabled(model):
        assert torch.equal(model(X), expected) if base == "intact" else close(model(X), expected)
    merge(model)
    assert close(model(X), before)
    assert all(layer.weight.stride() == layer.base.weight.stride() for layer in model.children())
    assert same_state(model, state)
    assert torch.equal(unmerge(model)(X), before)
    plain = merge(copy.deepcopy(model), keep_base=False)
    assert close(plain(X), before)
    restored = unadapt(model)
    assert torch.equal(restored(X), expected) if base == "intact" else close(restored(X), expected)
    for each in (plain, restored):
        assert [type(module) for module in each.modules()] == [type(module) for module in pretrained.modules()]
        assert list(each.state_dict()) == list(pretrained.state_dict())
    assert base == "residual" or same_state(restored, pretrained)


@every_method
@every_base
def test_saved_and_loaded(method, base, tmp_path):
    model, pretrained = trained(method, base)
    save_adapter(model, tmp_path / "one")
    loaded = load_adapter(copy.deepcopy(pretrained), tmp_path / "one")
    assert torch.equal(loaded(X), model(X))
    assert same_state(loaded, model)
    assert repr(loaded) == repr(model)
    save_adapter(loaded, tmp_path / "two")
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    layers = json.loads((tmp_path / "one" / "lowrank_adapter.json").read_text())["layers"]
    assert {name: (layer["layer"], layer["shape"]) for name, layer in layers.items()} == {
        "tokens": ("Embedding", [11, 8]),
        "mix": ("Conv1D", [8, 12]),
        "convolution": ("Conv2d", [4, 3, 3, 3]),
        "head": ("Linear", [5, 16]),
    }


@every_method
@every_base
def test_copies_and_state(method, base):
    model, _ = trained(method, base)
    before = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(clone(X), before)
        train(clone)
        assert not torch.equal(clone(X), before)
    other = adapt(mixed(seed=1), method(3, alpha=5), targets=TARGETS, base=base)
    assert not any(other.load_state_dict(model.state_dict()))
    assert torch.equal(other(X), before)


@every_method
@every_base
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_converted(method, base, dtype):
    """Before training LoLDU and LaMDA over an intact base are the converted pretrained model."""
    pretrained = mixed()
    model = adapt(copy.deepcopy(pretrained), method(3), targets=TARGETS, base=base).to(dtype)
    expected = pretrained.to(dtype)(X)
    if base == "intact" and method in (LoLDU, LaMDA):
        assert torch.equal(model(X), expected)
    eps = max(torch.finfo(dtype).eps, EPS)
    assert close(model(X), expected, eps)
    model(X).float().square().sum().backward()
    for parameter in trainable_parameters(model):
        assert parameter.grad.dtype is dtype
        assert parameter.grad.any()
    merged = merge(model)(X)
    assert close(merged, expected, eps)


@pytest.mark.parametrize(("method", "base"), ((OLoRA, "intact"), (LaMDA, "residual")), ids=("OLoRA", "LaMDA"))
def test_compiled_in_one_graph(method, base):
    model, _ = trained(method, base)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (X, torch.cat([X, X])):
        results = []
        for call in (compiled, model):
            y = call(batch)
            results.append((y, *torch.autograd.grad(y.square().sum(), trainable_parameters(model))))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch._dynamo.reset()


@every_method
@every_base
def test_activation_checkpointing(method, base):
    model, _ = trained(method, base)
    wanted = torch.autograd.grad(model(X).square().sum(), trainable_parameters(model))
    loss = checkpoint(model, X, use_reentrant=False).square().sum()
    gradients = torch.autograd.grad(loss, trainable_parameters(model))
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_several_adapters():
    pretrained = mixed().requires_grad_(False)
    model = adapt(copy.deepcopy(pretrained), LoLDU(2), targets=TARGETS)
    adapt(model, OLoRA(3), targets=["tokens", "convolution"], name="second")
    train(model)
    before = model(X)
    assert [name for name, _ in named_adapters(model)] == [
        "tokens", "tokens", "mix", "convolution", "convolution", "head"
    ]  # fmt: skip
    assert close(merge(model)(X), before)
    with disabled(model):
        assert torch.equal(model(X), pretrained(X))
    assert torch.equal(unadapt(model)(X), pretrained(X))


def test_factors_have_the_shapes_of_the_matrices(capsys):
    model = adapt(mixed(), OLoRA(3), targets=TARGETS)
    shapes = {name: (tuple(factors.up.shape), tuple(factors.down.shape)) for name, factors in named_adapters(model)}
    assert shapes == {
        "tokens": ((8, 3), (3, 11)),
        "mix": ((12, 3), (3, 8)),
        "convolution": ((4, 3), (3, 27)),
        "head": ((5, 3), (3, 16)),
    }
    print_trainable_parameters(model)
    trained = sum(m * rank + rank * n for (m, rank), (_, n) in shapes.values())
    assert capsys.readouterr().out.startswith(f"trainable: {trained:,} of ")


def test_a_disabled_conv1d_computes_as_transformers_does():
    """To the last bit, also for rows that do not follow each other in memory."""
    torch.manual_seed(0)
    pretrained = conv1d(48, 12).requires_grad_(False)
    nn.init.normal_(pretrained.bias)
    model = adapt(nn.Sequential(copy.deepcopy(pretrained)), OLoRA(2), targets=["0"])
    x = torch.randn(20, 30, 96)[..., :48]
    with disabled(model):
        assert torch.equal(model(x), pretrained(x))
        assert torch.equal(model.bfloat16()(x.bfloat16()), pretrained.bfloat16()(x.bfloat16()))


def test_attributes_of_the_base():
    """Code that asks a layer for its sizes finds them."""
    model = adapt(mixed(), OLoRA(2), targets=TARGETS)
    assert (model.tokens.num_embeddings, model.tokens.embedding_dim, model.tokens.padding_idx) == (11, 8, 0)
    assert (model.mix.nf, model.mix.nx) == (12, 8)
    assert (model.convolution.in_channels, model.convolution.kernel_size) == (3, (3, 3))
    assert (model.head.in_features, model.head.out_features) == (16, 5)
    assert model.tokens.bias is None
    with pytest.raises(AttributeError, match="no attribute 'stride'"):
        _ = model.head.stride


PEFT_PROCESS = """
import sys, pathlib, warnings
import torch
from torch import nn
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D
class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.mix = Conv1D(12, 8)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(16, 5)
    def forward(self, tokens):
        x = self.mix(self.tokens(tokens)).unflatten(2, (3, 4)).permute(0, 2, 3, 1)
        return self.head(self.convolution(x).permute(0, 3, 1, 2).flatten(2).contiguous())
for folder in sorted(pathlib.Path({root!r}).iterdir()):
    model = Mixed()
    model.load_state_dict(torch.load(folder / "pretrained.pt"))
    # PEFT has one fan_in_fan_out for all layers and says so where it does not fit one.
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", "fan_in_fan_out")
    model = PeftModel.from_pretrained(model, folder)
    adapted = sum(isinstance(module, LoraLayer) for module in model.modules())
    x = torch.load(folder / "x.pt")
    outputs = model(x).detach()
    torch.save((outputs, model.merge_and_unload()(x).detach(), adapted), folder / "outputs.pt")
assert "lowrank_swift" not in sys.modules
"""


@pytest.mark.peft
def test_vanilla_peft_computes_the_same(tmp_path):
    models = {f"{method.__name__}-{base}": trained(method, base) for method in METHODS for base in BASES}
    for name, (model, pretrained) in models.items():
        export_lora(model, tmp_path / name)
        torch.save(pretrained.state_dict(), tmp_path / name / "pretrained.pt")
        torch.save(X, tmp_path / name / "x.pt")
    run_python(PEFT_PROCESS.format(root=str(tmp_path)))
    for name, (model, pretrained) in models.items():
        outputs, merged, adapted = torch.load(tmp_path / name / "outputs.pt")
        assert adapted == 4, name
        assert close(outputs, model(X)), name
        assert close(merged, model(X)), name
        assert not close(outputs, pretrained(X)), name


def test_exported_keys_and_shapes(tmp_path):
    from safetensors.torch import load_file

    model, _ = trained(LoLDU, "intact")
    export_lora(model, tmp_path)
    prefix = "base_model.model."
    assert {key: tuple(tensor.shape) for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items()} == {
        f"{prefix}tokens.lora_embedding_A": (3, 11),
        f"{prefix}tokens.lora_embedding_B": (8, 3),
        f"{prefix}mix.lora_A.weight": (3, 8),
        f"{prefix}mix.lora_B.weight": (12, 3),
        f"{prefix}convolution.lora_A.weight": (3, 3, 3, 3),
        f"{prefix}convolution.lora_B.weight": (4, 3, 1, 1),
        f"{prefix}head.lora_A.weight": (3, 16),
        f"{prefix}head.lora_B.weight": (5, 3),
    }
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    export_lora(adapt(mixed(), LoLDU(2), targets=["head"]), tmp_path / "linear")
    assert json.loads((tmp_path / "linear" / "adapter_config.json").read_text())["fan_in_fan_out"] is False


@pytest.mark.parametrize(
    "options", ({"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}), ids=("dilation", "padding_mode")
)
def test_what_lora_of_peft_does_not_compute_is_not_exported(options, tmp_path):
    model = adapt(nn.Sequential(nn.Conv2d(3, 4, 3, **options)), PiSSA(2), targets=["0"])
    with pytest.raises(ValueError, match=r"^0: targets: expected convolutions with dilation \(1, 1\) and padding_mode"):
        export_lora(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("layer", "message"),
    (
        (nn.Conv2d(4, 4, 3, groups=2), "^0: groups: expected 1, got 2"),
        (nn.Embedding(5, 4, max_norm=1.0), r"^0: max_norm: expected None, .* got 1\.0"),
        (type("Scaled", (nn.Embedding,), {})(5, 4), "got Scaled at '0'"),
        (nn.Conv1d(4, 4, 3), "got Conv1d at '0'"),
        (nn.EmbeddingBag(4, 4), "got EmbeddingBag at '0'"),
        (type("Conv1D", (nn.Module,), {})(), "got Conv1D at '0'"),
    ),
    ids=("groups", "max_norm", "subclass", "Conv1d", "EmbeddingBag", "another Conv1D"),
)
@every_base
def test_layers_that_are_refused(layer, message, base):
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match=message):
        adapt(model, OLoRA(2), targets=["0"], base=base)
    assert model[0] is layer
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("case", TYPES, ids=lambda case: case.name)
@every_base
def test_bad_weights_and_ranks(case, base):
    model = nn.Sequential(case.layer())
    with pytest.raises(ValueError, match=r"^0: rank: expected 1 <= rank <= min\(m, n\) = [67], got 8"):
        adapt(model, OLoRA(8), targets=["0"], base=base)
    model[0].weight.data.view(-1)[3] = torch.nan
    with pytest.raises(ValueError, match=r"^0: "):
        adapt(model, OLoRA(2), targets=["0"], base=base)
    assert type(model[0]) is type(case.layer())


def test_tied_weights():
    """An intact base may be shared; a residual would change the other layer."""
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
    model[1].weight = model[0].weight
    held = model[0].weight.detach().clone()
    for target, other in (("0", "1"), ("1", "0")):
        with pytest.raises(ValueError, match=rf"'{target}\.weight', which shares its memory with {other}\.weight"):
            adapt(model, OLoRA(2), targets=[target], base="residual")
    adapt(model, OLoRA(2), targets=["0"])
    shift_parameters(model)
    for keep_base in (True, False):
        merge(model, keep_base=keep_base)
        assert torch.equal(model[1].weight, held)
        assert not torch.equal(model[0].weight, held)
        if keep_base:
            unmerge(model)


def test_a_saved_adapter_fits_one_type_of_layer(tmp_path):
    square = nn.Sequential(nn.Linear(6, 6, bias=False))
    save_adapter(adapt(square, OLoRA(2), targets=["0"]), tmp_path / "linear")
    with pytest.raises(ValueError, match=r"^0: weight: expected the saved adapter's layer type Linear, got Conv1D"):
        load_adapter(nn.Sequential(conv1d(6, 6)), tmp_path / "linear")
    save_adapter(adapt(nn.Sequential(nn.Conv2d(9, 4, 1)), OLoRA(2), targets=["0"]), tmp_path / "convolution")
    with pytest.raises(ValueError, match=r"shape \[4, 9, 1, 1\], got \[4, 1, 3, 3\]"):
        load_adapter(nn.Sequential(nn.Conv2d(1, 4, 3)), tmp_path / "convolution")


def test_bad_indices():
    model = adapt(nn.Sequential(nn.Embedding(5, 4)), OLoRA(2), targets=["0"])
    with pytest.raises(IndexError):
        model(torch.tensor([5]))
    with pytest.raises(RuntimeError, match="indices"):
        model(torch.tensor([1.0]))
