# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Every type of layer: what it computes, its gradients, and what a training step keeps and asks of torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from layer_cases import CASES, TYPES, absolute, adapted, every_type, oracle_gradients
from lowrank_swift.torch import GradualFreeze, LaMDA, LoLDU, OLoRA, PiSSA, adapt, trainable_parameters
from test_torch_cost import NO_ARITHMETIC, Watch, bytes_kept
from torch import Tensor, nn
from torch.func import functional_call
from torch_support import (
    LIMIT,
    delta,
    error_ratio,
    every_base,
    every_method,
    only_adapter,
    only_factors,
    shift_parameters,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
every_case_and_dtype = pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in (DTYPES if case in TYPES else DTYPES[:1])],
    ids=lambda value: getattr(value, "name", str(value)),
)
SIZE = 60  # The largest number of terms in a sum: positions of an image.


@every_case_and_dtype
@every_method
@every_base
def test_the_pretrained_function_is_unchanged(case, method, base, dtype):
    layer, pretrained = adapted(case, method, base, dtype)
    x = case.inputs(dtype)
    before, after = pretrained(x), layer(x)
    assert (after.dtype, after.stride()) == (before.dtype, before.stride())
    if base == "intact":
        assert torch.equal(layer.weight, pretrained.weight)
        assert layer.weight.stride() == pretrained.weight.stride()
        assert torch.equal(after, before)
        return
    bound = case.bound(pretrained, x, only_factors(layer))
    assert error_ratio(after, before, bound, SIZE, torch.finfo(dtype).eps) < LIMIT


@every_case_and_dtype
@every_method
@every_base
def test_forward_and_every_gradient_equal_the_oracle(case, method, base, dtype):
    layer, pretrained = adapted(case, method, base, dtype)
    start = only_factors(layer)
    shift_parameters(layer)
    now = only_factors(layer)
    x = case.inputs(dtype)
    x.requires_grad_(x.is_floating_point())
    assert x.requires_grad or x.unique().numel() < x.numel()
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    y.backward(grad)

    eps = torch.finfo(dtype).eps
    bound = case.bound(pretrained, x.detach(), start, now)
    expected = case.oracle(pretrained, x.detach(), delta(now) - delta(start))
    assert error_ratio(y, expected, bound, SIZE, eps) < LIMIT
    assert (delta(now) - delta(start)).abs().max() > 0.1
    expected = oracle_gradients(case, pretrained, x, start, now, grad)
    positive = case.layer().double()
    positive.load_state_dict({name: tensor.double().abs() for name, tensor in pretrained.state_dict().items()})
    ends = absolute(start)._replace(scale=-abs(start.scale)), absolute(now)
    bounds = oracle_gradients(case, positive, x.abs(), *ends, grad.abs())
    leaves = dict(only_adapter(layer).named_parameters()) | ({"x": x} if x.requires_grad else {})
    assert leaves.keys() - {"x"} == method.trains
    for name, leaf in leaves.items():
        wanted, bound = expected[name], bounds[name]
        if leaf.dim() == 1:
            wanted, bound = wanted.diagonal(), bound.diagonal()
        assert leaf.grad.dtype == leaf.dtype, name
        assert error_ratio(leaf.grad, wanted, bound, SIZE, eps) < LIMIT, name


@every_type
@every_method
@every_base
def test_gradcheck(case, method, base):
    layer, _ = adapted(case, method, base, torch.float64, rank=2)
    shift_parameters(layer)
    names = [name for name, parameter in layer.named_parameters() if parameter.requires_grad]
    values = [layer.get_parameter(name).detach().clone().requires_grad_() for name in names]
    x = case.inputs(torch.float64)
    x.requires_grad_(x.is_floating_point())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


@every_type
@every_method
@every_base
def test_training_leaves_an_intact_base_alone_and_changes_the_output(case, method, base):
    layer, pretrained = adapted(case, method, base)
    x = case.inputs()
    held = [tensor.detach().clone() for tensor in layer.base.parameters()]
    before = layer(x)
    optimizer = torch.optim.AdamW(trainable_parameters(layer), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.base.parameters(), held, strict=True))
    assert not torch.allclose(layer(x), before, rtol=1e-3)
    if base == "intact":
        assert torch.equal(layer.base.weight, pretrained.weight)


