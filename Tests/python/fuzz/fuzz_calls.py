# Copyright the lowrank_swift authors. SPDX-License-Identifier: Apache-2.0
"""Random calls of every function of `lowrank_swift` and `lowrank_swift._native`, each with the check of its result."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lowrank_swift as lrs
import numpy as np
import torch
from fuzz_arrays import FLOATS, Draw, choose, integers, side, tensor
from fuzz_checks import (
    check_ldu,
    check_qr,
    check_sum,
    check_svd,
    dense,
    is_tame,
    precision,
    require_shapes,
    require_small,
)
from lowrank_swift import _native
from support import LIMIT, float64

METHODS = ("olora", "loldu", "lamda", "pissa")
DIAGONALS = ("ldu", "ones", "zeros", "mean", "uniform", "normal")
Arguments = dict[str, Any]
Check = Callable[[Arguments, Arguments, Any], None]


@dataclass
class Call:
    """A call with valid arguments.

    `check` takes the arguments as they were (arrays as float64), as they are, and the result. `outputs` are unspecified
    after a failure; `changed` are changed in place, and unchanged after a failure.
    """

    function: Callable[..., Any]
    arguments: Arguments
    check: Check
    outputs: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()


def passes(old: Arguments, new: Arguments, result: Any) -> None:
    """Nothing to check but that the call came back."""


def _weight(draw: Draw) -> Arguments:
    weight = tensor(draw, (side(draw), side(draw)))
    return {"weight": weight, "rank": draw(integers(1, min(weight.shape)))}


def _dtype(draw: Draw, weight: Any) -> Any:
    names = ["float32", "float64", "float16"] + (["bfloat16"] if isinstance(weight, torch.Tensor) else [])
    return choose(draw, [None, None, *names])


def _require_finite(*arrays: Any) -> None:
    for array in arrays:
        assert np.isfinite(float64(array)).all(), "a result that is not finite"


def _check_qr(old: Arguments, new: Arguments, result: Any) -> None:
    _require_finite(old["weight"], *result)
    check_qr(old["weight"], int(new["rank"]), *result, new["weight"])


def _check_ldu(old: Arguments, new: Arguments, result: Any) -> None:
    _require_finite(*result)
    # What is not read may be anything.
    check_ldu(np.nan_to_num(old["weight"], posinf=0, neginf=0), int(new["rank"]), *result, new["weight"])


def _check_svd(old: Arguments, new: Arguments, result: Any) -> None:
    _require_finite(old["weight"], *result[:3])
    check_svd(old["weight"], int(new["rank"]), float(new.get("tol", 1e-4)), *result[:3], new["weight"])


def _check_spectrum(old: Arguments, new: Arguments, result: Any) -> None:
    values, share = result
    _require_finite(old["weight"], values)
    require_shapes({"singular values": (values, (int(new["rank"]),))})
    found = float64(values)
    assert (found >= 0).all() and (np.diff(found) <= 0).all(), "the values descend"
    assert 0 <= share <= 1, f"share: {share}"
    if not is_tame(old["weight"]):
        return
    exact = np.linalg.svd(old["weight"], compute_uv=False)
    unit, smallest = precision(values, computed=new["weight"])
    # Values from eigenvalues in float64 lose half of its digits below the largest.
    bound = (float(new["tol"]) + LIMIT * max(old["weight"].shape) * unit + 1e-7) * float(exact[0]) + LIMIT * smallest
    assert float(np.abs(found - exact[: len(found)]).max()) <= bound, "the values are those of the weight"


def _factorization(draw: Draw, name: str, check: Check) -> Call:
    arguments = _weight(draw)
    arguments["dtype"] = _dtype(draw, arguments["weight"])
    if name in ("svd", "spectrum"):
        arguments |= {"tol": choose(draw, [1e-4, 1e-2, 1e-8]), "seed": draw(integers(0, 2**64 - 1))}
    function = getattr(lrs, name)
    return Call(lambda weight, rank, **options: function(weight, rank, **options), arguments, check)


def _into(draw: Draw, *shape: int, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)) -> Any:
    """An output."""
    return tensor(draw, shape, dtypes, ("gaussian",))


def native_factorization(draw: Draw, name: str, check: Check, outputs: dict[str, tuple[int, ...]]) -> Call:
    arguments = _weight(draw)
    rows, columns, rank = *arguments["weight"].shape, arguments["rank"]
    if name in ("svd", "spectrum"):
        arguments |= {"tol": 1e-4, "seed": draw(integers(0, 2**64 - 1))}
    sides = {"m": rows, "n": columns, "r": rank}
    for output, letters in outputs.items():
        arguments[output] = _into(draw, *[sides[letter] for letter in letters])
    if name == "ldu":
        arguments["out_perm"] = torch.zeros(2 * rows, dtype=torch.int64)[:: choose(draw, [1, 2])][:rows]
    names = [n for n in arguments if n.startswith("out_")]
    function = getattr(_native, name)

    def checks(old: Arguments, new: Arguments, result: Any) -> None:
        check(old, new, tuple(new[name] for name in names))

    return Call(lambda **a: function(*a.values()), arguments, checks, outputs=frozenset(names))


def _check_factors(method: str, old: Arguments, new: Arguments, up: Any, core: Any, down: Any) -> None:
    """Whether the factors are those that a method starts from."""
    weight, rank, array = old["weight"], int(new["rank"]), new["weight"]
    tol, scale = float(new.get("tol", 1e-4)), float(new["scale"])
    _require_finite(up, down, *([] if core is None else [core]))
    require_shapes({"up": (up, (weight.shape[0], rank)), "down": (down, (rank, weight.shape[1]))})
    if method == "lora_xs":
        assert not float64(core).any(), "the core is zero"
    elif method == "olora":
        check_qr(weight, rank, up, down, array)
    elif method == "lamda":
        diagonal = np.diag(float64(core)).copy()
        assert np.array_equal(float64(core), np.diag(diagonal)), "the core is diagonal"
        check_svd(weight, rank, tol, up, diagonal, down, array)
    elif method == "loldu" and new["diagonal"] == "ldu" and float64(core).all():
        middle = float64(core)[:, None] * float64(down)
        with np.errstate(all="ignore"):
            norm = float(np.linalg.norm(float64(up))) * float(np.linalg.norm(middle))
        if not np.isfinite(norm) or norm > 1e300:
            return
        unit, smallest = precision(up, core, down, computed=array)
        limits = unit, smallest * (1 + float(np.linalg.norm(float64(down))))
        error = np.nan_to_num(weight)[:, :rank] - float64(up) @ middle[:, :rank]
        require_small(error, norm + float(np.linalg.norm(weight[:, :rank])), limits, "W - P L D U")
    elif method == "pissa" and is_tame(weight) and 1e-6 < scale < 1e6:
        spectrum = np.linalg.svd(weight, compute_uv=False)
        unit, smallest = precision(up, down, computed=array)
        error = float(np.linalg.norm(weight - scale * (float64(up) @ float64(down))))
        rest = float(np.linalg.norm(spectrum[rank:]))
        allowed = (tol * rank + LIMIT * max(weight.shape) * unit) * float(spectrum[0])
        allowed += LIMIT * max(weight.shape) * scale * smallest * (1 + float(np.linalg.norm(float64(up))))
        assert error <= rest + allowed, f"||W - s B A||: {error} is beyond {rest} + {allowed}"


def _check_residual(old: Arguments, new: Arguments, up: Any, core: Any, down: Any) -> None:
    before = old["weight"]
    after = float64(new["weight"])
    assert np.array_equal(np.isfinite(before), np.isfinite(after)), "a finite entry became infinite, or the reverse"
    _check_change(before, new["weight"], up, core, down, -float(new["scale"]))


def _check_change(before: np.ndarray, after: Any, up: Any, core: Any, down: Any, scale: float) -> None:
    """``after = before + scale * up core down``, where nothing comes near an overflow."""
    if not is_tame(up, core, down, scale=scale) or not is_tame(np.nan_to_num(before, posinf=0, neginf=0)):
        return
    rank = up.shape[1]
    delta = scale * (float64(up) @ dense(core, rank) @ float64(down))
    size = abs(scale)
    for part in (float64(up), dense(core, rank), float64(down)):
        size *= float(np.linalg.norm(part))
    finite = np.isfinite(before)
    if finite.all():
        check_sum(after, before, delta, size, [up, core, down], "W + s B C A")
    else:
        assert np.isfinite(float64(after)[finite]).all()


def initializer(draw: Draw, name: str) -> Call:
    """A public initializer, in place or not."""
    method = name.removesuffix("_")
    arguments = _weight(draw) | {"scale": choose(draw, [1.0, 0.25, 2.0])}
    arguments["dtype"] = _dtype(draw, arguments["weight"])
    if method != "olora":
        arguments["seed"] = draw(integers(0, 2**64 - 1))
    if method == "loldu":
        arguments["diagonal"] = choose(draw, DIAGONALS)
    if method in ("lamda", "pissa", "lora_xs"):
        arguments["tol"] = choose(draw, [1e-4, 1e-2])
    function = getattr(lrs, name)

    def check(old: Arguments, new: Arguments, factors: Any) -> None:
        if name.endswith("_"):
            _check_residual(old, new, factors.up, factors.core, factors.down)
        _check_factors(method, old, new, factors.up, factors.core, factors.down)

    return Call(
        lambda weight, rank, **options: function(weight, rank, **options),
        arguments,
        check,
        changed=frozenset(["weight"] if name.endswith("_") else []),
    )


def native_initialize(draw: Draw) -> Call:
    method = choose(draw, METHODS)
    weight, rank = _weight(draw).values()
    core = {"loldu": (rank,), "lamda": (rank, rank)}.get(method)
    arguments = {
        "method": method,
        "weight": weight,
        "rank": rank,
        "scale": choose(draw, [1.0, 0.25, 2.0]),
        "in_place": choose(draw, (False, True)),
        "tol": 1e-4,
        "seed": draw(integers(0, 2**64 - 1)),
        "diagonal": choose(draw, DIAGONALS),
        "up": _into(draw, weight.shape[0], rank),
        "core": None if core is None else _into(draw, *core),
        "down": _into(draw, rank, weight.shape[1]),
    }

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        if new["in_place"]:
            _check_residual(old, new, new["up"], new["core"], new["down"])
        _check_factors(new["method"], old, new, new["up"], new["core"], new["down"])

    return Call(
        lambda **a: _native.initialize(*a.values()),
        arguments,
        check,
        outputs=frozenset(["up", "core", "down"]),
        changed=frozenset(["weight"]),
    )


def adapter_arguments(draw: Draw, dtypes: tuple[torch.dtype, ...] = FLOATS) -> Arguments:
    """Down, core, up and scale, as the native functions take them."""
    rows, columns, rank = side(draw), side(draw), draw(integers(0, 40))
    core = choose(draw, [None, (rank,), (rank, rank)])
    return {
        "down": tensor(draw, (rank, columns), dtypes),
        "core": None if core is None else tensor(draw, core, dtypes),
        "up": tensor(draw, (rows, rank), dtypes),
        "scale": choose(draw, [1.0, -0.5, 0.0, 2]),
    }


def as_factors(a: Arguments) -> lrs.Factors:
    return lrs.Factors("fuzz", a["up"], a["core"], a["down"], a["scale"])


def merging(draw: Draw, name: str, sign: int, invoke: Callable[[Arguments], Any]) -> Call:
    """``merge_``, ``unmerge_`` and the native function under them."""
    adapter = adapter_arguments(draw)
    arguments = {"weight": tensor(draw, (adapter["up"].shape[0], adapter["down"].shape[1]))} | adapter

    def check(old: Arguments, new: Arguments, result: Any) -> None:
        if old["weight"].size:
            _require_finite(new["up"], new["down"], *([] if new["core"] is None else [new["core"]]))
        before, after = old["weight"], float64(new["weight"])
        assert np.array_equal(np.isfinite(before), np.isfinite(after)), "a finite entry became infinite"
        _check_change(before, new["weight"], new["up"], new["core"], new["down"], sign * float(new["scale"]))

    return Call(lambda **a: invoke(a), arguments, check, changed=frozenset(["weight"]))


def delta(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        require_shapes({"delta": (result, (new["up"].shape[0], new["down"].shape[1]))})
        zero = np.zeros(tuple(result.shape))
        _check_change(zero, result, new["up"], new["core"], new["down"], float(new["scale"]))

    return Call(lambda **a: as_factors(a).delta(), adapter_arguments(draw), check)


def config_call(draw: Draw) -> Call:
    mode = choose(draw, ["stdout", "dicts"])

    def invoke(mode: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return lrs.show_config(mode)

    return Call(invoke, {"mode": mode}, passes)


def thread_count(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        count = int(new["count"])
        assert lrs.get_num_threads() == count if count else lrs.get_num_threads() >= 1
        lrs.set_num_threads(0)

    return Call(lambda count: lrs.set_num_threads(count), {"count": draw(integers(0, 8))}, check)


def native_check_weight(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        assert result[:2] == tuple(new["weight"].shape) and result[2] == str(new["weight"].dtype).removeprefix("torch.")

    return Call(lambda weight, rank: _native.check_weight(weight, rank), _weight(draw), check)


def native_borrow(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        assert tuple(result.shape) == tuple(new["array"].shape)
        expected = old["array"] if old["array"] is not None else new["array"]
        assert np.array_equal(float64(result), expected, equal_nan=True)

    arguments = {"array": tensor(draw, (side(draw, 0), side(draw, 0)))}
    return Call(lambda array: _native.borrow(array, "array"), arguments, check)


def native_contents(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        assert len(result) == float64(new["array"]).size * new["array"].itemsize
        if isinstance(new["array"], np.ndarray):
            assert result == np.ascontiguousarray(new["array"]).tobytes()

    arguments = {"array": tensor(draw, (side(draw, 0), side(draw, 0)))}
    return Call(lambda array: _native.contents(array, "array"), arguments, check)


def new_tensor(draw: Draw) -> Call:
    def check(old: Arguments, new: Arguments, result: Any) -> None:
        assert tuple(result.shape) == tuple(new["shape"]) and str(result.dtype).endswith(new["dtype"])
        assert not float64(result).any()

    shape = tuple(side(draw, 0) for _ in range(draw(integers(0, 3))))
    arguments = {"shape": shape, "dtype": choose(draw, ("float32", "float64", "bfloat16", "float16", "int64"))}
    return Call(lambda shape, dtype: lrs.Tensor(shape, dtype), arguments, check)


def native_config(draw: Draw) -> Call:
    return Call(lambda: _native.config(), {}, lambda old, new, result: require_text(result))


def require_text(result: Any) -> None:
    assert isinstance(result, str) and result.startswith("{")


FACTORIZATIONS: dict[str, Callable[[Draw], Call]] = {
    "qr": lambda draw: _factorization(draw, "qr", _check_qr),
    "ldu": lambda draw: _factorization(draw, "ldu", _check_ldu),
    "svd": lambda draw: _factorization(draw, "svd", _check_svd),
    "spectrum": lambda draw: _factorization(draw, "spectrum", _check_spectrum),
    "_native.qr": lambda draw: native_factorization(draw, "qr", _check_qr, {"out_q": "mr", "out_r": "rn"}),
    "_native.ldu": lambda draw: native_factorization(
        draw, "ldu", _check_ldu, {"out_l": "mr", "out_d": "r", "out_u": "rn"}
    ),
    "_native.svd": lambda draw: native_factorization(
        draw, "svd", _check_svd, {"out_u": "mr", "out_s": "r", "out_vh": "rn"}
    ),
}
