"""What MindSpore compiles for the operators: functions of a batch's inputs, its targets, and flat
vectors.

Each builder takes the network and the loss as a `Function` (without a loss the network returns it),
and the Space of the weights. Vectors are flat, one (N,) or several (k, N), which are batched, or
a Tensor a weight in the dtype of flat ones; so are the products.
"""

from __future__ import annotations

from mindspore import Tensor, bfloat16, float16, float32, ops, vmap

from mindspore_hessian.core.space import raveled, selected, unraveled
from mindspore_hessian.transforms import compose

NOT_ONE = (
    "the network returns something else than one Tensor, and the operator is about one. Say which "
    "with output=: an index for a tuple (output=0), a key for a dict (output='logits'), or a "
    "function of what it returns"
)
_RESHAPE = ops.Reshape()


def one_output(f):
    """`f`, refusing an output that is not one Tensor; numbers of half precision as float32, as the
    vectors of an operator are.
    """

    def checked(*xs):
        out = f(*xs)
        if not isinstance(out, Tensor):
            raise TypeError(NOT_ONE)
        if out.dtype == float16 or out.dtype == bfloat16:
            return ops.cast(out, float32)
        return out

    return compose.one_tensor(checked)


def risk(function):
    """The loss as a function of inputs and targets."""
    if function.loss is None:
        return compose.scalar(one_output(function.value))
    return compose.scalar(function.whole, "loss_fn")


def value(function, space):
    """The loss of a batch."""
    return risk(function)


def gradient(function, space):
    """The loss of a batch, and its flat gradient."""
    h, dtype = risk(function), space.flat_dtype
    slope = compose.gradient(h, (), space.parameters)

    def both(*xs):
        return h(*xs), raveled(slope(*xs), dtype)

    return both


@ops.constexpr
def _is_flat(shape, size):
    """Whether it is that of flat vectors: no weight beside others has so many entries."""
    return len(shape) in (1, 2) and shape[-1] == size


def _in_dtypes(parts, like):
    out = ()
    for k in range(len(parts)):
        out = out + (ops.cast(parts[k], like[k].dtype),)
    return out


def on_vectors(product, space):
    """``product(xs, vs)``, vs a Tensor a weight, as a function of xs and flat vectors, or of xs and
    such Tensors, which no kernel cuts or joins."""
    split, select = unraveled((), space.parameters), selected((), space.parameters)
    count, size = len(space.shapes), space.size

    def one(xs, v):
        return raveled(product(xs, split(xs, v)), v.dtype)

    many = vmap(one, in_axes=(None, 0))

    def run(*tensors):
        xs, v = tensors[:-1], tensors[-1]
        if _is_flat(v.shape, size):
            return one(xs, v) if v.ndim == 1 else many(xs, v)
        xs, vs = tensors[:-count], tensors[-count:]
        return _in_dtypes(product(xs, _in_dtypes(vs, select(xs))), vs)

    return run


def hessian(function, space):
    """H v of the loss of a batch."""
    return on_vectors(
        compose.hessian_product(risk(function), (), space.parameters, "revrev"), space
    )


def _around(function, space, metric):
    """J^T M J v: ``metric(out, rest, u)`` is M u at the network's output, given what follows the
    inputs.
    """
    f, n, params = function.value, function.n, space.parameters
    out = one_output(f)
    push, pull = (
        compose.jvp(out, (), params),
        compose.vjp(one_output(f), (), params),
    )  # see _gauss_newton

    def product(xs, vs):
        inputs = xs[:n]
        return pull(inputs, metric(out(*inputs), xs[n:], push(inputs, vs)))

    return on_vectors(product, space)


def ggn(function, space):
    """J^T H_loss J v."""
    curve = compose.hessian_product(compose.scalar(function.loss, "loss_fn"), (0,), None, "revrev")

    def metric(out, targets, u):
        return curve((out,) + targets, (u,))[0]

    return _around(function, space, metric)


def slope(loss):
    """The gradient of the loss by the network's output."""
    pull = compose.gradient(compose.scalar(loss, "loss_fn"), (0,), None)

    def by_output(out, *targets):
        return pull(out, *targets)[0]

    return by_output