@every_type
@every_base
def test_gradual_freezing(case, base):
    layer, _ = adapted(case, LaMDA, base)
    x = case.inputs()
    up = only_adapter(layer).up
    optimizer = torch.optim.AdamW(trainable_parameters(layer), lr=1e-2, weight_decay=0.1)
    freeze = GradualFreeze(layer, total_steps=3, fraction=1.0, optimizer=optimizer)
    for t in range(3):
        held = up.detach().clone()
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        assert not up.grad[:, :t].any()
        optimizer.step()
        freeze.step()
        assert torch.equal(up[:, :t], held[:, :t])
        assert not torch.equal(up[:, t:], held[:, t:])
    assert not up.requires_grad


@pytest.mark.parametrize(
    ("make", "shapes"),
    (
        (lambda: nn.Embedding(11, 7), ((), (4,), (0,), (2, 0), (2, 3, 2))),
        (lambda: nn.Conv2d(3, 7, 2), ((3, 4, 5), (1, 3, 4, 5), (0, 3, 4, 5), (3, 3, 2, 2))),
    ),
    ids=("Embedding", "Conv2d"),
)
@every_method
@every_base
def test_inputs_of_any_shape(make, shapes, method, base):
    layer = adapt(nn.Sequential(make()), method(2), targets=["0"], base=base)[0]
    shift_parameters(layer)
    plain = make()
    for shape in shapes:
        is_index = isinstance(plain, nn.Embedding)
        x = torch.randint(11, shape) if is_index else torch.randn(shape)
        y = layer(x)
        assert y.shape == plain(x).shape
        gradients = torch.autograd.grad(y.sum(), trainable_parameters(layer))
        assert all(gradient.isfinite().all() for gradient in gradients)
        if is_index:
            assert torch.equal(y, layer(x.int()))
            assert torch.equal(y.reshape(-1, 7), layer(x.reshape(-1)))
    strided = torch.randint(11, (6, 4)).T[:, ::2] if is_index else torch.randn(2, 4, 5, 3).permute(0, 3, 1, 2)[:, :, 1:]
    expected = layer(strided.contiguous())
    assert error_ratio(layer(strided), expected, expected, SIZE, torch.finfo(torch.float32).eps) < LIMIT


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("needs_input_gradient", (False, True))
@every_type
@every_method
@every_base
def test_bytes_kept_for_the_backward(case, method, base, dtype, needs_input_gradient):
    """H, and the input only where ``down`` trains: an embedding's are integers of 8 bytes."""
    layer, _ = adapted(case, method, base, dtype)
    x = case.inputs(dtype)
    x.requires_grad_(needs_input_gradient and x.is_floating_point())
    positions = layer(x).numel() // 7
    kept = positions * 3 * dtype.itemsize + (x.nbytes if "down" in method.trains else 0)
    assert bytes_kept(layer, x) == kept


OPERATION = {"Linear": "addmm", "Conv1D": "addmm", "Embedding": "embedding", "Conv2d": "convolution"}
VIEWS = NO_ARITHMETIC | {
    "promote_types",
    "permute",
    "unsqueeze",
    "squeeze",
    "expand",
    "slice",
    "select",
    "zeros",
    "new_zeros",
}


# The gradient of an embedding's ``down`` has its columns together and gets its Parameter's layout when it is stored.
RELAYOUT = {"new_empty_strided", "copy_"}


@every_type
@every_method
@every_base
def test_a_training_step_computes_only_projections_in_torch(case, method, base):
    """The output is added to where it is; going back, a convolution's gradient is copied to have its channels last."""
    layer, _ = adapted(case, method, base)
    x = case.inputs()
    with Watch() as forward:
        y = layer(x)
    grad = torch.randn(y.shape)
    with Watch() as backward:
        y.backward(grad)
    # Linear layers project in their own operator. Two factors that train take a second projection for their start, and
    # the differences of the projections and of the factors.
    projections = differences = 0
    if case.name not in ("Linear", "Conv1D"):
        projections = sum(1 if term.start_down is None else 2 for term in layer.terms())
        differences = 2 * sum(term.start_down is not None for term in layer.terms())
    assert forward.seen.pop(OPERATION[case.name]) == 1 + projections
    assert forward.seen.pop("sub", 0) == differences
    gradients = {"Embedding": "embedding_dense_backward", "Conv2d": "convolution_backward"}
    count = int("down" in method.trains) if case.name in gradients else 0
    assert backward.seen.pop(gradients.get(case.name), 0) == count
    # The gradient and h, for the one term that trains.
    assert backward.seen.pop("clone", 0) <= (2 if case.name == "Conv2d" else 0)
    for watch in (forward, backward):
        assert watch.seen.pop("lowrank_swift") > 0
        assert set(watch.seen) <= VIEWS | (RELAYOUT if case.name == "Embedding" and watch is backward else set())


