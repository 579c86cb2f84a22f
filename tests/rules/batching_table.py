"""Rows for test_batching.py: calls of primitives, each of which is batched and compared with
a loop.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops.auto_generate import gen_ops_prim as gen
from mindspore.ops.operations import _grad_ops
from mindspore.ops.operations.math_ops import CumulativeLogsumexp, Median

from mindspore_hessian import _compat

_random = np.random.default_rng(0)


def t(*shape, low=0.1, high=1.1):
    return _random.uniform(low, high, shape).astype(np.float32)


def n(*shape):
    return _random.standard_normal(shape).astype(np.float32)


def i(shape, high):
    return _random.integers(0, high, shape).astype(np.int32)


@dataclass(frozen=True)
class Row:
    """A call of a primitive: its tensors come first, constants after them, unless `call` says
    how.
    """

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


def put(count, adds):
    """Of one index or of two."""
    prim = ops.IndexPut(adds)

    def at_two(x, values, i, j):
        return prim(x, values, (i, j))

    def at_one(x, values, i):
        return prim(x, values, (i,))

    return at_two if count == 2 else at_one


def max_pool_3d_back(x, d):
    return _grad_ops.MaxPool3DGrad(2, 2)(x, ops.MaxPool3D(2, 2)(x), d)


def max_pool_3d_twice(x, d):
    pool = ops.MaxPool3D(2, 2)
    return _grad_ops.MaxPool3DGradGrad(2, 2)(x, pool(x), d)


def reverse_sequence(x, lengths):
    return ops.reverse_sequence(x, lengths, 0, 1)


def scatter(x, indices, updates):
    return ops.scatter(x, -2, indices, updates)


def gather_d_grad(x, index, dout):
    return gen.GatherDGradV2()(x, 1, index, dout)


def add_n(x, y, z):
    return gen.AddN()((x, y, z))


def group_norm(x, gamma, beta):
    return gen.GroupNorm()(x, 2, gamma, beta, 0.5)


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


def segment_sum(x, ids):
    return ops.UnsortedSegmentSum()(x, ids, 4)


def linspace(x):
    return x * ops.LinSpace()(Tensor(0.0, mindspore.float32), Tensor(1.0, mindspore.float32), 3)


def beside_a_batch(x, ids):
    """A segment sum of which nothing is batched, where x is: MindSpore's rule is wrong there."""
    return x + ops.UnsortedSegmentSum()(ops.cast(ids, mindspore.float32), ids, 3)


def conv_transpose(x, w):
    return ops.Conv2DTranspose(3, 3)(x, w, (2, 2, 6, 6))


