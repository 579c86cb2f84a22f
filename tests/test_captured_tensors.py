"""Captured Tensors are inputs of the compiled graph: another value is heeded, and compiles nothing.

Where the graph has to know the values (a branch, a loop's length, a mask), it is compiled for each.
"""

from __future__ import annotations

import sys
import types

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _compat
from mindspore_hessian.core import cache, captures

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 3, 3))
a, b = RNG.standard_normal((2, 3)) + 2
X, EMPTY = np.array([0.7, -1.2, 0.4]), np.ones(0)


def tensor(values, dtype=ms.float64):
    return Tensor(np.asarray(values), dtype)


def repeated(c, x):
    for _ in range(int(c)):
        x = x * x
    return x.sum()


def chosen(c, x):
    if c.sum() > 0:
        return (x**3).sum()
    return (x**2).sum()


def counted(c, x):
    number, out = Tensor(0.0, ms.float64), x
    while number < c:
        out, number = out * x, number + 1
    return out.sum()


def over_rows(c, x):
    total = Tensor(0.0, ms.float64)
    for row in c:
        total = total + (row * x).sum() ** 3
    return total


def written(c, x):
    out = c * 1.0
    out[0] = x**2
    return (out**2 * c).sum()


def added(c, x):
    out = c * 1.0
    out += x
    return (out**3).sum()


def gradient_inside(c, x):
    return ms.grad(lambda z: (c * z**4).sum())(x).sum()


# function of c and x, two values of c, its dtype, and whether the graph is the same for both
PROGRAMS = {
    "matmul": (lambda c, x: (ops.matmul(c, x) ** 3).sum(), A, B, ms.float64, True),
    "mint": (lambda c, x: mint.matmul(c, x).pow(3).sum(), A, B, ms.float64, True),
    "transposed": (lambda c, x: (c.T.matmul(x) ** 3).mean(), A, B, ms.float64, True),
    "exponent": (lambda c, x: ((x * x + 1) ** c).sum(), a, b, ms.float64, True),
    "number": (lambda c, x: ((x * x + 1) ** c).sum(), 2.0, 1.5, ms.float64, True),
    "item": (lambda c, x: ((x * x + 1) ** c.item()).sum(), 2.0, 1.5, ms.float64, True),
    "float": (lambda c, x: (x**3 * float(c)).sum(), 2.0, 1.5, ms.float64, True),
    "index": (lambda c, x: x[c].prod() ** 2, [0, 2], [1, 1], ms.int64, True),
    "gather": (lambda c, x: ops.gather(x, c, 0).prod() ** 2, [0, 2], [1, 1], ms.int32, True),
    "targets": (
        lambda c, x: ops.cross_entropy(ops.stack([x, x * 2]), c),
        [0, 2],
        [1, 1],
        ms.int64,
        True,
    ),
    "int32": (lambda c, x: (c * x**3).sum(), [0, 1, 2], [5, 4, 3], ms.int32, True),
    "float16": (lambda c, x: (c * x**3).sum(), [0, 1, 2], [5, 4, 3], ms.float16, True),
    "where": (lambda c, x: ops.where(c > 2, x**3, x**2).sum(), a, b, ms.float64, True),
    "top k": (lambda c, x: ops.topk(x**3 * c, 2)[0].sum(), a, b, ms.float64, True),
    "rows": (over_rows, A, B, ms.float64, True),
    "written": (written, A, B, ms.float64, True),
    "added": (added, a, b, ms.float64, True),
    "stopped": (lambda c, x: (ops.stop_gradient(c) * x**3).sum(), a, b, ms.float64, True),
    "gradient": (gradient_inside, a, b, ms.float64, True),
    "empty": (lambda c, x: (x**3).sum() + c.sum(), EMPTY, EMPTY, ms.float64, True),
    "other shape": (lambda c, x: (x**3).sum() * c.ndim, np.ones(3), A, ms.float64, False),
    "branch": (chosen, [1.0, 2.0], [-1.0, 0.0], ms.float64, False),
    "length": (repeated, 2, 3, ms.int64, False),
    "bool": (lambda c, x: (c * x**3).sum(), [True, False, True], [False] * 3, ms.bool_, False),
}


