"""Programs whose text means something else to MindSpore than to Python: right, or refused."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops, vmap

import mindspore_hessian as mh
from mindspore_hessian._errors import debris_removed

X, V = Tensor([0.3, -0.6], ms.float64), Tensor([1.0, 2.0], ms.float64)


def product(fn):
    return mh.hvp(fn, X, V).asnumpy()


def square(factor):
    """The product of factor |x|^2."""
    return 2 * factor * V.asnumpy()


# --- default values -------------------------------------------------------------------------------

SCALE, CONFIG, TENSOR = 1.0, {"c": 2.0}, Tensor(3.0, ms.float64)


def of_a_global(x, c=SCALE):
    return c * (x**2).sum()


def of_a_keyword(x, *, c=SCALE, power=2):
    return c * (x**power).sum()


def of_a_list(x, cs=[1.0, 5.0]):  # noqa: B006
    return cs[0] * (x**2).sum()


def of_a_dict(x, config=CONFIG):
    return config["c"] * (x**2).sum()


def of_a_tensor(x, t=TENSOR):
    return t * (x**2).sum()


def half(x, c=SCALE):
    return c * x**2


def calls_one_with_a_default(x):
    return half(x).sum()


def factory(c):
    def fn(x, c=c):
        return c * (x**2).sum()

    c = 9.0
    return fn


class Norm(nn.Cell):
    def scaled(self, x, eps=SCALE):
        return eps * x**2

    def construct(self, x, twice=SCALE):
        return twice * self.scaled(x).sum()


LOOP = []
for SCALE in (1.0, 4.0):

    def in_a_loop(x, c=SCALE):
        return c * (x**2).sum()

    LOOP.append(in_a_loop)
LAMBDAS = [lambda x, c=c: c * (x**2).sum() for c in (1.0, 6.0)]
SCALE, CONFIG, TENSOR = 7.0, {"c": 7.0}, Tensor(7.0, ms.float64)  # what the text says now


@pytest.mark.parametrize(
    ("fn", "factor"),
    [
        (of_a_global, 1),
        (of_a_keyword, 1),
        (of_a_list, 1),
        (of_a_dict, 2),
        (of_a_tensor, 3),
        (calls_one_with_a_default, 1),
        (factory(2.0), 2),
        (factory(3.0), 3),
        (Norm(), 1),
        (LOOP[0], 1),
        (LOOP[1], 4),
        (LAMBDAS[0], 1),
        (LAMBDAS[1], 6),
        (functools.partial(of_a_global, c=5.0), 5),
    ],
)
def test_a_default_is_what_it_was_when_the_function_was_made(fn, factor):
    np.testing.assert_allclose(product(fn), square(factor))
    assert not [name for name in globals() if name.startswith("_mindspore_hessian")]


def test_a_default_that_changes():
    def fn(x, c=2.0, cs=(1.0,)):
        return c * cs[0] * (x**2).sum()

    np.testing.assert_allclose(product(fn), square(2))
    fn.__defaults__ = (2.0, (4.0,))
    np.testing.assert_allclose(product(fn), square(8))
    of_a_list.__defaults__[0][0] = 6.0
    try:
        np.testing.assert_allclose(product(of_a_list), square(6))
    finally:
        of_a_list.__defaults__[0][0] = 1.0


# --- powers of numbers ----------------------------------------------------------------------------


def over_its_length(x):
    return (x**2).sum() * x.shape[0] ** -1


def a_thousandth(x):
    return 10**-3 * (x**2).sum()


def by_pow(x):
    return (x**2).sum() * pow(2, -1)


def in_a_sum(x):
    weight = 0
    for i in range(3):
        weight += 2**-i
    return weight * (x**2).sum()


def a_square(x):
    return (-3) ** 2 * 2**0.5 * (x**2).sum()


@pytest.mark.parametrize(
    ("fn", "factor"),
    [
        (over_its_length, 0.5),
        (a_thousandth, 1e-3),
        (by_pow, 0.5),
        (in_a_sum, 1.75),
        (a_square, 9 * 2**0.5),
    ],
)
def test_powers_of_integers(fn, factor):
    np.testing.assert_allclose(product(fn), square(factor), rtol=1e-7)  # constants are float32


# --- variables that are set again -----------------------------------------------------------------


def residual_of_a_block(x):
    h = x * x

    def residual(f):
        return f(h) + h

    h = residual(ops.sin)
    h = residual(ops.sin)
    return h.sum()


def a_lambda_and_a_number(x):
    s = 1.0
    f = lambda z: s * z * z  # noqa: E731
    y = f(x)
    s = 2.0
    return (y + f(x)).sum()


def carried_by_a_loop(x):
    h = x * x
    skip = lambda: h  # noqa: E731
    for _ in range(2):
        h = ops.sin(h) + skip()
    return h.sum()


def a_list_of_lambdas(x):
    steps = [lambda z: z * k for k in (1.0, 2.0)]  # noqa: B023
    return (steps[0](x) * steps[1](x)).sum()


def kept_in_a_list(x):
    steps = []
    for k in (1.0, 2.0):
        steps.append(lambda z: z * k)  # noqa: B023, PERF401
    return (steps[0](x) * steps[1](x)).sum()


def called_by_another(x):
    h = x * x

    def inner(z):
        return z * h

    def outer(z):
        return inner(z) + 1

    y = outer(x)
    h = y
    return outer(h).sum()


def kept_by_vmap(x):
    h = x * 1.0
    f = vmap(lambda z: (z * h).sum())
    h = h * x
    return f(x.reshape(2, 1)).sum()


class Encoder(nn.Cell):
    def construct(self, x):
        h = x * x

        def add(z):
            return z + h

        for _ in range(2):
            h = add(ops.sin(h))
        return h.sum()


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (residual_of_a_block, "h"),
        (a_lambda_and_a_number, "s"),
        (carried_by_a_loop, "h"),
        (a_list_of_lambdas, "k"),
        (kept_in_a_list, "k"),
        (called_by_another, "h"),
        (kept_by_vmap, "h"),
        (Encoder(), "h"),
    ],
)
def test_a_variable_that_is_set_again_is_refused(fn, name):
    with pytest.raises(mh.NotCompilableError, match=f"reads {name!r}, which is set again"):
        product(fn)


def called_at_once(x):
    h = x * x
    y = (lambda z: z * h.sum())(x)
    h = y * x
    return h.sum()


def made_in_the_loop(x):
    total = x * 0
    for i in range(3):
        w = total + x

        def term(z):
            return z ** (i + 1) * w  # noqa: B023

        total = total + term(x)
    return total.sum()


def set_before_only(x):
    h = x * x
    h = h * x

    def f(z):
        return z * h

    return f(f(x)).sum()


def its_own_variable(x):
    def f(h):
        h = h * 2
        return h * h

    h = f(x)
    h = f(h)
    return h.sum()


def recursive(x):
    def power(z, n):
        return z if n == 0 else z * power(z, n - 1)

    y = power(x, 2)
    return y.sum()


@pytest.mark.parametrize(
    "fn", [called_at_once, made_in_the_loop, set_before_only, its_own_variable, recursive]
)
def test_a_variable_that_is_read_in_time_is_not(fn):
    step = 1e-4
    slope = [
        np.asarray(
            mh.jacobian(fn)(Tensor(X.asnumpy() + sign * step * V.asnumpy())).asnumpy(), float
        )
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(product(fn), (slope[0] - slope[1]) / (2 * step), rtol=1e-6)


# --- lists and dicts under two names --------------------------------------------------------------


def a_second_name(x):
    a = [x * 1.0]
    b = a
    b[0] = b[0] * x
    return (a[0] * x).sum()


def numbers_in_a_dict(x):
    base = {"a": 1.0}
    mine = base
    mine["a"] = 5.0
    return (base["a"] * x**2).sum()


def appended_through_another(x):
    out = []
    same = out
    out.append(x**2)
    out.append(x**3)
    return same[0].sum() + same[1].sum()


def inside_a_dict(x):
    d = {"l": [x]}
    inner = d["l"]
    inner.append(x * x)
    return (d["l"][-1] * x).sum()


def two_at_once(x):
    a = b = []
    a.append(x)
    b.append(x * x)
    return (a[1] * b[0]).sum()


def counted_in_a_helper(x):
    state = {"t": 0}

    def tick():
        state["t"] += 1
        return state["t"]

    return (tick() * x**2 + tick() * x**3).sum()


def collected_in_a_helper(x):
    found = []

    def add(z):
        found.append(z)

    add(x**2)
    add(x**3)
    return (found[0] + found[1]).sum()


def appended_to_an_argument(x):
    def push(items, z):
        items.append(z * z)

    items = []
    push(items, x)
    return items[0].sum()


COLLECTED = []


def appended_to_a_global(x):
    COLLECTED.append(1)
    return (len(COLLECTED) * x**2).sum()


@pytest.mark.parametrize(
    "fn",
    [
        a_second_name,
        numbers_in_a_dict,
        appended_through_another,
        inside_a_dict,
        two_at_once,
        counted_in_a_helper,
        collected_in_a_helper,
        appended_to_an_argument,
        appended_to_a_global,
    ],
)
def test_a_list_or_dict_under_two_names_is_refused(fn):
    with pytest.raises(mh.NotCompilableError, match="changes .*list or dict"):
        product(fn)


def under_one_name(x):
    parts, weights = [], {"a": 1.0}
    for k in (2, 3):
        parts.append(x**k)  # noqa: PERF401
    weights["a"] = 2.0
    first = parts[0]
    parts[1] = parts[1] * weights["a"]
    last = parts.pop()
    return (first * last).sum() + ops.sort(x)[0].sum()


def test_a_list_under_one_name_is_right():
    np.testing.assert_allclose(product(under_one_name), 40 * X.asnumpy() ** 3 * V.asnumpy())


# --- inside the user's own graph ------------------------------------------------------------------


def within(kind, fn):
    """The product, in a function that the user compiles, or in a Cell."""
    if kind == "jit":

        @ms.jit
        def mine(x, v):
            return mh.hvp(fn, x, v)

        return mine

    class Mine(nn.Cell):
        def construct(self, x, v):
            return mh.hvp(fn, x, v)

    return Mine()


@pytest.mark.parametrize("kind", ["jit", "cell"])
@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (of_a_global, "the default `SCALE` was another value"),
        (calls_one_with_a_default, "the default `SCALE` was another value"),
        (a_lambda_and_a_number, "reads 's', which is set again"),
        (a_second_name, "changes the list or dict 'b'"),
    ],
)
def test_in_the_users_own_graph_they_are_refused(kind, fn, words):
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with debris_removed(), pytest.raises(NotImplementedError, match=words):
            within(kind, fn)(X, V)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("kind", ["jit", "cell"])
def test_powers_and_lists_under_one_name_are_right_in_the_users_own_graph(kind):
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        found = within(kind, over_its_length)(X, V).asnumpy().copy()
        np.testing.assert_allclose(found, square(0.5))
        found = within(kind, under_one_name)(X, V).asnumpy().copy()
        np.testing.assert_allclose(found, 40 * X.asnumpy() ** 3 * V.asnumpy())
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
