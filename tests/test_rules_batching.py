"""Batching rules: one table, every row against a loop over the samples."""
from __future__ import annotations

from dataclasses import dataclass, field

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, jit, ops, vmap
from mindspore.ops._vmap import vmap_base
from mindspore.ops.auto_generate import gen_ops_prim as gen

import mindspore_hessian  # noqa: F401  installs the rules
from mindspore_hessian import _compat, rules

BATCH = 3
_random = np.random.default_rng(0)


def t(*shape, low=0.1, high=1.1):
    return _random.uniform(low, high, shape).astype(np.float32)


def n(*shape):
    return _random.standard_normal(shape).astype(np.float32)


def i(shape, high):
    return _random.integers(0, high, shape).astype(np.int32)


@dataclass(frozen=True)
class Row:
    """A call of a primitive: its tensors come first, constants after them, unless `call` says how."""

    name: str
    tensors: tuple
    constants: tuple = ()
    call: object = None
    option: str = ""
    fixed: tuple = field(default=())  # positions that are never batched
    axes: tuple = (0, -1)  # batch axes tried for each operand
    since: tuple = (2, 7, 2)  # the first version with a CPU kernel

    def function(self):
        primitive = self.call or getattr(gen, self.name)()
        constants = self.constants

        def one(x):
            return primitive(x, *constants)

        def two(x, y):
            return primitive(x, y, *constants)

        def three(x, y, z):
            return primitive(x, y, z, *constants)

        def four(x, y, z, u):
            return primitive(x, y, z, u, *constants)

        def five(x, y, z, u, v):
            return primitive(x, y, z, u, v, *constants)

        def eight(x, y, z, u, v, a, b, c):
            return primitive(x, y, z, u, v, a, b, c, *constants)

        return {1: one, 2: two, 3: three, 4: four, 5: five, 8: eight}[len(self.tensors)]

    @property
    def id(self):
        return self.name + ("-" + self.option if self.option else "")


def rows(names, *tensors, constants=()):
    return [Row(name, tensors, constants) for name in names.split()]


INDEX = Tensor(np.array([1, 0, 1], np.int32))


def gather(x):
    return ops.gather(x, INDEX, 0)


def gather_last(x):
    return ops.gather(x, INDEX, -1)


def gather_both(x, index):
    return ops.gather(x, index, 0)


def gather_both_last(x, index):
    return ops.gather(x, index, -1)


def gather_d(x, index):
    return gen.GatherD()(x, 0, index)


def gather_d_last(x, index):
    return gen.GatherD()(x, -1, index)


def gather_d_grad(x, index, dout):
    return gen.GatherDGradV2()(x, 1, index, dout)


def add_n(x, y, z):
    return gen.AddN()((x, y, z))


def eye(x):
    return x * gen.Eye()(3, 3, mindspore.float32)


def sequence(x):
    return x * ops.cast(gen.Range()(0, 3, 1), mindspore.float32)


def slice_grad(dy):
    return _compat.strided_slice_grad(0, 0, 0, 0, 2)(dy, (3, 4), (1, 2), (3, 3), (1, 1))


def slice_ellipsis(x):
    return ops.StridedSlice(0, 0, 1, 0, 0)(x, (0, 1), (1, 4), (1, 2))


def slice_masks(x):
    return ops.StridedSlice(1, 2, 0, 0, 4)(x, (1, -2, 1), (2, 1, 2), (1, 1, 1))


def new_axis(x):
    return x[:, None, ::2]


def pad_constant(x):
    return ops.pad(x, (1, 2), value=3.0)


def pad_reflect(x):
    return ops.pad(x, (1, 1), mode="reflect")


def masked_fill(x, mask):
    return ops.masked_fill(x, mask > 0.5, 2.0)


def batch_norm(x, scale, shift, mean, variance):
    return ops.BatchNorm(False)(x, scale, shift, mean, variance)[0]


def batch_norm_grad(dy, x, scale, mean, variance):
    return gen.BatchNormGrad(True, 1e-5, "NCHW")(dy, x, scale, mean, variance, mean)


