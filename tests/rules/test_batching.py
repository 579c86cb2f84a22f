"""Batching rules: one table, every row against a loop over the samples."""

from __future__ import annotations

import numpy as np
import pytest
from batching_table import TABLE as MAIN
from batching_table import gen, n, slice_ellipsis
from batching_views import VIEWS
from full import FULL
from mindspore import Tensor, jit, ops, vmap
from mindspore.ops._vmap import vmap_base

import mindspore_hessian  # noqa: F401  installs the rules
from mindspore_hessian import _compat, rules
from mindspore_hessian.rules import registry

BATCH = 3
TABLE = [*MAIN, *VIEWS]


def batchings(row):
    """in_axes to try: each operand alone on each axis (by default, of three operands on the first
    axis), then all, on equal and on different axes."""
    count = len(row.tensors)
    free = [k for k in range(count) if k not in row.fixed]
    axes = row.axes if FULL or len(free) < 3 else row.axes[:1]
    alone = [tuple(axis if k == j else None for k in range(count)) for j in free for axis in axes]
    if len(free) == 1:
        return alone
    turns = (row.axes, row.axes[::-1])
    together = [
        tuple(turn[k % len(turn)] if k in free else None for k in range(count)) for turn in turns
    ]
    every = [*alone, tuple(0 if k in free else None for k in range(count)), *together]
    return list(dict.fromkeys(every))


def batched(value, axis):
    """BATCH different samples on an axis (counted in the result)."""
    shift = np.arange(BATCH).reshape((BATCH,) + (1,) * value.ndim)
    samples = (
        value[None] * (1 + 0.25 * shift)
        if value.dtype.kind == "f"
        else np.roll(value, 1) + 0 * shift
    )
    return np.ascontiguousarray(np.moveaxis(samples.astype(value.dtype), 0, axis))


def outputs(result):
    return [one.asnumpy().copy() for one in (result if isinstance(result, tuple) else (result,))]


def loop(function, values, axes):
    results = []
    for b in range(BATCH):
        picked = [
            v if axis is None else np.take(v, b, axis) for v, axis in zip(values, axes, strict=True)
        ]
        results.append(outputs(function(*[Tensor(np.ascontiguousarray(p)) for p in picked])))
    return [np.stack(one) for one in zip(*results, strict=True)]


def all_at_once(function, ways):
    """The function batched in each of these ways, compiled in one graph: a compilation costs more
    than all else.
    """
    each = [vmap(function, in_axes=axes if len(axes) > 1 else axes[0]) for axes in ways]
    count = len(ways[0])

    @jit
    def graph(*args):
        out = []
        for number, one in enumerate(each):
            out.append(one(*args[number * count : (number + 1) * count]))
        return out

    return lambda values: graph(*[Tensor(value) for operands in values for value in operands])


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_rule_agrees_with_a_loop(row):
    if row.since > _compat.MS_VERSION:
        pytest.skip("no CPU kernel in this version")
    function = row.function()
    compiled = jit(function)
    ways = batchings(row)
    values = [
        [v if axis is None else batched(v, axis) for v, axis in zip(row.tensors, axes, strict=True)]
        for axes in ways
    ]
    for axes, operands, result in zip(
        ways, values, all_at_once(function, ways)(values), strict=True
    ):
        for mine, theirs in zip(outputs(result), loop(compiled, operands, axes), strict=True):
            np.testing.assert_allclose(
                mine, theirs, rtol=2e-4, atol=2e-5, err_msg=f"{row.id} batched on {axes}"
            )


ELSEWHERE = {
    *("CropAndResize", "Generator", "UniformReal"),  # see test_layers_batched.py
    "MultilabelMarginLoss",  # without a kernel on CPU: see test_derivatives.py
}


def test_every_rule_has_a_row():
    ours = {rule.primitive for rule in registry.ROWS if rule.kind is registry.batching}
    assert ours == {row.name for row in TABLE} | ELSEWHERE


