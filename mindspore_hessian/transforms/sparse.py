"""A sparse Hessian from few products: the pattern found once, columns that do not meet in one
product, then a check.

The pattern is numerical, of one point; what another point needs beyond it, a product with a random
vector shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import scipy.sparse as sp

from mindspore_hessian import _compat
from mindspore_hessian._errors import FallbackWarning, warn
from mindspore_hessian.core.program import Builder, Function, Point, Program
from mindspore_hessian.core.space import Space, check_finite, numpy_dtype, to_tensor
from mindspore_hessian.transforms import blocks
from mindspore_hessian.transforms.chunks import batched_or_loop
from mindspore_hessian.transforms.pattern import Plan, detected, planned
from mindspore_hessian.transforms.products import product_kernel

_PROBES, _MOST = 16, 64  # products in a batch: to find the pattern, and to compute the entries
_TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-7}


def check_sparse(sparse: Any) -> None:
    """Raise where ``sparse=`` is neither a bool nor a square pattern."""
    if isinstance(sparse, bool):
        return
    if not (sp.issparse(sparse) or isinstance(sparse, np.ndarray)):
        raise TypeError(
            "sparse must be True, False, or the pattern as a scipy sparse matrix or a numpy "
            f"array, but got {type(sparse).__name__}"
        )
    if sparse.dtype.kind not in "fiubc":
        raise TypeError(f"sparse is a pattern of numbers or bools, but has dtype {sparse.dtype}")
    if sparse.ndim != 2 or sparse.shape[0] != sparse.shape[1]:
        raise ValueError(
            f"sparse is a pattern, so it must be a square matrix, but has shape {sparse.shape}"
        )


class SparseHessian:
    """The Hessian of one function as a sparse matrix; it keeps the pattern for each set of shapes.

    Args:
        pattern: True to find it, or what is known of it: a matrix that is not zero where the
            Hessian may be.
        chunk_size: so many products in a batch.
    """

    def __init__(self, pattern: Any, chunk_size: int | None):
        self.given = None if isinstance(pattern, bool) else sp.csc_array(pattern)
        self.chunk_size = chunk_size
        self.plans: dict[tuple, Plan] = {}

    def __call__(self, point: Point) -> tuple[sp.csr_array, Any]:
        """The matrix over all entries of the variables, one after another, and aux."""
        rows = _Products(point)
        if self.given is not None and self.given.shape[0] != rows.n:
            raise ValueError(
                f"sparse has shape {self.given.shape}, but what is differentiated has {rows.n} "
                "entries"
            )

        def matrix_by(products: _Products) -> tuple[sp.csr_array, str, Any]:
            return *self._matrix(products), products.aux

        matrix, missing, aux = batched_or_loop(
            "hessian", lambda: matrix_by(rows), lambda: matrix_by(_Products(point, batched=False))
        )
        if missing and self.given is not None:
            raise ValueError(
                f"the pattern given as sparse= misses entries of the Hessian: {missing}. Pass "
                "sparse=True to have it found"
            )
        if missing:
            warn(
                f"hessian: no sparse pattern agrees with the products ({missing}), so the matrix "
                "is computed whole",
                FallbackWarning,
            )
        check_finite("hessian", to_tensor(matrix.data, rows.dtype))
        return matrix.astype(rows.numpy_dtype), aux

    def _matrix(self, rows: _Products) -> tuple[sp.csr_array, str]:
        """The matrix, and what its pattern misses ("" for nothing; where one was found and misses
        any, it is whole).
        """
        shapes = rows.point.space.shapes
        plan = self.plans.get(shapes) or planned(
            self._found(rows, 0) if self.given is None else self.given
        )
        matrix, missing = self._checked(rows, plan)
        if missing and self.given is None:  # this point has entries that the one before had not
            plan = planned(self._found(rows, 1) + plan.pattern)
            matrix, missing = self._checked(rows, plan)
            if missing:
                plan = planned(sp.csr_array(np.ones((rows.n, rows.n), bool)))
                matrix = plan.matrix(rows)
        self.plans[shapes] = plan
        return matrix, missing

    def _found(self, rows: _Products, seed: int) -> sp.csc_array:
        """The pattern, by random products."""
        rows.count = self.chunk_size or _PROBES
        return detected(rows, rows.n, np.random.default_rng(seed))

    def _checked(self, rows: _Products, plan: Plan) -> tuple[sp.csr_array, str]:
        """The matrix, and where its product with a random vector is not the Hessian's ("" where it
        is).
        """
        probe = np.random.default_rng(plan.products).uniform(1, 2, rows.n)
        rows.count = min(self.chunk_size or _MOST, plan.products + 1)
        images: list[np.ndarray] = []

        def with_probe(seeds: np.ndarray) -> np.ndarray:
            if images:
                return rows(seeds)
            found = rows(np.concatenate([seeds, probe[None]]))
            images.append(found[-1])
            return found[:-1]

        matrix = plan.matrix(with_probe)
        return matrix, _difference(images[0], matrix, probe, _TOLERANCE[rows.numpy_dtype])


class _Products:
    """``rows(V)``: the Hessian of a scalar function times each row of V, flat, in float64."""

    def __init__(self, point: Point, batched: bool = True):
        self.point, self.batched, self.count, self.aux = point, batched, 1, None
        self.n, dtypes = point.space.size, set(point.space.dtypes)
        if not dtypes <= {ms.float32, ms.float64} or len(dtypes) > 1:
            raise TypeError(
                "sparse=True takes variables of one dtype, float32 or float64, but got "
                f"{', '.join(map(str, point.space.dtypes))}"
            )
        self.dtype = dtypes.pop()
        self.numpy_dtype = numpy_dtype(self.dtype)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Always `count` at a time, so that one graph does for all; what is left over is filled up
        with zeros.
        """
        count = min(self.count, self.n) if self.batched else 1
        out = np.empty(vectors.shape)
        for start in range(0, len(vectors), count):
            some = np.zeros((count, self.n), self.numpy_dtype)
            piece = vectors[start : start + count]
            some[: len(piece)] = piece
            parts = self.point.space.split(some if self.batched else some[0])
            result, self.aux = _PRODUCTS[self.batched].run(
                self.point, tuple(to_tensor(p, self.dtype) for p in parts)
            )
            images = [_compat.to_numpy(part).reshape(count, -1) for part in result]
            out[start : start + count] = np.concatenate(images, axis=1)[: len(piece)]
        return out


def _batched(function: Function, space: Space) -> Callable:
    n, product = function.n, blocks.hessian_times(function.value, space.positions, space.parameters)

    def run(*tensors):
        return product(tensors[:n], tensors[n:])

    return run


_BUILDERS: dict[bool, Builder] = {True: _batched, False: product_kernel("revrev")}
_PRODUCTS = {
    batched: Program("hessian", build, ("sparse", batched)) for batched, build in _BUILDERS.items()
}


def _difference(
    truth: np.ndarray, matrix: sp.csr_array, probe: np.ndarray, tolerance: float
) -> str:
    found, size = matrix @ probe, abs(matrix) @ probe
    if not np.isfinite(truth).all() or not np.isfinite(found).all():
        return ""  # a NonFiniteWarning says so
    excess = np.abs(truth - found) - tolerance * (size + tolerance * size.max())
    row = int(np.argmax(excess))
    return (
        f"row {row} of a product is {truth[row]:.6g} instead of {found[row]:.6g}"
        if excess[row] > 0
        else ""
    )