def where(condition, x, y):
    return ops.Select()(condition > 0.5, x, y)


def dense_no_bias(x, w):
    return ops.dense(x, w)


GRADS = "SiLUGrad EluGrad HSigmoidGrad ReluGrad"
ENTRYWISE = [
    *rows("Muls Divs PowTensorScalar", t(2, 3), constants=(0.5,)),
    *(Row(name, (t(2, 3),), (0.5,), since=(2, 10, 0)) for name in ("GreaterEqualScalar", "LessScalar", "EqScalar")),
    *rows("AddScalar SubScalar", t(2, 3), constants=(2.0, 3)),
    *rows("ZerosLikeExt OnesLikeExt", t(2, 3), constants=(None,)),
    Row("ClampScalar", (t(2, 3),), (0.4, 0.8)),
    *rows("Add Sub Mul Div RealDiv Pow Maximum Minimum Atan2 Greater GreaterEqual NotEqual", t(2, 3), t(3)),
    *(Row(name, (t(2, 3), t(3)), call=getattr(ops, name)())
      for name in ("Less", "LessEqual", "Equal", "Xlogy", "Xdivy")),
    Row("Add", (t(), t(3)), option="scalar"),
    Row("Mul", (t(3), t(2, 1)), option="rank"),
    *rows("TanhGrad SqrtGrad RsqrtGrad SigmoidGrad", t(2, 3), t(2, 3)),
    *rows(GRADS, n(2, 3), n(2, 3)),
    Row("GeLUGrad", (n(2, 3), n(2, 3), n(2, 3))),
    *rows("SiLU", n(2, 3)),
    Row("AddN", (n(2, 3), n(2, 3), n(2, 3)), call=add_n),
    Row("Select", (t(2, 3), n(3), n(2, 1)), call=where),
    Row("MaskedFill", (n(2, 3), t(3)), call=masked_fill),
]
REDUCTIONS = [
    *(Row("SumExt", (n(2, 3, 2),), (axis, keep, None), option=f"{axis}-{keep}")
      for axis, keep in ((None, False), (0, False), (-1, True), ((0, 2), False), ((-1, 1), True))),
    Row("SumExt", (n(),), (None, False, None), option="number"),
    Row("MeanExt", (n(2, 3),), ((-1,), False, None)),
    *(Row("CumSum", (n(2, 3),), (axis,), option=f"{axis}") for axis in (0, -1)),
    Row("CumProd", (n(2, 3),), call=gen.CumProd(), constants=(0,)),
]
SHAPES = [
    Row("StridedSlice", (n(2, 3, 4),), call=slice_ellipsis, option="ellipsis"),
    Row("StridedSlice", (n(2, 3, 4),), call=slice_masks, option="masks"),
    Row("StridedSlice", (n(2, 3, 4),), call=new_axis, option="new-axis"),
    Row("StridedSliceGrad", (n(2),), call=slice_grad, option="shrink"),
    *(Row("Tile", (n(2, 3),), (by,), call=ops.tile, option=f"{len(by)}") for by in ((2,), (2, 1), (3, 1, 2))),
    *(Row("BroadcastTo", (n(2, 3),), call=ops.BroadcastTo(to), option=f"{to}") for to in ((4, 2, 3), (4, -1, -1))),
    Row("TransposeExtView", (n(2, 3, 4),), (0, -1), since=(2, 10, 0)),
    Row("Diagonal", (n(2, 3, 3),), (0, 1, -1), call=ops.diagonal),
    Row("PadV3", (n(2, 3),), call=pad_constant, option="constant"),
    Row("PadV3", (n(2, 3, 4),), call=pad_reflect, option="reflect"),
    Row("SplitWithSize", (n(2, 3),), ((1, 2), -1), since=(2, 10, 0)),
    Row("ReverseV2", (n(2, 3),), call=ops.ReverseV2((0,))),
    Row("Tril", (n(3, 3),), (1,), call=ops.tril),
    Row("Triu", (n(3, 3),), (1,), call=ops.triu),
]
INDEXING = [
    Row("Gather", (n(4, 3),), call=gather),
    Row("Gather", (n(4, 3),), call=gather_last, option="last"),
    Row("Gather", (n(4, 3), i((2, 2), 4)), call=gather_both, option="both"),
    Row("Gather", (n(4, 3), i((2, 2), 3)), call=gather_both_last, option="both-last"),
    Row("GatherD", (n(4, 3), i((2, 3), 4)), call=gather_d),
    Row("GatherD", (n(4, 3), i((4, 2), 3)), call=gather_d_last, option="last"),
    Row("GatherDGradV2", (n(4, 3), i((4, 2), 3), n(4, 2)), call=gather_d_grad),
    Row("TensorScatterElements", (n(4, 3), i((2, 3), 4), n(2, 3)), call=ops.TensorScatterElements(0, "add")),
    Row("TensorScatterAdd", (n(4, 3), i((2, 1), 4), n(2, 3)), call=ops.TensorScatterAdd()),
    Row("Sort", (n(4, 3),), call=ops.Sort(0)),
    Row("Diag", (n(3),), call=ops.Diag()),
    Row("DiagPart", (n(3, 3),), call=ops.DiagPart()),
    Row("Range", (n(3),), call=sequence),
    Row("Eye", (n(3, 3),), call=eye),
]
MATMUL = [
    *(Row(name, (n(*lead, *a), n(*lead, *b)), call=getattr(gen, name)(flip_a, flip_b), option=f"{flip_a}-{flip_b}")
      for name, lead in (("MatMul", ()), ("BatchMatMul", (2,)))
      for a, flip_a in (((2, 3), False), ((3, 2), True)) for b, flip_b in (((3, 4), False), ((4, 3), True))),
    *(Row("MatMulExt", (n(*a), n(*b)), option=f"{a}-{b}") for a, b in (
        ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)),
        ((2, 1, 2, 3), (5, 3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 4)))),
    Row("Dense", (n(2, 3), n(4, 3), n(4))),
    Row("Dense", (n(2, 3), n(4, 3)), call=dense_no_bias, option="no-bias"),
    Row("Dense", (n(3), n(4, 3), n(4)), option="vector"),
]
NETWORKS = [
    Row("SoftmaxBackward", (n(2, 3), t(2, 3)), (-1,)),
    Row("SoftmaxBackward", (n(2, 3), t(2, 3)), (0,), option="0"),
    Row("LogSoftmaxGrad", (-t(2, 3), n(2, 3)), call=gen.LogSoftmaxGrad(0)),
    Row("MatrixInverse", (n(3, 3) + 3 * np.eye(3, dtype=np.float32),), call=ops.MatrixInverse()),
    Row("Cholesky", (np.eye(3, dtype=np.float32) + 0.1,), call=ops.Cholesky()),
    Row("BatchNorm", (n(2, 3, 2, 2), t(3), n(3), n(3), t(3)), call=batch_norm, axes=(0,)),
    Row("BatchNormGrad", (n(2, 3, 2, 2), n(2, 3, 2, 2), t(3), n(3), t(3)), call=batch_norm_grad, axes=(0,)),
    Row("BatchNormGradGrad", (n(2, 3, 2, 2), n(2, 3, 2, 2), t(3), n(3), t(3), n(2, 3, 2, 2), n(3), n(3)),
        call=gen.BatchNormGradGrad(False, 1e-5, "NCHW"), axes=(0,)),
    Row("LayerNormGradGrad", (n(2, 3), n(2, 3), t(2, 1), n(2, 1), t(3), n(2, 3), n(3), n(3)),
        call=gen.LayerNormGradGrad(1, 1), axes=(0,)),
]
TABLE = [*ENTRYWISE, *REDUCTIONS, *SHAPES, *INDEXING, *MATMUL, *NETWORKS]


