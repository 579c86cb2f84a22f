"""Rules of decompositions: eigenvectors, singular vectors, QR factors.

Forward rules and Taylor rules are one here: coefficient n of the factors solves a linear equation in
those before it. Where it has no solution, as for the eigenvectors of equal eigenvalues, what is
divided by 0 is infinite.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.kit import front, inverse, leading, primitive, transposed
from mindspore_hessian.rules.registry import batching, derivative
from mindspore_hessian.rules.taylor import by_expansion, matrix_at

# --- eigenvalues ----------------------------------------------------------------------------------


@constexpr
def _own_triangle(n, lower, real):
    """1 in the triangle that an eigendecomposition reads, 1/2 on its diagonal."""
    if not real:
        raise ValueError(
            "mindspore_hessian has no derivative of the eigendecomposition of a complex matrix. "
            "Write it as the real one of twice the size, [[re, -im], [im, re]]."
        )
    triangle = np.tri(n) - np.eye(n) / 2
    return Tensor(triangle if lower else triangle.T)


@constexpr
def _rounding(n, double):
    """Relative to the largest, how far apart equal eigenvalues of an n x n matrix may come out."""
    return float(4 * n * np.finfo(np.float64 if double else np.float32).eps)


@constexpr
def _unit(n):
    return Tensor(np.eye(n))


def _quotient(a, b):
    """a / b, where 0 / 0 is 0 and has no derivative."""
    neither = ops.logical_and(a == 0, b == 0)
    one = ops.ones_like(a)
    return ops.where(
        neither,
        ops.sqrt(ops.abs(ops.where(neither, a, one))),
        a / ops.where(neither, one, b),
    )


def _unequal(s, apart):
    """Differences of the entries of s, those that are rounding as 0."""
    equal = ops.abs(apart) <= _rounding(s.shape[-1], s.dtype == ms.float64) * ops.abs(s).max()
    return ops.where(equal, ops.zeros_like(apart), apart)


@derivative("Eigh", why="MindSpore's is silently wrong for equal eigenvalues", replaces=True)
def eigh(prim):
    """(w, V) of a symmetric matrix, or w alone: V (dw + (V^T dV) F) V^T, F_ij = 1 / (w_j - w_i).
    Where two are equal V has no derivative, and what depends on it is infinite; what MindSpore has is
    a number, but no derivative either."""
    lower, vectors = prim.attrs["lower"], prim.attrs["compute_eigenvectors"]
    whole = _compat.Eigh(True, lower)

    def bprop(x, out, dout):
        unit = ops.cast(_unit(x.shape[-1]), x.dtype)
        if vectors:
            w, v = out
            part = _unequal(w, ops.expand_dims(w, -2) - ops.expand_dims(w, -1))
            turned = ops.matmul(transposed(v), dout[1]) * (1 - unit)
            turned = _quotient(turned, part + unit)
            middle = turned + unit * ops.expand_dims(dout[0], -1)
        else:
            v = whole(x)[1]
            middle = unit * ops.expand_dims(dout, -1)
        dx = ops.matmul(ops.matmul(v, middle), transposed(v))
        real = x.dtype in (ms.float32, ms.float64)
        return ((dx + transposed(dx)) * ops.cast(_own_triangle(x.shape[-1], lower, real), x.dtype),)

    return bprop


def _others(basis, d, count):
    """The columns after the first ones, and d at these: None for none. They are a basis of what the
    first leave, but any of it: a function that asks for one has no derivative, which is infinite
    here."""
    if basis.shape[-1] == count:
        return None
    more, d = basis[..., count:], d[..., count:]
    turning = ops.matmul(transposed(more), d)
    turning = ops.square(turning - transposed(turning)).sum()
    chosen = turning > 1e-6 * ops.square(d).sum()
    return more, ops.where(chosen, ops.full_like(d, float("inf")), d)


@derivative("Svd", why="MindSpore's has no second derivative: infinite or NaN", replaces=True)
def svd(prim):
    """(s, U, V) of x = U S V^T, or s alone: U (ds + P(U^T dU) S + S P(V^T dV)) V^T + (I - U U^T) dU S^-1
    V^T + U S^-1 dV^T (I - V V^T), P(X)_ij = (X - X^T)_ij / (s_j^2 - s_i^2). Where two are equal, or
    one is 0, U and V may have no derivative: what is divided by 0 is infinite then."""
    whole = _compat.Svd(False, True)

    def projected(d, basis, s, others):
        """What of d is not in the basis, divided by s; `others` complete the basis, and turn with
        it.
        """
        outside = d - ops.matmul(basis, ops.matmul(transposed(basis), d))
        if others is not None:
            more, d_more = others
            outside = outside - ops.matmul(more, ops.matmul(transposed(d_more), basis))
        return _quotient(outside, s)

    def bprop(x, full_matrices, compute_uv, out, dout):
        s, u, v = out if compute_uv else whole(x)
        count, ds = s.shape[-1], dout[0]
        unit = ops.cast(_unit(count), x.dtype)
        middle = unit * ops.expand_dims(ds, -1)
        if not compute_uv:
            return ops.matmul(ops.matmul(u, middle), transposed(v)), 0, 0
        du, dv = dout[1], dout[2]
        others = _others(u, du, count), _others(v, dv, count)
        u, v, du, dv = u[..., :count], v[..., :count], du[..., :count], dv[..., :count]
        row, column = ops.expand_dims(s, -2), ops.expand_dims(s, -1)
        apart = _unequal(s, row - column) * (row + column)

        def turned(basis, d):
            found = ops.matmul(transposed(basis), d)
            return _quotient((found - transposed(found)) * (1 - unit), apart + unit)

        middle = middle + turned(u, du) * row + column * turned(v, dv)
        dx = ops.matmul(ops.matmul(u, middle), transposed(v))
        if x.shape[-2] > count:
            dx = dx + ops.matmul(projected(du, u, row, others[0]), transposed(v))
        if x.shape[-1] > count:
            dx = dx + ops.matmul(u, transposed(projected(dv, v, row, others[1])))
        return dx, 0, 0

    return bprop


@batching("Svd", why="MindSpore's rule fails", replaces=True)
def batched_svd(prim, axis_size):
    """Its kernel takes stacks."""
    prim = primitive(prim)

    def rule(x_pair, full_pair, vectors_pair):
        x, dim = x_pair
        s, u, v = prim(front(x, dim), full_pair[0], vectors_pair[0])
        if dim is None:
            return (s, None), (u, None), (v, None)
        at = 0 if vectors_pair[0] else None
        return (s, 0), (u, at), (v, at)

    return rule


@constexpr
def _below(n):
    """1 below the diagonal."""
    return Tensor(np.tri(n, k=-1))


@constexpr
def _of_reduced(full_matrices, rows, columns):
    """The number of columns of Q that have a derivative: all of them."""
    if full_matrices and rows > columns:
        raise NotImplementedError(
            "mindspore_hessian has no derivative of a complete QR decomposition of a matrix with more "
            "rows than columns: the last columns of Q may be any basis of the rest. Use mode='reduced'."
        )
    return min(rows, columns)


@derivative("Qr")
def qr(prim):
    """(Q, R) of x: (dQ + Q H) R^-T, with H symmetric, its upper part that of dR R^T - Q^T dQ. Further
    columns of x are further ones of R, Q^T x."""

    def bprop(x, full_matrices, out, dout):
        (q, r), (dq, dr) = out, dout
        count = _of_reduced(full_matrices, x.shape[-2], x.shape[-1])
        first = r[..., :count]
        if x.shape[-1] > count:
            dq = dq + ops.matmul(x[..., count:], transposed(dr[..., count:]))
        both = ops.matmul(dr[..., :count], transposed(first)) - ops.matmul(transposed(q), dq)
        below = ops.cast(_below(count), x.dtype)
        both = both * (1 - below) + transposed(both) * below
        dx = ops.matmul(dq + ops.matmul(q, both), transposed(inverse(first)))
        if x.shape[-1] > count:
            dx = ops.concat((dx, ops.matmul(q, dr[..., count:])), -1)
        return dx, 0

    return bprop


batching("Qr")(leading)

# --- forward, and Taylor coefficients -------------------------------------------------------------


def _columns_at(a, s, n):
    """Coefficient n of a diag(s), but for the terms with a_0 and with s_0; None for none."""
    total = None
    for i in range(1, n):
        term = a[i] * ops.expand_dims(s[n - i], -2)
        total = term if total is None else total + term
    return total


def _lengths_at(a, n):
    """Half of coefficient n of the squared lengths of the columns of a, but for the terms with a_0;
    None for none."""
    total = None
    for i in range(1, n):
        term = (a[i] * a[n - i]).sum(-2)
        total = term if total is None else total + term
    return None if total is None else taylor.over(total, 2)


def _minus(a, b):
    return a if b is None else a - b


@by_expansion("Eigh")
def expanded_eigh(prim):
    """(w, V), or w alone, of V = V_0 Z, Z^T Z = 1 and (V_0^T x V_0) Z = Z diag(w): coefficient n of
    both sides gives w_n on the diagonal and Z_n beside it."""
    lower, vectors = prim.attrs["lower"], prim.attrs["compute_eigenvectors"]
    whole = _compat.Eigh(True, lower)

    def function(x):
        w, v = whole(x[0])
        unit = ops.cast(_unit(w.shape[-1]), w.dtype)
        real = x[0].dtype in (ms.float32, ms.float64)
        triangle = ops.cast(_own_triangle(w.shape[-1], lower, real), w.dtype)
        apart = _unequal(w, ops.expand_dims(w, -2) - ops.expand_dims(w, -1))
        ws, vs, zs, turned = (w,), (v,), (unit,), (None,)
        for n in range(1, len(x)):
            half = x[n] * triangle
            both = ops.matmul(half + transposed(half), v)
            turned = turned + (ops.matmul(transposed(v), both),)
            rest = _minus(matrix_at(turned, zs, n, 1), _columns_at(zs, ws, n))
            z = _quotient(rest * (1 - unit), apart + unit)
            lengths = _lengths_at(zs, n)
            if lengths is not None:
                z = z - unit * ops.expand_dims(lengths, -2)
            ws, zs = ws + ((rest * unit).sum(-1),), zs + (z,)
            vs = vs + (ops.matmul(v, z),)
        return (ws, vs) if vectors else ws

    return function


@by_expansion("Svd")
def expanded_svd(prim):
    """(s, U, V) of x V = U diag(s), x^T U = V diag(s) with columns of length 1. What a full U or V has
    besides is any basis of the rest, whose derivatives are left to reverse ones."""
    whole = _compat.Svd(False, True)

    def function(x, full_matrices, compute_uv):
        s, u, v = whole(x[0])
        if compute_uv and full_matrices and x[0].shape[-2] != x[0].shape[-1]:
            return None
        unit = ops.cast(_unit(s.shape[-1]), s.dtype)
        row, column = ops.expand_dims(s, -2), ops.expand_dims(s, -1)
        apart = _unequal(s, row - column) * (row + column)
        flipped, ss, us, vs = taylor.transposed(x), (s,), (u,), (v,)

        def completed(basis, known, inside, turned):
            """The next coefficient of a basis, of which `turned` is in it, and the rest is that of
            `known`."""
            out = ops.matmul(basis, turned)
            if basis.shape[-2] == basis.shape[-1]:
                return out
            return out + _quotient(known - ops.matmul(basis, inside), row)

        for n in range(1, len(x)):
            a = _minus(matrix_at(x, vs, n, 1), _columns_at(us, ss, n))
            b = _minus(matrix_at(flipped, us, n, 1), _columns_at(vs, ss, n))
            p, q = ops.matmul(transposed(u), a), ops.matmul(transposed(v), b)
            of_u = _quotient((p * row + column * q) * (1 - unit), apart + unit)
            of_v = _quotient((q * row + column * p) * (1 - unit), apart + unit)
            change = (p * unit).sum(-1)
            left, right = _lengths_at(us, n), _lengths_at(vs, n)
            if left is not None:
                of_u = of_u - unit * ops.expand_dims(left, -2)
                of_v = of_v - unit * ops.expand_dims(right, -2)
                change = change + s * (left - right)
            ss = ss + (change,)
            us, vs = us + (completed(u, a, p, of_u),), vs + (completed(v, b, q, of_v),)
        if compute_uv:
            return ss, us, vs
        _, u, v = prim(x[0], full_matrices, compute_uv)
        return ss, (u,), (v,)

    return function


@by_expansion("Qr")
def expanded_qr(prim):
    """(Q, R) of Q R = x, Q^T Q = 1 and R upper: Q_0^T Q_n is antisymmetric but for what is known, and
    below the diagonal it is all there is. Further columns of x are further ones of R, Q^T x."""

    def function(x, full_matrices):
        count = _of_reduced(full_matrices, x[0].shape[-2], x[0].shape[-1])
        q, r = prim(x[0], full_matrices)
        first = r[..., :count]
        back = inverse(first)
        below, unit = ops.cast(_below(count), r.dtype), ops.cast(_unit(count), r.dtype)
        qs, rs, flipped = (q,), (first,), (transposed(q),)
        for n in range(1, len(x)):
            rest, known = x[n][..., :count], None
            for i in range(1, n):
                rest = rest - ops.matmul(qs[i], rs[n - i])
                term = ops.matmul(flipped[i], qs[n - i])
                known = term if known is None else known + term
            inside = ops.matmul(ops.matmul(flipped[0], rest), back)
            turned = inside * below
            turned = turned - transposed(turned)
            if known is not None:
                turned = turned - known * transposed(below) - known * unit / 2
            change = ops.matmul(inside - turned, first)
            q = ops.matmul(rest - ops.matmul(qs[0], change), back)
            qs, rs, flipped = qs + (q,), rs + (change,), flipped + (transposed(q),)
        if x[0].shape[-1] > count:
            wide, further = (r,), ()
            for one in x:
                further = further + (one[..., count:],)
            for n in range(1, len(x)):
                more = matrix_at(flipped, further, n)
                wide = wide + (ops.concat((rs[n], more), -1),)
            rs = wide
        return qs, rs

    return function
