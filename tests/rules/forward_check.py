"""Lines of the table (calls.py) in one forward pass, against torch: gradient and Hessian along a
vector.
"""

from __future__ import annotations

import check
import numpy as np
from mindspore import mutable, ops, vmap

from mindspore_hessian import _compat
from mindspore_hessian.rules import interpreter
from mindspore_hessian.rules.missing import unrolled
from mindspore_hessian.transforms.forward import push

FACTORS = np.array([1.0, -0.5, 2.0])  # the directions are so many times the line's vector


class Lines:
    """Some lines as one function of all their inputs with an output s = sum(w (y + y^2 / 2))
    each.
    """

    def __init__(self, calls, folder):
        self.calls = calls
        self.checks = [
            check.Check(call, check.spaces(call)[0], dtype_of(call), folder) for call in calls
        ]
        self.points = [point for one in self.checks for point in one.tensors(one.point)]
        self.seeds = [
            seed
            for one in self.checks
            for seed in one.tensors(
                [FACTORS.reshape((-1,) + (1,) * vector.ndim) * vector for vector in one.vector]
            )
        ]

    def errors(self):
        """The errors of the first and of the second derivative for each line, relative to the
        gradient's and the product's largest entry."""
        found = self._run()
        out = []
        for one, (_, first, second) in zip(self.checks, found, strict=True):
            vector = np.concatenate([np.reshape(part, -1) for part in one.vector])
            gradient, product = (
                check.GOLDEN[f"{one.call.key}/{order}"] for order in ("gradient", "hvp")
            )
            out.append(
                (
                    np.abs(first - FACTORS * (gradient @ vector)).max()
                    / (np.abs(gradient).max() + 1e-2),
                    np.abs(second - (FACTORS**2).sum() * (product @ vector)).max()
                    / ((FACTORS**2).sum() * np.abs(product).max() + 1e-2),
                )
            )
        return out

    def copied(self):
        """The primitives that `vmap` over two of each input copies, for want of a batching rule."""
        every = vmap(self._every(), in_axes=0 if len(self.points) == 1 else (0,) * len(self.points))

        def run(*xs):
            return every(*xs)

        with _compat.batching_rules_watched(unrolled) as asked:
            _compat.Graph(run, tuple(ops.stack((x, x)) for x in self.points), "O0")
        return {name for name, there in asked.items() if not there}

    def _every(self):
        ends = np.cumsum([len(one.point) for one in self.checks]).tolist()
        cuts = tuple(zip([0, *ends[:-1]], ends, strict=True))
        functions = tuple(one.module.s for one in self.checks)

        def every(*xs):
            outs = ()
            for number in range(len(functions)):
                first, last = cuts[number]
                outs = outs + (functions[number](*xs[first:last]),)
            return outs

        return every

    def _run(self):
        count = len(self.points)
        pushed = push(self._every(), tuple(range(count)), None)

        def run(*tensors):
            js = ()
            for direction in tensors[count:]:
                js = js + (mutable(direction),)
            return pushed(tensors[:count], js)

        tensors = (*self.points, *self.seeds)
        try:
            graph = _compat.Graph(run, tensors, "O0")
        finally:
            interpreter.close()
        return [
            [np.array(part.asnumpy(), np.float64) for part in triple] for triple in graph(tensors)
        ]


IN_FLOAT32 = (  # kernels that take no float64
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "dist",
    "lerp",
    "prelu",
    "BatchNorm1d",
    "BatchNorm2d",
    "TripletMarginWithDistanceLoss",
    "SoftmaxCrossEntropyWithLogits",
)


def dtype_of(call):
    """The line's, else the exact one."""
    return "float32" if "in" in call.more or call.head in IN_FLOAT32 else "float64"


def comparable(call):
    """Whether torch has a value of the line, and MindSpore the function."""
    return (
        "refused" not in call.more
        and f"{call.key}/hvp" in check.GOLDEN
        and bool(check.spaces(call))
    )