def both_curvatures(curvature):
    """``build``: the Hessian of a loss at an output times u, and what a likelihood has there, for
    (output, *targets, u).
    """

    def make(function, space):
        curve = compose.hessian_product(
            compose.scalar(function.value, "loss_fn"), (0,), None, "revrev"
        )

        def both(*tensors):
            out, u = tensors[0], tensors[-1]
            return curve(tensors[:-1], (u,))[0], curvature(out, u)

        return both

    return make


def value_and_slope(function, space):
    """The loss, as the function itself, at an output of the network, and its gradient there."""
    h, by_output = compose.scalar(function.value), slope(function.value)

    def both(out, *targets):
        return h(out, *targets), by_output(out, *targets)

    return both


def fisher(curvature, terms, weighted=False):
    """J^T F J v, where ``curvature(out, u)`` is the Fisher information of one draw at the output,
    times u.

    ``terms(shape)``: the number of draws that a mean divides by; None for a sum. With `weighted`,
    what each position is multiplied by comes after the targets instead.
    """
    count = None if terms is None else ops.constexpr(terms)

    def make(function, space):
        def metric(out, rest, u):
            product = curvature(out, u)
            if weighted:
                return product * _RESHAPE(rest[-1], (out.shape[0], 1) + out.shape[2:])
            if count is None:
                return product
            return product / count(out.shape)

        return _around(function, space, metric)

    return make


def _rank_one(per_position):
    """The sum over s of g_s g_s^T u for gradients g of shape (S, *out.shape).

    One g g^T a sample (row of the output), or for `per_position` one for each position of a sample,
    over axis 1.
    """

    def contract(g, u):
        if per_position:
            return (g * (g * u).sum(2, keepdims=True)).sum(0)
        lead = g.shape[:2]
        along = _RESHAPE(g * u, lead + (-1,)).sum(-1)
        return (g * _RESHAPE(along, lead + (1,) * (g.ndim - 2))).sum(0)

    return contract


def sampled(per_position):
    """J^T (sum of g g^T) J v, for gradients g that come after the targets."""
    contract = _rank_one(per_position)

    def make(function, space):
        def metric(out, rest, u):
            return contract(rest[-1], u)

        return _around(function, space, metric)

    return make


def number_of_terms(per_position, terms, weighted):
    """``number(out, given)``: what the square of a term's gradient is multiplied by, since a mean
    has divided it.

    ``terms(shape)`` is the number of terms of a mean, None for a sum. With `weighted`, `given` are
    their weights.
    """
    count = None if terms is None else ops.constexpr(terms)

    def number(out, given):
        if weighted:
            lead = (out.shape[0], 1) + out.shape[2:]
            weight = (
                _RESHAPE(given, lead)
                if per_position
                else _RESHAPE(
                    _RESHAPE(given, (out.shape[0], -1)).sum(1),
                    (out.shape[0],) + (1,) * (out.ndim - 1),
                )
            )
            total = 1 if count is None else weight.sum()
            return ops.select(
                weight > 0,
                total / ops.select(weight > 0, weight, ops.ones_like(weight)),
                ops.zeros_like(weight),
            )
        return 1 if count is None else count(out.shape)

    return number


def empirical(per_position, terms, weighted=False):
    """J^T (sum of g g^T) J v, for the gradients g of the loss at the output, times the number of
    terms of a mean.

    ``terms(shape)`` gives it; None for a sum. With `weighted`, the weight of each term comes after
    the targets.
    """
    contract, number = _rank_one(per_position), number_of_terms(per_position, terms, weighted)

    def make(function, space):
        gradient = slope(function.loss)

        def metric(out, rest, u):
            targets, given = rest, 0
            if weighted:
                targets, given = rest[:-1], rest[-1]
            return contract(ops.expand_dims(gradient(out, *targets), 0), u) * number(out, given)

        return _around(function, space, metric)

    return make


def output(function, space):
    """The network's output."""
    out, n = one_output(function.value), function.n

    def forward(*xs):
        return out(*xs[:n])

    return forward


# --- the Fisher information of a likelihood by its parameters (classes and channels are on axis 1)


def categorical(logits, u):
    """diag(p) - p p^T."""
    p = ops.softmax(logits, 1)
    return p * (u - (p * u).sum(1, keepdims=True))


def bernoulli(logits, u):
    """p (1 - p)."""
    p = ops.sigmoid(logits)
    return p * (1 - p) * u


def gaussian(mean, u):
    """2, of the squared error (y - mean)^2: a variance of 1/2."""
    return 2 * u