def conv(option):
    """Conv2D and its two backwards, as functions of their tensors; 4 channels in, 6 out, 5 by 5
    pixels.
    """
    settings = {
        "plain": {},
        "strided": {"stride": 2, "pad_mode": "pad", "pad": 1},
        "grouped": {"group": 2},
    }[option]
    groups = settings.get("group", 1)
    forward, backward = (
        ops.Conv2D(6, 3, **settings),
        ops.operations.Conv2DBackpropInput(6, 3, **settings),
    )
    kernel = _grad_ops.Conv2DBackpropFilter(
        6, 3, pad_list=(settings.get("pad", 0),) * 4, **settings
    )

    def by_x(dy, w):
        return backward(dy, w, (2, 4, 5, 5))

    def by_w(dy, x):
        return kernel(dy, x, (6, 4 // groups, 3, 3))

    x, w, dy = n(2, 4, 5, 5), n(6, 4 // groups, 3, 3), n(2, 6, 3, 3)
    return [
        Row("Conv2D", (x, w), call=forward, option=option),
        Row("Conv2DBackpropInput", (dy, w), call=by_x, option=option),
        Row("Conv2DBackpropFilter", (dy, x), call=by_w, option=option),
    ]


def conv3d(groups):
    """Conv3D, its two backwards and its transpose."""
    settings = (4, (2, 1, 2), 1, "pad", (1,) * 6, (1, 2, 1), 1, groups)
    forward, backward = ops.Conv3D(*settings), _compat.Conv3DBackpropInput(*settings)
    kernel, transposed = (
        _compat.Conv3DBackpropFilter(*settings),
        ops.Conv3DTranspose(4, 2, 2, stride=2, group=groups),
    )

    def by_x(w, dy):
        return backward(w, dy, (2, 2, 3, 4, 3))

    def by_w(x, dy):
        return kernel(x, dy, (4, 2 // groups, 2, 1, 2))

    x, w = n(2, 2, 3, 4, 3), n(4, 2 // groups, 2, 1, 2)
    dy, option = n(*forward(Tensor(x), Tensor(w)).shape), str(groups)
    return [
        Row("Conv3D", (x, w), call=forward, option=option),
        Row("Conv3DBackpropInput", (w, dy), call=by_x, option=option),
        Row("Conv3DBackpropFilter", (x, dy), call=by_w, option=option),
        Row(
            "Conv3DTranspose",
            (n(2, 4, 2, 2, 2), n(4, 2 // groups, 2, 2, 2)),
            call=transposed,
            option=option,
        ),
    ]


def median_of_all(x):
    return Median(True)(x)[0]  # its index says nothing


def medians():
    """Of all, and along axes."""
    along = [
        Row("Median", (n(3, 5),), call=Median(False, axis, keep), option=f"{axis}-{keep}")
        for axis, keep in ((0, False), (-1, True), (1, False))
    ]
    return [Row("Median", (n(3, 5),), call=median_of_all), *along]


def arc_grads():
    """The backwards of acos and its like, named as their classes in MindSpore."""
    points = {
        "ACosGrad": t(2, 3, high=0.9),
        "AcoshGrad": t(2, 3) + 1,
        "AsinGrad": t(2, 3, high=0.9),
        "AsinhGrad": t(2, 3),
        "AtanGrad": t(2, 3),
        "InvGrad": t(2, 3),
        "ReciprocalGrad": t(2, 3),
    }
    return [Row(name, (x, n(2, 3)), call=_compat.backward(name)) for name, x in points.items()]


def zeros(x):
    return x + gen.Zeros()((3,), mindspore.float32)


def ones(x):
    return x * gen.Ones()((3,), mindspore.float32)


ORDER = Tensor(2, mindspore.int32)


def polygamma(x):
    return ops.Polygamma()(ORDER, x)


def imaginary(x, y):
    return ops.abs(ops.Complex()(x, y))


def pool3d(x):
    return ops.AvgPool3D(2, 2)(x)


def sigmoid_cross_entropy(x, y):
    return ops.SigmoidCrossEntropyWithLogits()(x, y)


def softmax_cross_entropy(x, y):
    return ops.SoftmaxCrossEntropyWithLogits()(x, y)


def without_weights(x, y):
    return gen.BCEWithLogitsLoss("mean")(x, y, None, None)


def losses():
    """Losses and their backwards: all reductions (sum, mean, none)."""
    out = [
        Row("SigmoidCrossEntropyWithLogits", (n(2, 3), t(2, 3)), call=sigmoid_cross_entropy),
        Row("SoftmaxCrossEntropyWithLogits", (n(4, 3), t(4, 3)), call=softmax_cross_entropy),
        *(
            Row(
                "SparseSoftmaxCrossEntropyWithLogits",
                (n(4, 3), i((4,), 3)),
                call=ops.SparseSoftmaxCrossEntropyWithLogits(is_grad),
                option=str(is_grad),
            )
            for is_grad in (False, True)
        ),
        Row("BCEWithLogitsLoss", (n(2, 3), t(2, 3)), call=without_weights, option="no weights"),
    ]
    for reduction in ("sum", "mean", "none"):
        shape = (2, 3) if reduction == "none" else ()
        x, target, weight, dy = t(2, 3, high=0.6), t(2, 3, high=0.6), t(2, 3), n(*shape)
        out += [
            Row(
                "BinaryCrossEntropy",
                (x, target, weight),
                call=gen.BinaryCrossEntropy(reduction),
                option=reduction,
            ),
            Row(
                "BCEWithLogitsLoss",
                (x, target, weight, t(3)),
                call=gen.BCEWithLogitsLoss(reduction),
                option=reduction,
            ),
            Row(
                "BinaryCrossEntropyGrad",
                (x, target, dy, weight),
                call=gen.BinaryCrossEntropyGrad(reduction),
                option=reduction,
            ),
            Row(
                "BinaryCrossEntropyWithLogitsBackward",
                (dy, x, target, weight, t(3)),
                (reduction,),
                option=reduction,
            ),
            Row(
                "SmoothL1LossGrad",
                (n(2, 3), n(2, 3), dy),
                option=reduction,
                call=gen.SmoothL1LossGrad(0.7, reduction),
            ),
        ]
    return out


def nll():
    """The negative log-likelihood and its backward: all reductions, and a class that is ignored."""
    return [
        row
        for reduction, shape in (("none", (4,)), ("mean", ()), ("sum", ()))
        for ignored in (-100, 1)
        for row in (
            Row(
                "NLLLossGrad",
                (n(4, 3), n(*shape), i((4,), 3), t(3), t() + 1),
                option=f"{reduction}-{ignored}",
                call=gen.NLLLossGrad(reduction, ignored),
            ),
            Row(
                "NLLLoss",
                (n(4, 3), np.array([0, 2, 1, 2], np.int32), t(3)),
                option=f"{reduction}-{ignored}",
                call=gen.NLLLoss(reduction, ignored),
            ),
        )
        if row.option != "none-1" or row.name != "NLLLoss"  # the kernel leaves these entries unset
    ]


GRADS = "SiLUGrad EluGrad HSigmoidGrad ReluGrad FastGeLUGrad HSwishGrad ReLU6Grad"
ENTRYWISE = [
    *rows("Muls Divs PowTensorScalar", t(2, 3), constants=(0.5,)),
    *(
        Row(name, (t(2, 3),), (0.5,), since=(2, 10, 0))
        for name in ("GreaterEqualScalar", "LessScalar", "EqScalar")
    ),
    *rows("Contiguous", n(2, 3)),
    *rows("RemainderTensorTensor", n(2, 3), t(3)),
    *rows("ClampTensor", n(2, 3), n(3) - 1, n(2, 1) + 1),
    Row("Addcmul", (n(2, 3), n(3), n(2, 1)), (Tensor(0.5, mindspore.float32),)),
    Row("Addcdiv", (n(2, 3), n(3), t(2, 1)), (Tensor(0.5, mindspore.float32),)),
    Row("SoftplusExt", (n(2, 3),), (2.0, 1.0)),
    Row("Mvlgamma", (t(2, 3, low=2, high=4),), call=ops.operations.Mvlgamma(2)),
    Row("Igamma", (t(3), t(2, 3)), call=ops.operations.Igamma()),
    Row("Igammac", (t(2, 3), t(3)), call=ops.operations.Igammac()),
    *rows("AddScalar SubScalar", t(2, 3), constants=(2.0, 3)),
    *rows("ZerosLikeExt OnesLikeExt", t(2, 3), constants=(None,)),
    Row("ClampScalar", (t(2, 3),), (0.4, 0.8)),
    *rows(
        "Add Sub Mul Div RealDiv Pow Maximum Minimum Atan2 Greater GreaterEqual NotEqual",
        t(2, 3),
        t(3),
    ),
    *(
        Row(name, (t(2, 3), t(3)), call=getattr(ops, name)())
        for name in ("Less", "LessEqual", "Equal", "Xlogy", "Xdivy")
    ),
    Row("Add", (t(), t(3)), option="scalar"),
    Row("Mul", (t(3), t(2, 1)), option="rank"),
    *rows("TanhGrad SqrtGrad RsqrtGrad SigmoidGrad", t(2, 3), t(2, 3)),
    *rows(GRADS, n(2, 3), n(2, 3)),
    Row("GeLUGrad", (n(2, 3), n(2, 3), n(2, 3))),
    *rows("SiLU", n(2, 3)),
    Row("AddN", (n(2, 3), n(2, 3), n(2, 3)), call=add_n),
    *(Row(name, (t(2, 3),), call=getattr(ops, name)()) for name in ("Lgamma", "Digamma", "Sinc")),
    *(
        Row(name, (n(2, 3), n(2, 3)), call=getattr(gen, name)(0.5))
        for name in ("HShrinkGrad", "SoftShrinkGrad")
    ),
    *(Row(name, (n(2, 3), n(3)), call=getattr(ops, name)()) for name in ("Fmax", "Hypot")),
    Row("SquaredDifference", (n(2, 3), n(3)), call=ops.SquaredDifference()),
    Row("DivMod", (t(2, 3), t(3)), ("floor",)),
    Row("BitwiseAndTensor", (i((2, 3), 8), i((3,), 8)), since=(2, 10, 0)),
    Row("Zeta", (t(2, 3) + 1, t(2, 3)), call=ops.Zeta()),
    Row("Complex", (n(2, 3), n(2, 3)), call=imaginary),
    Row("Polygamma", (t(2, 3),), call=polygamma),
    Row("Zeros", (n(3),), call=zeros, since=(2, 10, 0)),
    Row("Ones", (n(3),), call=ones, since=(2, 10, 0)),
    *arc_grads(),
    Row("Select", (t(2, 3), n(3), n(2, 1)), call=where),
    Row("MaskedFill", (n(2, 3), t(3)), call=masked_fill),
]
REDUCTIONS = [
    *(
        Row("SumExt", (n(2, 3, 2),), (axis, keep, None), option=f"{axis}-{keep}")
        for axis, keep in ((None, False), (0, False), (-1, True), ((0, 2), False), ((-1, 1), True))
    ),
    Row("SumExt", (n(),), (None, False, None), option="number"),
    Row("MeanExt", (n(2, 3),), ((-1,), False, None)),
    *rows("Max Min Trace", n(3, 2)),
    *rows("MaxDim MinDim", n(3, 2), constants=(-1, False)),
    Row("MaxDim", (n(3, 2),), (0, True), option="kept"),
    Row("MaxDim", (n(),), (0, False), option="number"),
    *(
        Row("ProdExt", (t(2, 3),), (axis, keep, None), option=f"{axis}")
        for axis, keep in ((None, False), (-1, True))
    ),
    *(Row("CumSum", (n(2, 3),), (axis,), option=f"{axis}") for axis in (0, -1)),
    Row("CumProd", (n(2, 3),), call=gen.CumProd(), constants=(0,)),
]
SHAPES = [
    Row("FlattenExt", (n(2, 3, 2),), (1, -1)),
    Row("FlattenExt", (n(2, 3, 2),), (0, -2), option="first"),
    Row("FlattenExt", (n(),), (0, -1), option="number"),
    Row("StridedSlice", (n(2, 3, 4),), call=slice_ellipsis, option="ellipsis"),
    Row("StridedSlice", (n(2, 3, 4),), call=slice_masks, option="masks"),
    Row("StridedSlice", (n(2, 3, 4),), call=new_axis, option="new-axis"),
    Row("StridedSliceGrad", (n(2),), call=slice_grad, option="shrink"),
    *(
        Row("Tile", (n(2, 3),), (by,), call=ops.tile, option=f"{len(by)}")
        for by in ((2,), (2, 1), (3, 1, 2))
    ),
    *(
        Row("BroadcastTo", (n(2, 3),), call=ops.BroadcastTo(to), option=f"{to}")
        for to in ((4, 2, 3), (4, -1, -1))
    ),
    Row("TransposeExtView", (n(2, 3, 4),), (0, -1), since=(2, 10, 0)),
    Row("Diagonal", (n(2, 3, 3),), (0, 1, -1), call=ops.diagonal),
    Row("PadV3", (n(2, 3),), call=pad_constant, option="constant"),
    Row("ConstantPadND", (n(2, 3),), ((1, 2, 0, 1), 0.5)),
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
    Row(
        "TensorScatterElements",
        (n(4, 3), i((2, 3), 4), n(2, 3)),
        call=ops.TensorScatterElements(0, "add"),
    ),
    Row("Scatter", (n(4, 3), i((1, 3), 4), n(1, 3)), call=scatter),
    Row("TensorScatterAdd", (n(4, 3), i((2, 1), 4), n(2, 3)), call=ops.TensorScatterAdd()),
    *(
        Row(f"TensorScatter{what}", (t(4, 3), i((2, 1), 4), t(2, 3)), call=scatters())
        for what, scatters in (
            ("Sub", ops.TensorScatterSub),
            ("Mul", ops.TensorScatterMul),
            ("Div", ops.TensorScatterDiv),
            ("Max", ops.TensorScatterMax),
            ("Min", ops.TensorScatterMin),
        )
    ),
    Row("GatherNdExt", (n(4, 3), i((2, 1), 3))),
    Row("GatherNdExt", (n(4, 3), i((3, 2, 2), 3)), option="entries"),
    Row("Argmax", (n(4, 3),), call=ops.Argmax(-1, mindspore.int32)),
    Row("Argmin", (n(4, 3),), call=ops.Argmin(0, mindspore.int64)),
    Row("ArgMaxExt", (n(4, 3),), (-1, True)),
    Row("ArgMaxExt", (n(4, 3),), (None, False), option="all"),
    Row("TensorScatterUpdate", (n(4, 3), i((1, 1), 4), n(1, 3)), call=ops.TensorScatterUpdate()),
    *(
        Row("IndexPut", (n(4, 3), values, i((2,), 3), i((2,), 3)), call=put(2, adds), option=name)
        for adds in (0, 1)
        for name, values in ((f"entries-{adds}", n(2)), (f"one-{adds}", n(1)))
    ),
    Row("IndexPut", (n(4, 3), n(3), i((2,), 4)), call=put(1, 0), option="rows"),
    Row(
        "TensorCopySlices",
        (n(4, 3), n(2, 3)),
        ((1,), (3,), (1,)),
        call=_compat.TensorCopySlices(),
    ),
    Row("UnsortedSegmentSum", (n(5, 3), i((5,), 4)), call=segment_sum),
    Row("UnsortedSegmentSum", (n(2, 3, 2), i((2, 3), 4)), call=segment_sum, option="rank"),
    Row("UnsortedSegmentSum", (n(3), i((5,), 3)), call=beside_a_batch, option="beside"),
    Row("GLU", (n(3, 4),), call=gen.GLU(-1)),
    Row("GLU", (n(4, 3),), call=gen.GLU(0), option="rows"),
    Row("LuUnpack", (n(3, 3), i((3,), 1) + np.int32(1)), call=ops.lu_unpack, axes=(0,)),
    *(
        Row(
            "MultiMarginLoss",
            (n(2, 3), i((2,), 3).astype(np.int64), t(3)),
            call=ops.MultiMarginLoss(2, 0.5, reduction),
            option=reduction,
        )
        for reduction in ("none", "sum", "mean")
    ),
    Row(
        "MaxUnpool2D",
        (n(1, 2, 2, 2), np.array([[[[0, 3], [9, 14]], [[1, 4], [15, 2]]]])),
        call=ops.MaxUnpool2D(2, 2),
    ),
    Row(
        "MaxUnpool3D",
        (n(1, 1, 1, 1, 2), np.array([[[[[3, 11]]]]])),
        call=ops.MaxUnpool3D(2, 2, 0, (1, 1, 2, 2, 4)),
    ),
    Row("MaxPool3D", (n(1, 2, 2, 4, 3),), call=ops.MaxPool3D((1, 2, 2), 2, "same")),
    Row("LinSpace", (n(3),), call=linspace),
    Row("Sort", (n(4, 3),), call=ops.Sort(0)),
    Row("Qr", (n(3, 2),), call=ops.Qr(False)),
    Row("Diag", (n(3),), call=ops.Diag()),
    Row("Diag", (n(2, 3),), call=ops.Diag(), option="of a matrix"),
    Row("DiagPart", (n(3, 3),), call=ops.DiagPart()),
    Row("DiagPart", (n(2, 3, 2, 3),), call=ops.DiagPart(), option="of four axes"),
    Row("MaxPool3DGrad", (n(1, 2, 2, 4, 2), n(1, 2, 1, 2, 1)), call=max_pool_3d_back),
    Row(
        "SigmoidCrossEntropyWithLogitsGrad",
        (n(2, 3), t(2, 3), n(2, 3)),
        call=_grad_ops.SigmoidCrossEntropyWithLogitsGrad(),
    ),
    Row("MaxPool3DGradGrad", (n(1, 2, 2, 4, 2), n(1, 2, 2, 4, 2)), call=max_pool_3d_twice),
    Row("Svd", (n(3, 2),), call=gen.Svd(False, False)),
    Row("ReverseSequence", (n(3, 2, 4), i((2,), 3) + 1), call=reverse_sequence),
    Row(
        "ReverseSequence",
        (n(3, 2, 4), i((3,), 4) + 1),
        call=ops.ReverseSequence(2, 0),
        option="samples first",
    ),
    Row("Range", (n(3),), call=sequence),
    Row("Eye", (n(3, 3),), call=eye),
]
MATMUL = [
    *(
        Row(
            name,
            (n(*lead, *a), n(*lead, *b)),
            call=getattr(gen, name)(flip_a, flip_b),
            option=f"{flip_a}-{flip_b}",
        )
        for name, lead in (("MatMul", ()), ("BatchMatMul", (2,)))
        for a, flip_a in (((2, 3), False), ((3, 2), True))
        for b, flip_b in (((3, 4), False), ((4, 3), True))
    ),
    *(  # one column: the batch is rows of the transposed product
        Row(
            "MatMul",
            (n(*a), n(*b)),
            call=gen.MatMul(flip_a, flip_b),
            option=f"column-{flip_a}-{flip_b}",
        )
        for a, flip_a in (((2, 3), False), ((3, 2), True))
        for b, flip_b in (((3, 1), False), ((1, 3), True))
    ),
    *(
        Row("MatMulExt", (n(*a), n(*b)), option=f"{a}-{b}")
        for a, b in (
            ((2, 3), (3, 1)),
            ((1, 3), (3, 1)),
            ((3,), (3,)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((2, 3), (3, 4)),
            ((5, 2, 3), (3, 4)),
            ((2, 3), (5, 3, 4)),
            ((2, 1, 2, 3), (5, 3, 4)),
            ((5, 2, 3), (3,)),
            ((3,), (5, 3, 4)),
        )
    ),
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
    Row("MatrixPower", (n(3, 3),), call=ops.MatrixPower(3)),
    *(
        Row(
            "CholeskyInverse",
            (triangle(np.eye(3, dtype=np.float32) + 0.1),),
            call=ops.CholeskyInverse(upper),
            option=f"{upper}",
        )
        for upper, triangle in ((False, np.tril), (True, np.triu))
    ),
    *(
        Row("TraceV2", (n(2, 3, 4),), constants, option=f"{constants}")
        for constants in ((0, 0, 1, None), (1, -2, -1, None), (-1, 2, 0, None))
    ),
    *(
        Row("Pdist", (n(4, 3),), call=ops.operations.nn_ops.Pdist(p), option=f"{p}")
        for p in (1.0, 2.0, 3.0)
    ),
    *(
        Row(
            "CumulativeLogsumexp",
            (n(2, 3),),
            (Tensor(axis, mindspore.int32),),
            call=CumulativeLogsumexp(),
            option=f"{axis}",
        )
        for axis in (0, -1)
    ),
    *(
        Row(
            "MirrorPad",
            (n(*shape),),
            (Tensor(paddings, mindspore.int32),),
            call=ops.MirrorPad(mode),
            option=f"{mode}, {len(shape)} axes",
        )
        for mode, shape, paddings in (
            ("REFLECT", (4,), [[1, 2]]),
            ("SYMMETRIC", (2, 3), [[0, 0], [1, 2]]),
            ("REFLECT", (2, 2, 3), [[0, 1], [1, 0], [1, 2]]),
            ("SYMMETRIC", (2, 1, 3, 3), [[0, 0], [0, 0], [0, 3], [1, 2]]),
        )
    ),
    Row("BatchNorm", (n(2, 3, 2, 2), t(3), n(3), n(3), t(3)), call=batch_norm, axes=(0,)),
    Row(
        "BatchNormGrad",
        (n(2, 3, 2, 2), n(2, 3, 2, 2), t(3), n(3), t(3)),
        call=batch_norm_grad,
        axes=(0,),
    ),
    Row(
        "BatchNormGradGrad",
        (n(2, 3, 2, 2), n(2, 3, 2, 2), t(3), n(3), t(3), n(2, 3, 2, 2), n(3), n(3)),
        call=gen.BatchNormGradGrad(False, 1e-5, "NCHW"),
        axes=(0,),
    ),
    *losses(),
    *nll(),
    Row("PReLU", (n(2, 3, 4), t(3))),
    Row("PReLU", (n(2, 3), t(1)), option="one"),
    Row("PReLU", (n(3), t(1)), option="vector"),
    Row("PReLUGrad", (n(2, 3, 4), n(2, 3, 4), t(3))),
    Row("PReLUGrad", (n(2, 3), n(2, 3), t(1)), option="one"),
    Row("GroupNorm", (n(2, 4, 3), t(4), n(4)), call=group_norm),
    Row("GroupNormGrad", (n(2, 4, 3), n(2, 4, 3), n(2, 2), t(2, 2), t(4)), (2, True, True, True)),
    Row("AvgPool3D", (n(2, 2, 4, 4, 4),), call=pool3d),
]
CONVOLUTIONS = [
    *conv("plain"),
    *conv("strided"),
    *conv("grouped"),
    *conv3d(1),
    *conv3d(2),
    *medians(),
    Row("Conv2DTranspose", (n(2, 3, 4, 4), n(3, 2, 3, 3)), call=conv_transpose),
]
TABLE = [*ENTRYWISE, *REDUCTIONS, *SHAPES, *INDEXING, *MATMUL, *NETWORKS, *CONVOLUTIONS]
