# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""The public functions on CUDA tensors give what they give on the CPU, signs included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lowrank_swift as lrs
import pytest
import torch
from gpu_support import DEVICE, assert_close, cuda_only, on_device
from support import DTYPES, LIMIT, SHAPES, SVD_LIMIT, views, weight

pytestmark = pytest.mark.gpu

LARGE = [(1024, 768, 32), (600, 1500, 64)]


def panels() -> dict[str, torch.Tensor]:
    """Weights whose first columns leave the signs of a QR open, or are hard for a Cholesky factorisation."""
    square, tall = weight(24, 24), weight(70, 40)
    steps = 2.0 ** (-4.0 * torch.arange(40))
    return {
        "identity": torch.eye(24),
        "negative identity": -torch.eye(24),
        "triangular": square.triu(),
        "sparse": torch.where(torch.arange(70 * 40).reshape(70, 40) % 3 == 0, tall, 0),
        "ill-conditioned": tall * steps,
        "zero columns": torch.where(torch.arange(40) % 4 == 1, 0, tall),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_factorizations(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, columns, rank = shape
    matrix = weight(rows, columns, dtype)
    array = on_device(matrix)
    for got, expected in (
        (lrs.qr(array, rank), lrs.qr(matrix, rank)),
        (lrs.ldu(array, rank), lrs.ldu(matrix, rank)),
    ):
        for a, b in zip(got, expected, strict=True):
            assert_close(a, b)
    # Vectors are determined to the tolerance over the gap; values and what they span to the tolerance.
    u, s, vh = lrs.svd(array, rank, tol=1e-5)[:3]
    assert_close(s, lrs.svd(matrix, rank, tol=1e-5).S, limit=SVD_LIMIT)
    residual = array.double() @ vh.double().mT - u.double() * s.double()
    assert float(residual.norm(dim=0).max()) <= 2e-5 * float(s[0])
    spectrum = lrs.spectrum(array, rank)
    assert_close(spectrum.singular_values, lrs.spectrum(matrix, rank).singular_values, limit=SVD_LIMIT)


@pytest.mark.parametrize("name", panels())
def test_panels(name: str) -> None:
    matrix = panels()[name]
    for rank in (1, 7, min(matrix.shape)):
        q, r = lrs.qr(on_device(matrix), rank)
        product = q.double() @ r.double()
        reference = lrs.qr(matrix, rank)
        assert_close(product.float(), (reference.Q.double() @ reference.R.double()).float(), reference=matrix)
        assert_close(q.T @ q, torch.eye(rank), limit=SVD_LIMIT)
        if name not in ("ill-conditioned", "zero columns"):
            assert_close(q, reference.Q)
        for a, b in zip(lrs.ldu(on_device(matrix), rank), lrs.ldu(matrix, rank), strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("layout", ["transposed", "row stride", "offset", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    view = views(weight(40, 60, dtype))[layout]
    for a, b in zip(lrs.qr(on_device(view), 9), lrs.qr(view, 9), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("method", ["olora", "loldu", "lamda", "pissa", "lora_xs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(31, 33, 7), (48, 130, 48), *LARGE], ids=str)
def test_starting_factors(method: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, columns, rank = shape
    matrix = weight(rows, columns, dtype, seed=1)
    array = on_device(matrix)
    options: dict[str, Any] = {} if method in ("olora", "loldu") else {"tol": 1e-6}
    got, expected = (getattr(lrs, method)(w, rank, scale=0.5, **options) for w in (array, matrix))
    if method in ("olora", "loldu"):
        for a, b in zip(got[1:4], expected[1:4], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert_close(a, b)
    else:
        # A pair of close singular values may turn in its plane; the product is determined.
        assert_close(got.delta(), expected.delta(), reference=matrix, limit=10 * SVD_LIMIT)
    assert torch.equal(array.cpu(), matrix)
    if not hasattr(lrs, f"{method}_"):
        return
    in_place = getattr(lrs, f"{method}_")(array, rank, scale=0.5, **options)
    assert_close(array, (matrix.double() - in_place.delta().double().cpu()).to(dtype), reference=matrix)
    lrs.merge_(array, in_place)
    assert_close(array, matrix)
    lrs.unmerge_(array, in_place)
    assert_close(array, (matrix.double() - in_place.delta().double().cpu()).to(dtype), reference=matrix)


@pytest.mark.parametrize("core", ["none", "vector", "matrix"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 33, 2048])
def test_adapters(core: str, dtype: torch.dtype, tokens: int) -> None:
    m, n, r = 96, 72, 8
    middle = {"none": None, "vector": weight(1, r, dtype, 4)[0], "matrix": weight(r, r, dtype, 4)}[core]
    factors = lrs.Factors("olora", weight(m, r, dtype, 2), middle, weight(r, n, dtype, 3), 0.5)
    arrays = factors._replace(**{name: on_device(getattr(factors, name)) for name in ("up", "core", "down")})
    x, out, grad = weight(tokens, n, dtype, 5), weight(tokens, m, dtype, 6), weight(tokens, m, dtype, 7)
    device_x, device_out = on_device(x), on_device(out)
    h = lrs.adapter_forward(device_x, arrays, device_out)
    expected_h = lrs.adapter_forward(x, factors, out)
    assert_close(device_out, out)
    assert_close(h, expected_h)
    got = lrs.adapter_backward(on_device(grad), device_x, h, arrays, frozen_columns=2)
    expected = lrs.adapter_backward(grad, x, expected_h, factors, frozen_columns=2)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b)


@pytest.mark.parametrize("factor_dtype", [None, torch.float32], ids=["own", "float32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_gradients(dtype: torch.dtype, factor_dtype: torch.dtype | None) -> None:
    """Of 32 MiB and more, which one kernel reads for two products where it has few columns to multiply with."""
    tokens, m, n, r = 4200, 4096, 64, 24 if dtype.itemsize == 2 else 8
    factors = lrs.Factors(
        "olora", weight(m, r, factor_dtype or dtype, 2), None, weight(r, n, factor_dtype or dtype, 3), 0.5
    )
    arrays = factors._replace(**{name: on_device(getattr(factors, name)) for name in ("up", "down")})
    x, h, grad = weight(tokens, n, dtype, 5), weight(tokens, r, dtype, 6), weight(tokens, m, dtype, 7)
    got = lrs.adapter_backward(on_device(grad), on_device(x), on_device(h), arrays)
    again = lrs.adapter_backward(on_device(grad), on_device(x), on_device(h), arrays)
    expected = lrs.adapter_backward(grad, x, h, factors)
    for a, b, c in zip(got, expected, again, strict=True):
        if b is not None:
            assert_close(a, b)
            assert torch.equal(a, c)


@cuda_only
def test_work_follows_the_current_stream() -> None:
    """A slow product on the stream before, whose result the call has to wait for."""
    matrix = weight(1024, 1024)
    expected = lrs.qr(matrix, 16)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        array = on_device(torch.zeros_like(matrix))
        slow = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            slow = torch.tanh(slow @ slow)
        array.copy_(matrix, non_blocking=True)
        got = lrs.qr(array, 16)
    torch.cuda.current_stream().wait_stream(stream)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


@cuda_only
def test_forward_and_backward_in_a_graph() -> None:
    lrs.warmup(DEVICE)
    m, n, r, tokens = 96, 72, 8, 64
    factors = lrs.Factors(
        "olora", *(on_device(weight(*s, seed=i)) for i, s in enumerate([(m, r), (r, r), (r, n)])), 0.5
    )
    x, out, grad = (on_device(weight(tokens, size, seed=i)) for i, size in ((5, n), (6, m), (7, m)))
    start = out.clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        h = lrs.adapter_forward(x, factors, out)
        gradients = lrs.adapter_backward(grad, x, h, factors)
    for seed in (8, 9):
        x.copy_(weight(tokens, n, seed=seed))
        out.copy_(start)
        graph.replay()
        torch.cuda.synchronize()
        host = factors._replace(**{name: getattr(factors, name).cpu() for name in ("up", "core", "down")})
        expected = start.cpu()
        expected_h = lrs.adapter_forward(x.cpu(), host, expected)
        assert_close(out, expected)
        for a, b in zip(gradients, lrs.adapter_backward(grad.cpu(), x.cpu(), expected_h, host), strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeated_calls_are_equal(dtype: torch.dtype) -> None:
    """Bit for bit: sums have a fixed order."""
    matrix = on_device(weight(600, 1500, dtype))
    for call in (
        lambda: lrs.qr(matrix, 32),
        lambda: lrs.ldu(matrix, 32),
        lambda: lrs.svd(matrix, 32)[:3],
        lambda: lrs.spectrum(matrix, 16)[:1],
    ):
        first = call()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(call(), first, strict=True))


@pytest.fixture
def tf32() -> Iterator[None]:
    """Lets torch, and nobody else, round float32 operands to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("tf32")
def test_float32_is_never_rounded_to_tf32() -> None:
    size, rank = 64, 16
    matrix, x = weight(size, size), weight(size, size, seed=1)
    for a, b in zip(lrs.qr(on_device(matrix), rank), lrs.qr(matrix, rank), strict=True):
        assert_close(a, b, limit=1)
    factors = lrs.olora(matrix, rank)
    arrays = factors._replace(up=on_device(factors.up), down=on_device(factors.down))
    out, device_out = torch.zeros(size, size), on_device(torch.zeros(size, size))
    h, device_h = lrs.adapter_forward(x, factors, out), lrs.adapter_forward(on_device(x), arrays, device_out)
    assert_close(device_out, out, limit=1)
    got, expected = (
        lrs.adapter_backward(grad, inputs, kept, each)
        for grad, inputs, kept, each in ((device_out, on_device(x), device_h, arrays), (out, x, h, factors))
    )
    for name in ("x", "down", "up"):
        assert_close(getattr(got, name), getattr(expected, name), limit=1)
    assert_close(lrs.merge_(on_device(matrix), arrays), lrs.merge_(matrix.clone(), factors), limit=1)


def test_ranks() -> None:
    weights = {str(i): weight(48, 20 + 10 * i, seed=i) for i in range(4)}
    ranks = lrs.allocate_ranks({name: on_device(each) for name, each in weights.items()}, 6, progress=False)
    assert dict(ranks) == dict(lrs.allocate_ranks(weights, 6, progress=False))


@cuda_only
def test_memory_is_torchs_own_and_comes_back() -> None:
    matrix = on_device(weight(512, 512))
    lrs.qr(matrix, 16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(20):
        lrs.qr(matrix, 16)
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() > before + 2 * 4 * 512 * 16


@cuda_only
def test_warmup() -> None:
    for device in ("cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0), 0):
        lrs.warmup(device)
    with pytest.raises(lrs.BackendUnavailableError, match="CUDA device 63 is not there"):
        lrs.warmup("cuda:63")
    with pytest.raises(ValueError, match="CUDA device"):
        lrs.warmup("cpu")


@cuda_only
def test_arrays_of_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    matrix = weight(40, 60)
    array = cupy.asarray(matrix.numpy())
    for a, b in zip(lrs.qr(array, 9), lrs.qr(matrix, 9), strict=True):
        assert isinstance(a, cupy.ndarray)
        assert_close(torch.from_dlpack(a), b)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        factors = lrs.olora_(array, 9)
        difference = array + factors.up @ factors.down
    stream.synchronize()
    assert_close(torch.from_dlpack(difference), matrix)
    out = cupy.zeros((5, 40), dtype=cupy.float32)
    x = weight(5, 60, seed=1)
    h = lrs.adapter_forward(cupy.asarray(x.numpy()), factors, out)
    assert isinstance(h, cupy.ndarray)
    assert_close(torch.from_dlpack(out), x @ torch.from_dlpack(factors.delta()).cpu().mT, limit=LIMIT)


@cuda_only
def test_arrays_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    # It takes most of the memory otherwise.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("jax has no GPU")
    matrix = weight(40, 60)
    array = jax.numpy.asarray(matrix.numpy())
    for a, b in zip(lrs.qr(array, 9), lrs.qr(matrix, 9), strict=True):
        assert isinstance(a, jax.Array)
        assert_close(torch.from_dlpack(a), b)
    assert isinstance(lrs.olora(array, 9).delta(), jax.Array)


@cuda_only
def test_errors() -> None:
    """Each says what it is about, writes nothing, and leaves a device that goes on working."""
    matrix = weight(9, 7)
    array = on_device(matrix)
    factors = lrs.Factors("olora", weight(9, 3), None, on_device(weight(3, 7)), 1.0)
    with pytest.raises(BufferError, match="up: expected memory on CUDA device"):
        lrs.merge_(array, factors)
    for rank in (0, 8, 2**40):
        with pytest.raises(ValueError, match="rank: expected 1 <= rank <= min"):
            lrs.qr(array, rank)
    with pytest.raises(TypeError, match="weight: expected"):
        lrs.qr(torch.ones(9, 7, dtype=torch.int32, device=DEVICE), 3)
    with pytest.raises(ValueError, match="2 dimensions"):
        lrs.qr(array[None], 3)
    square = on_device(weight(7, 7))
    with pytest.raises(BufferError, match="overlap"):
        lrs.merge_(square, lrs.Factors("olora", square[:, :2], None, on_device(weight(2, 7)), 1.0))
    assert torch.equal(square.cpu(), weight(7, 7))
    for value in (torch.nan, torch.inf):
        bad = matrix.clone()
        bad[3, 2] = value
        kept = on_device(bad)
        for call in (lrs.qr, lrs.olora_, lrs.svd):
            with pytest.raises(ValueError, match=r"weight: expected finite values.*\[3, 2\]"):
                call(kept, 3)
        assert torch.equal(kept.cpu().nan_to_num(), bad.nan_to_num())
    for a, b in zip(lrs.qr(array, 3), lrs.qr(matrix, 3), strict=True):
        assert_close(a, b)