@every_type
@every_method
@every_base
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(case, method, base, dtype):
    layer, pretrained = adapted(case, method, base)
    shift_parameters(layer)
    x = case.inputs()
    x.requires_grad_(x.is_floating_point())
    leaves = [*trainable_parameters(layer), *([x] if x.requires_grad else [])]
    exact = layer(x)
    wanted = torch.autograd.grad(exact.sum(), leaves)
    with torch.autocast("cpu", dtype):
        y, expected_dtype = layer(x), pretrained(x).dtype
    assert y.dtype is expected_dtype
    gradients = torch.autograd.grad(y.sum(), leaves)
    for actual, expected in zip((y, *gradients), (exact, *wanted), strict=True):
        assert error_ratio(actual, expected, expected, SIZE, torch.finfo(dtype).eps) < LIMIT
    assert all(a.dtype == b.dtype for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("sparse", (False, True))
@pytest.mark.parametrize("base", ("intact", "residual"))
@pytest.mark.parametrize("method", (OLoRA, LoLDU, LaMDA, PiSSA))
def test_the_padding_row_stays_what_it_is(method, base, sparse):
    """As torch's own layer leaves it, also where it is not zero, in training, merging and export alike."""
    embedding = partial(nn.Embedding, 11, 7, padding_idx=2, sparse=sparse)
    model = adapt(nn.Sequential(embedding(_weight=torch.randn(11, 7))), method(3), targets=["0"], base=base)
    row = model[0].weight[2].detach().clone()
    x = torch.tensor([2, 1, 2, 5, 0])
    others = model(x)
    optimizer = torch.optim.AdamW(trainable_parameters(model), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    after = model(x)
    assert torch.equal(after[0], row)
    assert torch.equal(after[2], row)
    assert not torch.equal(after[1], others[1])
    assert not model[0].adapters["default"].down[:, 2].any()


@every_base
def test_gradients_by_frequency(base):
    """Torch divides the gradient of a row by how often its index occurs, and here that of a column of ``down``."""
    model = adapt(nn.Sequential(nn.Embedding(11, 7, scale_grad_by_freq=True)), OLoRA(3), targets=["0"], base=base)
    shift_parameters(model)
    x, grad = torch.tensor([4, 1, 4, 4]), torch.randn(4, 7)
    adapter = only_adapter(model[0])
    rows = adapter.down.detach().T.clone().requires_grad_()
    h = nn.functional.embedding(x, rows, scale_grad_by_freq=True)
    (h @ adapter.up.detach().T).backward(grad)
    model(x).backward(grad)
    assert error_ratio(adapter.down.grad, rows.grad.T, rows.grad, 7, torch.finfo(torch.float32).eps) < LIMIT
    assert rows.grad[4].any()


@pytest.mark.parametrize("make", (partial(nn.Linear, 2, 2, bias=False), partial(nn.Conv2d, 2, 2, 1, bias=False)))
def test_a_trained_down_is_not_rounded_to_the_base(make):
    """1 + 2^-10 is 1 in bfloat16; beside -1 the difference is all that is left."""
    model = adapt(nn.Sequential(make()).bfloat16(), OLoRA(1), targets=["0"], base="residual")
    layer = model[0]
    layer.base.weight.data.zero_()
    with torch.no_grad():
        layer.adapters["default"].up.fill_(1)
        layer.adapters["default"].down.copy_(torch.tensor([[1 + 2**-10, -1.0]]))
    x = torch.ones(1, 2) if isinstance(layer.base, nn.Linear) else torch.ones(1, 2, 1, 1)
    assert (layer(x.bfloat16()) == 2**-10).all()
