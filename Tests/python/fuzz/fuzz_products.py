# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Random calls of the forward, the backward, the effective up-projection and the base's product."""

from __future__ import annotations

from typing import Any

import lowrank_swift as lrs
import numpy as np
import torch
from fuzz_arrays import FLOATS, Draw, choose, integers, side, tensor
from fuzz_calls import Arguments, Call, adapter_arguments, as_factors
from fuzz_checks import check_sum, dense, is_tame, require_shapes
from lowrank_swift import _native
from support import float64

FACTORS = ("down", "core", "up")


def _norm(*arrays: np.ndarray) -> float:
    result = 1.0
    for array in arrays:
        result *= float(np.linalg.norm(array))
    return result


def _parts(new: Arguments) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rank = new["up"].shape[1]
    down = np.eye(rank) if new["down"] is None else float64(new["down"])  # Without one x is h.
    return down, dense(new["core"], rank), float64(new["up"]), float(new["scale"])


def _flat(array: Any) -> np.ndarray:
    values = float64(array)
    return values.reshape(int(np.prod(values.shape[:-1])), values.shape[-1])


def _check_forward(old: Arguments, new: Arguments, h: Any) -> None:
    down, core, up, scale = _parts(new)
    h = old["x"] if h is None else h
    require_shapes({"h": (h, (*new["x"].shape[:-1], down.shape[0]))})
    assert tuple(new["out"].shape) == (*new["x"].shape[:-1], up.shape[0]), "the shape of out"
    if not is_tame(old["x"], new["down"], new["core"], new["up"], scale=scale) or not is_tame(old["out"]):
        return
    x = _flat(old["x"])
    operands = [new[name] for name in ("x", *FACTORS)]
    check_sum(
        h, np.zeros(_flat(h).shape).reshape(h.shape), (x @ down.T).reshape(h.shape), _norm(x, down), operands, "h"
    )
    delta = scale * x @ down.T @ core.T @ up.T
    size = abs(scale) * _norm(x, down, core, up)
    if not np.isfinite(float64(h)).all():  # An overflow of h's dtype reaches out.
        return
    check_sum(new["out"], old["out"], delta.reshape(new["out"].shape), size, [*operands, h], "out")


def forward(draw: Draw) -> Call:
    adapter = adapter_arguments(draw)
    leading = tuple(draw(integers(0, 5)) for _ in range(draw(integers(0, 2)))) or (side(draw, 0),)
    dtypes = (choose(draw, FLOATS),)
    arguments = {
        "x": tensor(draw, (*leading, adapter["down"].shape[1]), dtypes),
        "out": tensor(draw, (*leading, adapter["up"].shape[0]), dtypes),
    } | adapter
    for name in ("x", "out"):  # Leading dimensions must flatten without a copy.
        if arguments[name].ndim > 2:
            arguments[name] = (
                arguments[name].copy() if isinstance(arguments[name], np.ndarray) else (arguments[name].contiguous())
            )
    return Call(
        lambda **a: lrs.adapter_forward(a["x"], as_factors(a), a["out"]),
        arguments,
        _check_forward,
        changed=frozenset(["out"]),
    )


def native_forward(draw: Draw) -> Call:
    adapter, tokens, from_h = adapter_arguments(draw), side(draw, 0), choose(draw, (False, True))
    rank = adapter["up"].shape[1]
    adapter |= {"down": None} if from_h else {}
    arguments = {"x": tensor(draw, (tokens, rank if from_h else adapter["down"].shape[1]))} | adapter
    arguments["out"] = tensor(draw, (tokens, adapter["up"].shape[0]))
    arguments["out_h"] = None if from_h else tensor(draw, (tokens, rank))
    return Call(
        lambda **a: _native.adapter_forward(*a.values()),
        arguments,
        lambda old, new, result: _check_forward(old, new, new["out_h"]),
        outputs=frozenset(["out_h"]),
        changed=frozenset(["out"]),
    )


def _check_backward(old: Arguments, new: Arguments, gradients: dict[str, Any], start: Any = None) -> None:
    down, core, up, scale = _parts(new)
    names = ("grad", "x", "h", *FACTORS)
    if not is_tame(*[new[name] for name in names if new[name] is not None], scale=scale):
        return
    grad = _flat(new["grad"])
    x = None if new["x"] is None else _flat(new["x"])
    h = None if new["h"] is None else _flat(new["h"])
    operands = [new[name] for name in names]
    frozen = int(new["frozen_columns"])
    expected: dict[str, tuple[np.ndarray, float]] = {}
    p = scale * grad @ up
    terms = abs(scale) * _norm(grad, up)
    expected["x"] = (p @ core @ down, terms * _norm(core, down))
    if h is not None:
        between = h @ core.T
        between[:, :frozen] = 0
        expected["up"] = (scale * grad.T @ between, abs(scale) * _norm(grad, h, core))
        square = p.T @ h
        is_diagonal = new["core"] is not None and new["core"].ndim == 1
        expected["core"] = (np.diag(square) if is_diagonal else square, terms * _norm(h))
    if x is not None:
        expected["down"] = ((p @ core).T @ x, terms * _norm(core, x))
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        value, size = expected[name]
        before = np.zeros(value.shape) if name != "x" or start is None else start
        assert float64(gradient).size == value.size, f"shape of the gradient of {name}"
        flat = gradient.reshape(value.shape)
        check_sum(flat, before, value, size, operands, f"gradient of {name}")
        if name == "up":
            assert not float64(gradient)[:, :frozen].any(), "frozen columns"