def batchings(row):
    """in_axes to try: each operand alone on each axis, then all, on equal and on different axes."""
    count = len(row.tensors)
    free = [k for k in range(count) if k not in row.fixed]
    alone = [tuple(axis if k == j else None for k in range(count)) for j in free for axis in row.axes]
    if len(free) == 1:
        return alone
    turns = (row.axes, row.axes[::-1])
    together = [tuple(turn[k % len(turn)] if k in free else None for k in range(count)) for turn in turns]
    every = [*alone, tuple(0 if k in free else None for k in range(count)), *together]
    return list(dict.fromkeys(every))


def batched(value, axis):
    """BATCH different samples on an axis (counted in the result)."""
    shift = np.arange(BATCH).reshape((BATCH,) + (1,) * value.ndim)
    samples = value[None] * (1 + 0.25 * shift) if value.dtype.kind == "f" else np.roll(value, 1) + 0 * shift
    return np.ascontiguousarray(np.moveaxis(samples.astype(value.dtype), 0, axis))


def outputs(result):
    return [one.asnumpy().copy() for one in (result if isinstance(result, tuple) else (result,))]


def loop(function, values, axes):
    results = []
    for b in range(BATCH):
        picked = [v if axis is None else np.take(v, b, axis) for v, axis in zip(values, axes, strict=True)]
        results.append(outputs(function(*[Tensor(np.ascontiguousarray(p)) for p in picked])))
    return [np.stack(one) for one in zip(*results, strict=True)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_rule_agrees_with_a_loop(row):
    if row.since > _compat.MS_VERSION:
        pytest.skip("no CPU kernel in this version")
    function = row.function()
    compiled = jit(function)
    for axes in batchings(row):
        values = [v if axis is None else batched(v, axis) for v, axis in zip(row.tensors, axes, strict=True)]
        truth = loop(compiled, values, axes)
        in_axes = axes if len(axes) > 1 else axes[0]
        got = outputs(jit(vmap(function, in_axes=in_axes))(*[Tensor(v) for v in values]))
        for mine, theirs in zip(got, truth, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-5, err_msg=f"{row.id} batched on {axes}")


def test_every_rule_has_a_row():
    ours = {rule.primitive for table in rules.TABLES for rule in table if rule.kind == "batching"}
    assert ours == {row.name for row in TABLE}


NESTED = [row for row in TABLE if len(row.tensors) == 2 and not row.option]


@pytest.mark.parametrize("row", NESTED, ids=lambda row: row.id)
def test_nested_twice(row):
    """The inner batch on the second operand, the outer on the first; then both on the first."""
    function = row.function()
    compiled = jit(function)
    x, y = (batched(value, 0) for value in row.tensors)
    truth = [np.stack([outputs(compiled(Tensor(a), Tensor(b)))[0] for b in y]) for a in x]
    got = jit(vmap(vmap(function, in_axes=(None, 0)), in_axes=(0, None)))(Tensor(x), Tensor(y))
    np.testing.assert_allclose(outputs(got)[0], np.stack(truth), rtol=2e-4, atol=2e-5)
    twice = jit(vmap(vmap(function, in_axes=(-1, None)), in_axes=(0, None)))(Tensor(batched(x, -1)), Tensor(y[0]))
    truth = [[outputs(compiled(Tensor(np.ascontiguousarray(b)), Tensor(y[0])))[0] for b in np.moveaxis(a, -1, 0)]
             for a in batched(x, -1)]
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
    values = [v if axis is None else batched(v, axis) for v, axis in zip(tensors, axes, strict=True)]
    truth = loop(jit(function), values, axes)[0]
    rules.uninstall()
    try:
        got = outputs(jit(vmap(function, in_axes=in_axes))(*[Tensor(v) for v in values]))[0]
    finally:
        rules.install()
    assert got.shape != truth.shape or not np.allclose(got, truth, rtol=1e-2)


def test_no_rule_unrolls(monkeypatch):
    """A graph that does not unroll is built by the same rules for any batch, and none of them is MindSpore's loop."""
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