def differences(f, x, step=1e-3):
    """The Hessian of a function of an array, by central differences of order four."""
    size, moves = len(x), np.eye(len(x)) * step
    out, weights = np.zeros((size, size)), {1: 2 / 3, 2: -1 / 12, -1: -2 / 3, -2: 1 / 12}
    for i in range(size):
        for j in range(size):
            out[i, j] = sum(
                u * v * f(x + m * moves[i] + n * moves[j])
                for m, u in weights.items()
                for n, v in weights.items()
            )
    return out / step**2


def compiled_by(call):
    before = mh.cache_info().misses
    call()
    return mh.cache_info().misses - before


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program, one, other, dtype, same = PROGRAMS[name]
    counts = [
        compiled_by(lambda value=value: check_program(program, tensor(value, dtype)))
        for value in (one, other, one)
    ]
    again = int(not same or (one is not other and not _compat.READS_CAPTURED_ANEW))
    assert counts == [1, again, 0]


def check_program(program, c):
    def f(x):
        return program(c, x)

    expected = differences(lambda x: float(f(tensor(x)).asnumpy()), X)
    found = mh.hessian(f)(tensor(X)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * max(1, abs(expected).max()))


class Network(nn.Cell):
    def __init__(self, c):
        super().__init__()
        self.c = c

    def construct(self, x):
        return (self.c * x**3).sum()


class Child(nn.Cell):
    def __init__(self, c):
        super().__init__()
        self.child = Network(c)

    def construct(self, x):
        return self.child(x)


class Object:
    def __init__(self, c):
        self.c = c

    def __call__(self, x):
        return (self.c * x**3).sum()

    def method(self, x):
        return (self.c * x**3).sum()


class Slots(Object):
    __slots__ = ("d",)

    def method(self, x):
        return (self.d * x**3).sum()


class OfClass:
    c = None

    def method(self, x):
        return (self.c * x**3).sum()


GLOBAL = None
module = types.ModuleType("module_of_captured_tensors")
module.inner = types.ModuleType("module_of_captured_tensors.inner")
sys.modules.update({one.__name__: one for one in (module, module.inner)})


def of_global(x):
    return (GLOBAL * x**3).sum()


def of_module(x):
    return (module.inner.c * x**3).sum()


def closure():
    c = None

    def f(x):
        return (c * x**3).sum()

    def put(value):
        nonlocal c
        c = value

    return f, put


def nested_closure():
    f, put = closure()

    def outer(x):
        return f(x)

    return outer, put


def of(target, name="c", call=None):
    return target if call is None else getattr(target, call), lambda c: setattr(target, name, c)


def of_item(container, key):
    return (lambda x: (container[key] * x**3).sum()), lambda c: container.__setitem__(key, c)


def of_table(make, read):
    """A function of the Tensor in a container that is made anew each time."""
    table = None

    def f(x):
        return (read(table) * x**3).sum()

    def put(c):
        nonlocal table
        table = make(c)

    return f, put


def child():
    network = Child(tensor(a))
    return network, lambda c: setattr(network.child, "c", c)