def backward(draw: Draw) -> Call:
    adapter, tokens = adapter_arguments(draw, (torch.float32, torch.float64)), side(draw, 0)
    rows, columns, rank = adapter["up"].shape[0], adapter["down"].shape[1], adapter["up"].shape[1]
    has_x = choose(draw, (False, True))
    possible = ["x", "up"] + ["down"] * has_x + ["core"] * (adapter["core"] is not None)
    arguments = {
        "grad": tensor(draw, (tokens, rows)),
        "x": tensor(draw, (tokens, columns)) if has_x else None,
        "h": tensor(draw, (tokens, rank)),
        "need": choose(draw, (None, [name for name in possible if choose(draw, (False, True))])),
        "frozen_columns": draw(integers(0, rank)),
    } | adapter

    def invoke(**a: Any) -> Any:
        return lrs.adapter_backward(
            a["grad"], a["x"], a["h"], as_factors(a), need=a["need"], frozen_columns=a["frozen_columns"]
        )

    return Call(invoke, arguments, lambda old, new, result: _check_backward(old, new, result._asdict()))


def native_backward(draw: Draw) -> Call:
    adapter, tokens = adapter_arguments(draw), side(draw, 0)
    (rows, rank), from_h = adapter["up"].shape, choose(draw, (False, True))
    columns = rank if from_h else adapter["down"].shape[1]
    adapter |= {"down": None} if from_h else {}
    wide = (torch.float32, torch.float64)

    def sometimes(shape: tuple[int, ...]) -> Any:
        return tensor(draw, shape, wide) if choose(draw, (False, True)) else None

    core = adapter["core"]
    arguments = {
        "grad": tensor(draw, (tokens, rows)),
        "x": None if from_h else tensor(draw, (tokens, columns)),
        "h": tensor(draw, (tokens, rank)),
        **adapter,
        "frozen_columns": draw(integers(0, rank)),
        "out_x": sometimes((tokens, columns)),
        "out_down": None if from_h else sometimes((rank, columns)),
        "out_core": None if core is None else sometimes(tuple(core.shape)),
        "out_up": sometimes((rows, rank)),
    }

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        gradients = {name: new[f"out_{name}"] for name in ("x", "down", "core", "up")}
        _check_backward(old, new, gradients, start=old["out_x"])

    outputs = frozenset(["out_down", "out_core", "out_up"])
    return Call(
        lambda **a: _native.adapter_backward(*a.values()),
        arguments,
        check,
        outputs=outputs,
        changed=frozenset(["out_x"]),
    )


def _change_arguments(draw: Draw) -> Arguments:
    adapter = adapter_arguments(draw)
    down, up = adapter["down"], adapter["up"]
    starts = {"start_down": tensor(draw, tuple(down.shape)), "start_up": tensor(draw, tuple(up.shape))}
    return {"down": down, "up": up, **starts, "scale": adapter["scale"]}


def _check_change(old: Arguments, new: Arguments, by: np.ndarray, transposed: bool, target: str) -> None:
    """The change of one side of the layer, from the other side's values and the factors."""
    names = ("down", "up", "start_down", "start_up")
    if new[target] is None or not is_tame(*[new[name] for name in names], by, old[target], scale=float(new["scale"])):
        return
    down, up, start_down, start_up = (float64(new[name]) for name in names)
    change = float(new["scale"]) * (up @ down - start_up @ start_down)
    # As the sums are taken: of differences, which are rounded first.
    size = abs(float(new["scale"])) * (_norm(up) + _norm(start_up)) * (_norm(down) + _norm(start_down)) * _norm(by)
    added = by @ (change.T if transposed else change)
    check_sum(new[target], old[target], added, size, [new[name] for name in names], target)


