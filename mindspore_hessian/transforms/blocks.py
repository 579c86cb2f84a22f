"""Matrices from products, as functions that MindSpore compiles: products over the rows of the
identity, batched.

As in `compose`, the factories run in Python and what they return is compiled. A function with
several outputs is treated as one with a vector of M outputs, and cut into the outputs at the end.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops, vmap

from mindspore_hessian.core.space import cut, selected, size_of, unraveled
from mindspore_hessian.transforms import compose

# What is batched or differentiated goes through `mutable`: MindSpore's vmap and gradient lose
# arguments whose value is known as they compile.
# Primitives and constants instead of the functions of `mindspore.ops`: a graph of these compiles in
# half the time.
_EQUAL, _CAST, _RESHAPE, _CONCAT = ops.Equal(), ops.Cast(), ops.Reshape(), ops.Concat()


@ops.constexpr
def _line(start, size, shape):
    """The numbers start, start + 1, ... as a constant of the graph."""
    return Tensor(np.arange(start, start + size).reshape(shape), ms.int32)


def tensors(f):
    """`f`, refusing an output that is neither a Tensor nor a tuple.

    What is batched must be made of `f` itself, not of this: where a function that is called in the
    open is also called in what is batched, and writes (statistics of batch norm), MindSpore loses
    its Parameters ("Illegal AnfNode").
    """

    def checked(*xs):
        out = f(*xs)
        if not isinstance(out, (Tensor, tuple)):  # noqa: UP038 -- compiled by MindSpore
            raise TypeError(
                "fn must return a Tensor or a tuple of Tensors; it returned something else. "
                "Where it returns (value, aux), pass has_aux=True."
            )
        if isinstance(out, tuple):
            for item in out:
                compose.check_float(item)
        else:
            compose.check_float(out)
        return out

    return checked


def flat(f):
    """``F(*xs)``: every output of `f` in one vector of length M."""

    def flattened(*xs):
        out = f(*xs)
        if isinstance(out, tuple):
            parts = ()
            for item in out:
                parts = parts + (_RESHAPE(item, (-1,)),)
            return _CONCAT(parts)
        return _RESHAPE(out, (-1,))

    return flattened


def width(out):
    """M, the number of entries of all outputs."""
    if isinstance(out, tuple):
        total = 0
        for item in out:
            total = total + size_of(item.shape)
        return total
    return size_of(out.shape)


def dtype_of(out):
    """The dtype of the flat outputs."""
    if isinstance(out, tuple):
        return out[0].dtype
    return out.dtype


def per_output(convert):
    """``assemble(out, xs, parts)``: cut axis 0 (of length M) of every part into the outputs.

    ``convert(xs, parts, shape)`` shapes the parts of one output, whose shape it is given.
    """

    def assemble(out, xs, parts):
        if not isinstance(out, tuple):
            return convert(xs, parts, out.shape)
        result = ()
        start = 0
        for item in out:
            size = size_of(item.shape)
            pieces = ()
            for part in parts:
                pieces = pieces + (cut(part, 0, start, size),)
            result = result + (convert(xs, pieces, item.shape),)
            start = start + size
        return result

    return assemble


def basis(pos, ws, count):
    """``make(xs, start)``: rows start to start + count of the identity (all, for None), a block for
    each variable.
    """
    select = selected(pos, ws)

    def make(xs, start):
        number = count
        if count is None:
            number = 0
            for x in select(xs):
                number = number + size_of(x.shape)
        lines = _line(0, number, (-1, 1))
        if isinstance(start, Tensor):
            lines = lines + start
        out = ()
        column = 0
        for x in select(xs):
            size = size_of(x.shape)
            block = _CAST(_EQUAL(lines, _line(column, size, (1, -1))), x.dtype)
            out = out + (mutable(_RESHAPE(block, (number,) + x.shape)),)
            column = column + size
        return out

    return make


def unit_rows(start, number, column, size, dtype):
    """Columns column to column + size of the rows start to start + number of an identity matrix."""
    return _CAST(_EQUAL(_line(start, number, (-1, 1)), _line(column, size, (1, -1))), dtype)


def numbers_like(x):
    """0, 1, 2, ... in the shape of x."""
    return _line(0, size_of(x.shape), x.shape)


def identity(size, dtype):
    """The identity matrix, in any dtype."""
    return mutable(_CAST(_EQUAL(_line(0, size, (-1, 1)), _line(0, size, (1, -1))), dtype))


def packed(one, depth):
    """``pack(value)`` of what a matrix function gives: a tuple over the variables (for `depth` 2 of
    such tuples), or with several outputs one of these for each. Where `one` variable was not in a
    tuple, its entry alone."""

    def entry(value):
        if not one:
            return value
        return value[0] if depth == 1 else value[0][0]

    def pack(value):
        if isinstance(value[0] if depth == 1 else value[0][0], tuple):
            out = ()
            for output in value:
                out = out + (entry(output),)
            return out
        return entry(value)

    return pack


# --- products: (xs, u, vs) -> one Tensor a variable, the Hessian of <f, u> times vs ---------------


def over_reverse(direction):
    """The derivative, in a direction, of the gradient."""

    def make(f, pos, ws):
        derivative = direction(compose.seeded_gradient(f, pos, ws), pos, ws)

        def product(xs, u, vs):
            return derivative(xs + (u,), vs)

        return product

    return make


def reverse_over_forward(f, pos, ws):
    """The gradient of <J vs, u>."""
    push = compose.jvp(f, pos, ws)
    count = len(pos) + (0 if ws is None else len(ws))

    def directional(*args):
        return push(args[:-count], args[-count:])

    pull = compose.vjp(directional, pos, ws)

    def product(xs, u, vs):
        return pull(xs + vs, u)

    return product


def forward_over_forward(f, pos, ws):
    """u^T (d/de_j) (J vs) for every row e_j of the identity."""
    push = compose.jvp(f, pos, ws)
    count = len(pos) + (0 if ws is None else len(ws))

    def directional(*args):
        return push(args[:-count], args[-count:])

    second = compose.jvp(directional, pos, ws)
    make, split = basis(pos, ws, None), unraveled(pos, ws)

    def one(xs, vs, es):
        return second(xs + vs, es)

    columns = vmap(one, in_axes=(None, None, 0))

    def product(xs, u, vs):
        return split(xs, ops.mul(columns(xs, vs, make(xs, 0)), u).sum(-1))

    return product


PRODUCTS = {
    "revrev": over_reverse(compose.vjp),
    "fwdrev": over_reverse(compose.jvp),
    "revfwd": reverse_over_forward,
    "fwdfwd": forward_over_forward,
}


def many(product):
    """``rows(xs, out, vs)``: `product` for every output and every row of vs: parts (M, rows,
    *x.shape).
    """
    over_vectors = vmap(product, in_axes=(None, None, 0))
    over_outputs = vmap(over_vectors, in_axes=(None, 0, None))

    def rows(xs, out, vs):
        size = width(out)
        if size > 1:
            return over_outputs(xs, identity(size, dtype_of(out)), vs)
        parts = ()
        for part in over_vectors(xs, mutable(_CAST(_line(1, 1, (1,)), dtype_of(out))), vs):
            parts = parts + (_RESHAPE(part, (1,) + part.shape),)
        return parts

    return rows


def hessian_times(f, pos, ws):
    """``H(xs, vs)``: the Hessian of a scalar function times every row of vs: a part (1, rows,
    *x.shape) a variable.
    """
    checked, rows = compose.scalar(f), many(PRODUCTS["revrev"](flat(f), pos, ws))

    def times(xs, vs):
        return rows(xs, checked(*xs), vs)

    return times


# --- Hessians -------------------------------------------------------------------------------------


def hessian(f, pos, ws, mode, check=tensors):
    """``H(*xs)``: for each output the blocks H[i][j] of shape out.shape + x_i.shape + x_j.shape."""
    checked = check(f)
    rows, make, select = (
        many(PRODUCTS[mode](flat(f), pos, ws)),
        basis(pos, ws, None),
        selected(pos, ws),
    )

    def blocks(xs, parts, shape):
        result = ()
        start = 0
        for x in select(xs):
            size = size_of(x.shape)
            line = ()
            for part, y in zip(parts, select(xs)):  # noqa: B905 -- compiled by MindSpore, which has no strict=
                line = line + (_RESHAPE(cut(part, 1, start, size), shape + x.shape + y.shape),)
            result = result + (line,)
            start = start + size
        return result

    assemble = per_output(blocks)

    def matrix(*xs):
        out = checked(*xs)
        return assemble(out, xs, rows(xs, out, make(xs, 0)))

    return matrix


def hessian_rows(f, pos, ws, count):
    """``H(*xs, start)``: `count` rows of the Hessian: for each output and variable out.shape +
    (count,) + x.shape.
    """
    checked = tensors(f)
    rows, make = many(PRODUCTS["revrev"](flat(f), pos, ws)), basis(pos, ws, count)

    def shaped(xs, parts, shape):
        out = ()
        for part in parts:
            out = out + (_RESHAPE(part, shape + part.shape[1:]),)
        return out

    assemble = per_output(shaped)

    def some(*args):
        xs = args[:-1]
        out = checked(*xs)
        return assemble(out, xs, rows(xs, out, make(xs, args[-1])))

    return some


def hessian_row(f, pos, ws):
    """``h(*xs, start, u)``: one row for one cotangent of the flat outputs, without batching: the
    fallback.
    """
    product, make = PRODUCTS["revrev"](flat(f), pos, ws), basis(pos, ws, 1)

    def row(*args):
        vs = ()
        for v in make(args[:-2], args[-2]):
            vs = vs + (_RESHAPE(v, v.shape[1:]),)
        return product(args[:-2], args[-1], vs)

    return row


def diagonal(f, pos, ws, count, total, check=tensors):
    """``d(*xs, start)``: entries of the Hessian's diagonal: for each output out.shape + (count,),
    or their sum.
    """
    checked = check(f)
    rows, make = many(PRODUCTS["revrev"](flat(f), pos, ws)), basis(pos, ws, count)

    def shaped(xs, parts, shape):
        return _RESHAPE(parts[0], shape + parts[0].shape[1:])

    assemble = per_output(shaped)

    def some(*args):
        xs = args[:-1]
        out = checked(*xs)
        vs = make(xs, args[-1])
        entries = 0.0
        for part, v in zip(rows(xs, out, vs), vs):  # noqa: B905 -- compiled by MindSpore
            own = ops.where(
                v != 0, part, ops.zeros_like(part)
            )  # not times v: another entry's NaN stays its own
            entries = entries + _RESHAPE(own, part.shape[:2] + (-1,)).sum(-1)
        if total:
            entries = entries.sum(-1)
        return assemble(out, xs, (entries,))

    return some


# --- Jacobians ------------------------------------------------------------------------------------


def jacobian_reverse(f, pos, ws):
    """``J(*xs)``: a reverse pass for each output, batched: for each output the tuple over the
    variables.
    """
    checked = tensors(f)
    pulls, select = vmap(compose.vjp(flat(f), pos, ws), in_axes=(None, 0)), selected(pos, ws)

    def shaped(xs, parts, shape):
        out = ()
        for part, x in zip(parts, select(xs)):  # noqa: B905 -- compiled by MindSpore
            out = out + (_RESHAPE(part, shape + x.shape),)
        return out

    assemble = per_output(shaped)

    def matrix(*xs):
        out = checked(*xs)
        return assemble(out, xs, pulls(xs, identity(width(out), dtype_of(out))))

    return matrix


def jacobian_rows(f, pos, ws, count):
    """``J(*xs, start)``: `count` rows of the Jacobian of the flat outputs: (count,) + x.shape for
    each variable.

    With count None, one row of shape x.shape, without batching.
    """
    checked = tensors(f)
    pull = compose.vjp(flat(f), pos, ws)
    pulls = vmap(pull, in_axes=(None, 0))

    def some(*args):
        out = checked(*args[:-1])
        columns = _line(0, width(out), (1, -1))
        if count is None:
            return pull(args[:-1], _RESHAPE(_CAST(_EQUAL(columns, args[-1]), dtype_of(out)), (-1,)))
        return pulls(
            args[:-1], _CAST(_EQUAL(_line(0, count, (-1, 1)) + args[-1], columns), dtype_of(out))
        )

    return some


def jacobian_forward(f, pos, ws):
    """``J(*xs)``: a forward product for each input entry, batched; the result as of
    `jacobian_reverse`.
    """
    checked = tensors(f)
    make, select = basis(pos, ws, None), selected(pos, ws)
    pushes = vmap(compose.jvp(flat(f), pos, ws), in_axes=(None, 0))

    def shaped(xs, parts, shape):
        out = ()
        start = 0
        for x in select(xs):
            size = size_of(x.shape)
            out = out + (_CAST(_RESHAPE(cut(parts[0], 1, start, size), shape + x.shape), x.dtype),)
            start = start + size
        return out

    assemble = per_output(shaped)

    def matrix(*xs):
        return assemble(checked(*xs), xs, (pushes(xs, make(xs, 0)).swapaxes(0, 1),))

    return matrix


def literal_hessian(f, pos, mode):
    """``mindspore.jacfwd``/``jacrev`` of ``jacfwd``/``jacrev``, as they are: float32 only."""
    outer, inner = (
        {"fwd": ms.jacfwd, "rev": ms.jacrev}[mode[:3]],
        {"fwd": ms.jacfwd, "rev": ms.jacrev}[mode[3:]],
    )
    if len(pos) > 1:
        matrix = outer(inner(f, pos), pos)

        def literal(*xs):
            return matrix(*xs)
    else:  # for one position they return the block alone
        block = outer(inner(f, pos[0]), pos[0])

        def literal(*xs):
            return ((block(*xs),),)

    return literal