NESTED = [row for row in TABLE if len(row.tensors) == 2 and not row.option]


@pytest.mark.parametrize("row", NESTED, ids=lambda row: row.id)
def test_nested_twice(row):
    """The inner batch on the second operand, the outer on the first; then both on the first."""
    if row.since > _compat.MS_VERSION:
        pytest.skip("no CPU kernel in this version")
    function = row.function()
    compiled = jit(function)
    x, y = (batched(value, 0) for value in row.tensors)
    truth = [np.stack([outputs(compiled(Tensor(a), Tensor(b)))[0] for b in y]) for a in x]
    got = jit(vmap(vmap(function, in_axes=(None, 0)), in_axes=(0, None)))(Tensor(x), Tensor(y))
    np.testing.assert_allclose(outputs(got)[0], np.stack(truth), rtol=2e-4, atol=2e-5)
    twice = jit(vmap(vmap(function, in_axes=(-1, None)), in_axes=(0, None)))(
        Tensor(batched(x, -1)), Tensor(y[0])
    )
    truth = [
        [
            outputs(compiled(Tensor(np.ascontiguousarray(b)), Tensor(y[0])))[0]
            for b in np.moveaxis(a, -1, 0)
        ]
        for a in batched(x, -1)
    ]
    np.testing.assert_allclose(outputs(twice)[0], np.stack(truth), rtol=2e-4, atol=2e-5)


def matmul_ext(x, y):
    return gen.MatMulExt()(x, y)


def tile_last(x):
    return ops.tile(x, (2,))


def swap_ends(x):
    return gen.TransposeExtView()(x, 0, -1)


WRONG_UPSTREAM = [
    (matmul_ext, (n(3, 3), n(3, 3)), (-1, None)),
    (tile_last, (n(2, 3),), 0),
    (swap_ends, (n(2, 2, 2),), -1),
    (slice_ellipsis, (n(2, 3, 4),), 0),
]


@pytest.mark.parametrize("case", WRONG_UPSTREAM, ids=lambda case: case[0].__name__)
def test_what_mindspore_has_is_silently_wrong(case):
    """The reason to replace these; once it fails, MindSpore has mended its rule."""
    function, tensors, in_axes = case
    if function is swap_ends and _compat.MS_VERSION < (2, 10, 0):
        pytest.skip("no CPU kernel in this version")
    axes = in_axes if isinstance(in_axes, tuple) else (in_axes,)
    values = [
        v if axis is None else batched(v, axis) for v, axis in zip(tensors, axes, strict=True)
    ]
    truth = loop(jit(function), values, axes)[0]
    rules.uninstall()
    try:
        got = outputs(jit(vmap(function, in_axes=in_axes))(*[Tensor(v) for v in values]))[0]
    finally:
        rules.install()
    assert got.shape != truth.shape or not np.allclose(got, truth, rtol=1e-2)


def test_no_rule_unrolls(monkeypatch):
    """A graph that does not unroll is built by the same rules for any batch, and none of them is
    MindSpore's loop.
    """
    missing = []

    class Recorder(dict):
        def get(self, key, default=None):
            if super().get(key, None) is None:
                missing.append(key)
            return super().get(key, default)

    monkeypatch.setattr(vmap_base, "vmap_rules_getters", Recorder(_compat.batching_registry()))
    weight, shift = Tensor(n(4, 5)), Tensor(n(5))

    def network(x):
        return ops.log_softmax(ops.softmax(ops.tanh(ops.matmul(x, weight) + shift)) * 2.0)[0].sum()

    def product(x, v):
        gradient = ops.GradOperation(get_all=True)(network)
        return ops.GradOperation(get_all=True, sens_param=True)(gradient)(x, (v,))[0]

    jit(vmap(product, in_axes=(None, 0)))(Tensor(n(3, 4)), Tensor(n(7, 3, 4)))
    assert set(missing) <= {"mutable"}  # a mark on constants, which are never batched