def native_change_forward(draw: Draw) -> Call:
    factors, tokens = _change_arguments(draw), side(draw, 0)
    arguments = {"x": tensor(draw, (tokens, factors["down"].shape[1])), **factors}
    arguments["out"] = tensor(draw, (tokens, factors["up"].shape[0]))
    arguments["out_h"] = tensor(draw, (tokens, factors["up"].shape[1]))
    return Call(
        lambda **a: _native.change_forward(*a.values()),
        arguments,
        lambda old, new, result: _check_change(old, new, float64(old["x"]), True, "out"),
        outputs=frozenset(["out_h"]),
        changed=frozenset(["out"]),
    )


def native_change_backward(draw: Draw) -> Call:
    factors, tokens = _change_arguments(draw), side(draw, 0)
    (rows, rank), columns = factors["up"].shape, factors["down"].shape[1]
    wide = (torch.float32, torch.float64)

    def sometimes(shape: tuple[int, ...]) -> Any:
        return tensor(draw, shape, wide) if choose(draw, (False, True)) else None

    arguments = {
        "grad": tensor(draw, (tokens, rows)),
        "x": tensor(draw, (tokens, columns)),
        "h": tensor(draw, (tokens, rank)),
        **factors,
        "out_x": sometimes((tokens, columns)),
        "out_down": sometimes((rank, columns)),
        "out_up": sometimes((rows, rank)),
    }
    return Call(
        lambda **a: _native.change_backward(*a.values()),
        arguments,
        lambda old, new, result: _check_change(old, new, float64(old["grad"]), False, "out_x"),
        outputs=frozenset(["out_down", "out_up"]),
        changed=frozenset(["out_x"]),
    )


def _core_and_up(draw: Draw) -> Arguments:
    adapter = adapter_arguments(draw)
    return {"up": adapter["up"], "core": adapter["core"]}


def native_effective_up(draw: Draw) -> Call:
    arguments = _core_and_up(draw)
    shape = tuple(arguments["up"].shape)
    arguments["start"] = tensor(draw, shape) if choose(draw, (False, True)) else None
    arguments["out"] = tensor(draw, shape)

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        operands = [new["up"], new["core"], new["start"]]
        if not is_tame(*operands):
            return
        up, core = float64(new["up"]), dense(new["core"], new["up"].shape[1])
        start = np.zeros(up.shape) if new["start"] is None else -float64(new["start"])
        check_sum(new["out"], start, up @ core, _norm(up, core), operands, "B C - start")

    return Call(lambda **a: _native.effective_up(*a.values()), arguments, check, outputs=frozenset(["out"]))


def native_effective_up_backward(draw: Draw) -> Call:
    base = _core_and_up(draw)
    shape = tuple(base["up"].shape)
    arguments = {"grad": tensor(draw, shape), **base, "frozen_columns": draw(integers(0, shape[1]))}
    arguments["out_up"] = tensor(draw, shape) if choose(draw, (False, True)) else None
    wanted = base["core"] is not None and choose(draw, (False, True))
    arguments["out_core"] = tensor(draw, tuple(base["core"].shape)) if wanted else None

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        operands = [new["grad"], new["up"], new["core"]]
        if not is_tame(*operands):
            return
        grad, up, core = float64(new["grad"]), float64(new["up"]), dense(new["core"], new["up"].shape[1])
        if new["out_up"] is not None:
            value = grad @ core.T
            value[:, : int(new["frozen_columns"])] = 0
            check_sum(new["out_up"], np.zeros(value.shape), value, _norm(grad, core), operands, "gradient of up")
        if new["out_core"] is not None:
            value = up.T @ grad
            value = np.diag(value) if new["core"].ndim == 1 else value
            target = new["out_core"].reshape(value.shape)
            check_sum(target, np.zeros(value.shape), value, _norm(up, grad), operands, "gradient of the core")

    return Call(
        lambda **a: _native.effective_up_backward(*a.values()),
        arguments,
        check,
        outputs=frozenset(["out_up", "out_core"]),
    )


def native_base_product(draw: Draw) -> Call:
    single = (torch.float32,)
    tokens, rows, columns = side(draw, 0), side(draw), side(draw)
    arguments = {
        "x": tensor(draw, (tokens, columns), single),
        "weight": tensor(draw, (rows, columns), single),
        "bias": tensor(draw, (rows,), single) if choose(draw, (False, True)) else None,
        "out": tensor(draw, (tokens, rows), single),
    }

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        operands = [new["x"], new["weight"], new["bias"]]
        if not is_tame(*operands):
            return
        x, weight = float64(new["x"]), float64(new["weight"])
        row = np.zeros(weight.shape[0]) if new["bias"] is None else float64(new["bias"])
        bias = np.broadcast_to(row, (x.shape[0], weight.shape[0]))
        check_sum(new["out"], bias, x @ weight.T, _norm(x, weight), operands, "x W^T + bias")

    return Call(lambda **a: _native.base_product(*a.values()), arguments, check, outputs=frozenset(["out"]))