# where the Tensor is, and whether another can stand in its place
HOLDERS = {
    "closure": (closure, True),
    "closure of a closure": (nested_closure, True),
    "global": (lambda: (of_global, lambda c: globals().update(GLOBAL=c)), True),
    "module": (lambda: (of_module, lambda c: setattr(module.inner, "c", c)), True),
    "network": (lambda: of(Network(tensor(a))), True),
    "evaluated network": (lambda: of(Network(tensor(a)).set_train(False)), True),
    "trained child": (lambda: (lambda made: (made[0].set_train(True), made[1]))(child()), True),
    "child": (child, True),
    "object": (lambda: of(Object(tensor(a))), True),
    "method": (lambda: of(Object(tensor(a)), call="method"), True),
    "slot": (lambda: of(Slots(tensor(a)), "d", "method"), False),
    "class": (lambda: (OfClass().method, lambda c: setattr(OfClass, "c", c)), False),
    "dict": (lambda: of_item({}, "c"), True),
    "dict of numbers": (lambda: of_item({}, 1), False),
    "list": (lambda: of_item([None], 0), True),
    "tuple": (lambda: of_table(lambda c: (2.0, c), lambda t: t[1]), True),
    "tuple in a tuple": (
        lambda: of_table(lambda c: (2.0, ((c, 1), 1)), lambda t: t[1][0][0]),
        True,
    ),
    "tuple in a list": (lambda: of_table(lambda c: [2.0, (c, c)], lambda t: t[1][1]), True),
    "list in a dict": (
        lambda: of_table(lambda c: {"a": {"b": [c]}}, lambda t: t["a"]["b"][0]),
        True,
    ),
    "list in a tuple": (lambda: of_table(lambda c: ([c], 1), lambda t: t[0][0]), True),
    "long list": (lambda: of_table(lambda c: [2.0, *[c] * 70], lambda t: t[1]), False),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_holders(name):
    make, can = HOLDERS[name]
    f, put = make()
    hessian, counts = mh.hessian(f), []
    for values in (a, b, a):
        c = tensor(values)
        put(c)
        counts.append(compiled_by(lambda: hessian(tensor(X))))
        found = hessian(tensor(X)).asnumpy()
        np.testing.assert_allclose(found, np.diag(6 * values * X), atol=1e-12)
        assert type(c) is Tensor and not isinstance(c, ms.Parameter)
        assert f(tensor(X)).asnumpy() == pytest.approx((values * X**3).sum())
    assert counts == [1, 0 if can and _compat.READS_CAPTURED_ANEW else 1, 0]


@ms.ops.constexpr
def first_of_global():
    return float(GLOBAL.asnumpy()[0])


class Descriptor:
    def __get__(self, obj, kind):
        return float(obj.c.asnumpy()[0])


class Reading:
    def __init__(self, c=None):
        self.c, self.table = c, {"c": c}

    @property
    def of_property(self):
        return float(self.c.asnumpy()[0])

    @property
    def nested(self):
        return self.of_property

    of_descriptor = Descriptor()

    def __getattr__(self, name):
        if name == "made":
            return float(self.c.asnumpy()[0])
        raise AttributeError(name)


class Special:
    """Python calls these while MindSpore compiles."""

    c = None

    def value(self):
        return float(self.c.asnumpy()[0])

    def __float__(self):
        return Special.value(self)

    def __mul__(self, other):
        return Special.value(self) * other

    def __iter__(self):
        return iter([Special.value(self)])

    def __eq__(self, other):
        return Special.value(self) == other

    def __contains__(self, other):
        return Special.value(self) == other

    __hash__ = None


@ms.jit_class
class Made:
    def __init__(self, c):
        self.factor = float(c.asnumpy()[0])

    def times(self, x):
        return (self.factor * x**3).sum()


READING, SPECIAL = Reading(), Special()
FIRST, OTHER = float(a[0]), float(b[0])
READERS = {
    "constexpr": (
        lambda x: (first_of_global() * x**3).sum(),
        lambda c: globals().update(GLOBAL=c),
    ),
    "property": (lambda x: (READING.of_property * x**3).sum(), lambda c: setattr(READING, "c", c)),
    "property of a property": (
        lambda x: (READING.nested * x**3).sum(),
        lambda c: setattr(READING, "c", c),
    ),
    "descriptor": (
        lambda x: (READING.of_descriptor * x**3).sum(),
        lambda c: setattr(READING, "c", c),
    ),
    "__getattr__": (lambda x: (READING.made * x**3).sum(), lambda c: setattr(READING, "c", c)),
    **{
        name: (f, lambda c: setattr(SPECIAL, "c", c))
        for name, f in {
            "__float__": lambda x: (float(SPECIAL) * x**3).sum(),
            "__mul__": lambda x: (SPECIAL * 1.0 * x**3).sum(),
            "__iter__": lambda x: sum([1.0 * item for item in SPECIAL]) * (x**3).sum(),
            "__eq__": lambda x: (x**3).sum() * (FIRST if SPECIAL == FIRST else OTHER),
            "__contains__": lambda x: (x**3).sum() * (FIRST if FIRST in SPECIAL else OTHER),
        }.items()
    },
    "class": (lambda x: Made(GLOBAL).times(x), lambda c: globals().update(GLOBAL=c)),
}


@pytest.mark.parametrize("name", READERS)
def test_what_python_reads_while_mindspore_compiles(name):
    f, put = READERS[name]
    for values in (a, b, a):
        put(tensor(values))
        found = mh.hvp(f, tensor(X), tensor(np.ones(3))).asnumpy()
        np.testing.assert_allclose(found, 6 * values[0] * X, rtol=1e-7)


def test_which_are_the_same():
    one, other = tensor(a), tensor(b)

    def f(x):
        return (one * x**3).sum() + (other * x**4).sum()

    for one, other in ((one, other), (other, one), (one, one), (other, other), (one, other)):  # noqa: B020
        u, v = one.asnumpy(), other.asnumpy()
        found = mh.hvp(f, tensor(X), tensor(np.ones(3))).asnumpy()
        np.testing.assert_allclose(found, 6 * u * X + 12 * v * X**2, atol=1e-12)


def test_a_tuple_in_two_places():
    """One of which is a default argument, in which nothing else can be put."""
    one, other = tensor(a), tensor(b)

    def made(held):
        def f(x, default=held):
            return (held[0] * x**3).sum() + (default[0] * x**4).sum()

        return f

    for held in ((one, 1), (other, 1)):
        u = held[0].asnumpy()
        found = mh.hvp(made(held), tensor(X), tensor(np.ones(3))).asnumpy()
        np.testing.assert_allclose(found, 6 * u * X + 12 * u * X**2, atol=1e-12)

    def twice(first, second):
        return lambda x: (first[0] * x**3).sum() + (second[0] * x**4).sum()

    for first, second in (((one, 1), (one, 1)), ((other, 1), (one, 1)), ((other, 1),) * 2):
        u, v = first[0].asnumpy(), second[0].asnumpy()
        found = mh.hvp(twice(first, second), tensor(X), tensor(np.ones(3))).asnumpy()
        np.testing.assert_allclose(found, 6 * u * X + 12 * v * X**2, atol=1e-12)


def test_what_changes_in_place_and_views():
    c = tensor(a)
    both = tensor(np.stack([A, B]))
    hessian = mh.hessian(lambda x: (c * x**3).sum())

    def check(values):
        np.testing.assert_allclose(hessian(tensor(X)).asnumpy(), np.diag(6 * values * X))

    check(a)
    c[1] = 5.0
    check(np.array([a[0], 5.0, a[2]]))
    c += 1
    check(np.array([a[0] + 1, 6.0, a[2] + 1]))
    c = both[1, 2]  # a part of another's memory
    check(B[2])
    c = both[1].T[2]  # with steps
    check(B[:, 2])
    both[1, 0, 2] = 9.0
    check(np.array([9.0, *B[1:, 2]]))


TRANSFORMS = {
    "hvp": (lambda f: mh.hvp(f, tensor(X), tensor(np.ones(3))), lambda c: 6 * c * X),
    "hessian_diag": (lambda f: mh.hessian_diag(f)(tensor(X)), lambda c: 6 * c * X),
    "laplacian": (lambda f: mh.laplacian(f)(tensor(X)), lambda c: (6 * c * X).sum()),
    "reverse": (
        lambda f: mh.laplacian(f, mode="reverse")(tensor(X)),
        lambda c: (6 * c * X).sum(),
    ),
    "jacobian": (lambda f: mh.jacobian(f)(tensor(X)), lambda c: 3 * c * X**2),
    "jvp": (lambda f: mh.jvp(f, tensor(X), tensor(np.ones(3)))[1], lambda c: (3 * c * X**2).sum()),
    "jet": (
        lambda f: mh.jet(f, (tensor(X),), ((tensor(np.ones(3)), tensor(np.zeros(3))),))[1][1],
        lambda c: (6 * c * X).sum(),
    ),
    "chunks": (lambda f: mh.hessian(f, chunk_size=1)(tensor(X)), lambda c: np.diag(6 * c * X)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    transform, expected = TRANSFORMS[name]
    counts = []
    for values in (a, b, 2 * a):
        c, found = tensor(values), []

        def f(x):
            return (c * x**3).sum()  # noqa: B023

        counts.append(compiled_by(lambda: found.append(transform(f))))  # noqa: B023
        np.testing.assert_allclose(found[0].asnumpy(), expected(values), rtol=1e-12)
    assert counts[0] >= 1
    if _compat.READS_CAPTURED_ANEW:
        assert counts[1:] == [0, 0]


def test_they_are_neither_copied_nor_read(monkeypatch):
    if not _compat.READS_CAPTURED_ANEW:
        pytest.skip("this MindSpore keeps buffers in its graphs")
    c = tensor(A) * 1.0
    monkeypatch.setattr(captures, "_digest", None)
    mh.hvp(lambda x: (ops.matmul(c, x) ** 2).sum(), tensor(X), tensor(X))
    stand_ins = next(reversed(cache._entries.values())).stand_ins
    assert [one.data_ptr() for one in stand_ins] == [c.data_ptr()]


def test_many_in_a_row_without_reading():
    kept = [tensor(np.full((200, 200), i)) for i in range(40)]
    x = tensor(np.ones(200))
    found = []
    for c in kept:

        def f(x):
            return (ops.matmul(c, x) ** 2).sum()  # noqa: B023

        found.append(mh.hvp(f, x, x))
    for i, product in enumerate(found):
        np.testing.assert_allclose(product.asnumpy(), 2 * 200 * 200 * i * i)


class Half(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(3, 3)
        self.scale = Tensor([1.0, 2.0, 0.5], ms.float32)

    def construct(self, x):
        return ((self.scale * 1.0001 * self.dense(x)) ** 2).mean()


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_mixed_precision_casts_what_it_did(level, monkeypatch):
    """The same as by value."""
    inner = Half()
    network = amp.auto_mixed_precision(inner, level)
    x = Tensor([[1.0, 2.0, 3.0]], ms.float32)
    for scale in ([1.0, 2.0, 0.5], [3.0, 1.0, 1.0]):
        inner.scale = Tensor(scale, ms.float32)
        found = mh.hvp(network, x, x).asnumpy()
        with monkeypatch.context() as patch:
            patch.setattr(_compat, "READS_CAPTURED_ANEW", False)
            np.testing.assert_array_equal(found, mh.hvp(network, x, x).asnumpy())


def test_recorded():
    for values in (a, b):
        c = tensor(values)

        def f(x):
            return (c * x**4).sum()  # noqa: B023

        found = ms.grad(lambda x: mh.hvp(f, x, tensor(np.ones(3))).sum())(tensor(X))  # noqa: B023
        np.testing.assert_allclose(found.asnumpy(), 24 * values * X, rtol=1e-12)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, TypeError])
def test_a_failure_leaves_them_where_they_are(error, monkeypatch):
    network = Network(tensor(a))
    captured = tensor(b)

    def f(x):
        return network(x) * (captured * x).sum()

    def fails(*_):
        seen.append(isinstance(network.c, ms.Parameter))
        raise error("on purpose")

    seen: list = []
    scale = network.c
    with monkeypatch.context() as patch:
        patch.setattr(_compat, "Graph", fails)
        with pytest.raises((error, mh.NotCompilableError)):
            mh.hvp(f, tensor(X), tensor(X))
    by_value = [] if error is KeyboardInterrupt else [False]  # as it is tried next
    assert seen == ([True, *by_value] if _compat.READS_CAPTURED_ANEW else [False])
    assert network.c is scale and type(captured) is Tensor
    assert mh.hvp(f, tensor(X), tensor(X)).shape == (3,)


def test_of_weights():
    """A Hessian by weights, with data that the function captured, as a training loop does it."""
    layer = nn.Dense(3, 1, has_bias=False, dtype=ms.float64)
    counts = []
    for inputs in (A, B, A + B):
        x, y = tensor(inputs), tensor(inputs[:, :1])

        def loss():
            return ((layer(x) - y) ** 2).sum()  # noqa: B023

        found = []
        counts.append(compiled_by(lambda: found.append(mh.hessian(loss, weights=layer.weight)())))  # noqa: B023
        np.testing.assert_allclose(
            np.reshape(found[0].asnumpy(), (3, 3)), 2 * inputs.T @ inputs, rtol=1e-12
        )
    assert counts == ([1, 0, 0] if _compat.READS_CAPTURED_ANEW else [1, 1, 1])
