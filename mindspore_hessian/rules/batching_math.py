"""Batching rules: arithmetic, reductions and scans."""
from __future__ import annotations

from mindspore.ops import constexpr

from mindspore_hessian.rules import batching_index, batching_matmul, batching_shape
from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    all_batched,
    along_axis,
    any_batched,
    binary,
    broadcasting,
    constant,
    cotangent_second,
    front,
    primitive,
    reduction,
    reshape,
    same_shape,
    shifted,
    unary,
    values,
)

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"
_COPIES = "MindSpore's rule copies the unbatched operand along the batch"
_SLOW = "MindSpore's rule gives an unbatched operand a batch axis of its own: twice the nodes and the compile time"

ENTRYWISE = (
    "Muls", "Divs", "AddScalar", "SubScalar", "PowTensorScalar", "ClampScalar", "GreaterEqualScalar", "LessScalar",
    "EqScalar", "ZerosLikeExt", "OnesLikeExt", "Lgamma", "Digamma", "Sinc",
)


BINARY = (
    "Add", "Sub", "Mul", "Div", "RealDiv", "Pow", "Maximum", "Minimum", "Atan2", "Greater", "GreaterEqual", "Less",
    "LessEqual", "Equal", "NotEqual", "Xlogy", "Xdivy",
)
NO_RULE_BINARY = (
    "Fmax", "Hypot", "DivMod", "BitwiseAndTensor", "SquaredDifference",
)
ARC = ("ACosGrad", "AcoshGrad", "AsinGrad", "AsinhGrad", "AtanGrad", "InvGrad", "ReciprocalGrad")


def add_n(prim, axis_size):
    """Sum of a tuple of tensors of one shape: unbatched ones broadcast."""
    prim = primitive(prim)

    def rule(pairs):
        terms = tuple([front(x, dim) for x, dim in pairs])
        if all_batched(tuple([dim for _, dim in pairs])):
            return prim(terms), 0
        if not any_batched(tuple([dim for _, dim in pairs])):
            return prim(terms), None
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, 0

    return rule


@constexpr
def _kept(shape, keep_dims):
    return (shape[0],) + (1,) * (len(shape) - 1) * keep_dims


def product(prim, axis_size):
    """ProdExt(x, axis, keep_dims, dtype), which takes one axis or none."""
    prim = primitive(prim)

    def rule(x_pair, axis_pair, keep_pair, dtype_pair):
        x, dim = x_pair
        axis, keep_dims, dtype = axis_pair[0], keep_pair[0], dtype_pair[0]
        if dim is None:
            return prim(x, axis, keep_dims, dtype), None
        x = front(x, dim)
        if axis is None or x.ndim == 1:
            return reshape(prim(reshape(x, (axis_size, -1)), 1, False, dtype), _kept(x.shape, keep_dims)), 0
        return prim(x, shifted(axis), keep_dims, dtype), 0

    return rule


def polygamma(prim, axis_size):
    """Polygamma(n, x) of one order n."""
    prim = primitive(prim)

    def rule(order_pair, x_pair):
        return prim(values((order_pair,))[0], x_pair[0]), x_pair[1]

    return rule


RULES: tuple[Batching, ...] = (
    *batching_matmul.RULES,
    *batching_shape.RULES,
    *batching_index.RULES,
    *(Batching(name, unary, _UNROLLED) for name in ENTRYWISE),
    *(Batching(name, binary, _SLOW, replaces=True) for name in BINARY),
    *(Batching(name, binary, _UNROLLED) for name in NO_RULE_BINARY),
    *(Batching(name, same_shape(2), _UNROLLED) for name in ("Zeta", "Complex")),
    *(Batching(name, constant, _UNROLLED) for name in ("Zeros", "Ones")),
    *(Batching(name, cotangent_second, _COPIES, replaces=True) for name in ARC),
    Batching("Polygamma", polygamma, _UNROLLED),
    *(Batching(name, reduction, _UNROLLED) for name in ("SumExt", "MeanExt")),
    *(Batching(name, along_axis, _UNROLLED) for name in ("CumSum", "CumProd")),
    *(Batching(name, cotangent_second, _COPIES, replaces=True) for name in ("TanhGrad", "SqrtGrad", "RsqrtGrad")),
    Batching("Select", broadcasting, "MindSpore's rule is wrong for nested batches of unequal rank (2.7.2)",
             replaces=True),
    Batching("ProdExt", product, _UNROLLED),
    Batching("AddN", add_n, _COPIES, replaces=True),
    Batching("SigmoidGrad", cotangent_second, _UNROLLED),
)
