"""A value that a function reads from anywhere is changed between two calls, and counts: against the
closed form.
"""

from __future__ import annotations

import abc
import argparse
import array
import collections
import dataclasses
import enum
import functools
import logging
import os
import sys
import types
import typing
import warnings

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import RecompileWarning
from mindspore_hessian.core import captures
from mindspore_hessian.core.captures import Captures

log = logging.getLogger(__name__)
X, V = Tensor([1.0, 2.0]), Tensor([1.0, -1.0])


class Config:
    c = 1.0
    nested: typing.ClassVar = {"c": [1.0]}


class Child(Config):
    pass


class Abstract(abc.ABC):
    c = 1.0

    @abc.abstractmethod
    def unused(self):
        """Never made."""


class OfAbstract(Abstract):
    pass


T = typing.TypeVar("T")


class Generic(typing.Generic[T]):
    c = 1.0


class OfGeneric(Generic[int]):
    pass


class Meta(type):
    c = 1.0


class OfMeta(metaclass=Meta):
    pass


class Option(enum.Enum):
    TABLE: typing.ClassVar = {"c": 1.0}


class Slots:
    __slots__ = ("c",)

    def __init__(self, c=1.0):
        self.c = c


class MoreSlots(Slots):
    __slots__ = ("d",)


@dataclasses.dataclass(slots=True)
class SlotsData:
    c: float = 1.0


@dataclasses.dataclass
class Data:
    c: float = 1.0


class Named(typing.NamedTuple):
    c: typing.Any


class OfDict(dict):
    """A dict with attributes, as easydict and ml_collections have."""

    def __init__(self, c):
        super().__init__()
        self.c = c


class DotDict(dict):
    def __getattr__(self, name):
        if name.startswith("__"):  # pytest looks for __wrapped__ in what a module holds
            raise AttributeError(name)
        return self[name]


class Lookup:
    """As omegaconf: attributes are looked up in a table."""

    def __init__(self, c):
        self._content = {"c": c}

    def __getattr__(self, name):
        if name == "_content" or name not in self._content:
            raise AttributeError(name)
        return self._content[name]


GLOBAL = 1.0


class ReadsGlobal:
    @property
    def c(self):
        return GLOBAL


class Descriptor:
    def __get__(self, obj, kind):
        return GLOBAL


class Described:
    c = Descriptor()


class Lazy:
    def __init__(self):
        self.table = {"c": 1.0}

    @functools.cached_property
    def c(self):
        return self.table["c"]


class Float(float):
    pass


package = types.ModuleType("package_of_captures")
package.inner = types.ModuleType("package_of_captures.inner")
package.inner.c = 1.0
package.c = 1.0
sys.modules.update({"package_of_captures": package, "package_of_captures.inner": package.inner})
alias = package.inner


def kept_by_closure(c):
    table = {"c": c}

    class Holder:
        def factor(self):
            return table["c"]

    return Holder(), table


space, parsed = types.SimpleNamespace(c=1.0), argparse.Namespace(c=1.0)
user_dict, user_list = collections.UserDict(c=1.0), collections.UserList([1.0])
ordered, default = collections.OrderedDict(c=1.0), collections.defaultdict(float, c=1.0)
behind = {"c": 1.0}
chain, proxy = collections.ChainMap({}, behind), types.MappingProxyType(behind)
queue, numbers, bytes_, view = (
    collections.deque([1.0]),
    array.array("d", [1.0]),
    bytearray(b"\x01"),
    bytearray(b"\x01"),
)
memory = memoryview(view)
slots, more_slots, slots_data, data = Slots(), MoreSlots(), SlotsData(), Data()
named, of_dict, dots, lookup = Named([1.0]), OfDict(1.0), DotDict(c=1.0), Lookup(1.0)
reads_global, described, lazy = ReadsGlobal(), Described(), Lazy()
structured = np.array([(1.0, 5)], [("c", "f8"), ("d", "i4")])
plain_array, object_array = np.array([1.0]), np.array([1.0, "text"], object)
scalars = {"c": np.float64(1.0)}
long_list, long_dict = [0.0] * 99 + [1.0], {**dict.fromkeys(range(99), 0.0), 99: 1.0}
holder, holder_table = kept_by_closure(1.0)
partial_table = {"c": 1.0}
two_names = types.SimpleNamespace(first=1.0, second=5.0)


def times(table, x):
    return table["c"] * (x**2).sum()


def of_metaclass():
    return type(OfMeta).c


def set_global(value):
    globals()["GLOBAL"] = value


def renew_property():
    def c(self):
        return 3.0

    ReadsGlobal.c = property(c)


# what is read, and what makes it 3 where it was 1
CHANGES = {
    "class attribute": (lambda x: Config.c * (x**2).sum(), lambda: setattr(Config, "c", 3.0)),
    "class attribute by an instance": (
        lambda x: INSTANCE.c * (x**2).sum(),
        lambda: setattr(type(INSTANCE), "c", 3.0),
    ),
    "inherited class attribute": (
        lambda x: Child.c * (x**2).sum(),
        lambda: setattr(Config, "c", 3.0),
    ),
    "table on a class": (
        lambda x: Config.nested["c"][0] * (x**2).sum(),
        lambda: Config.nested["c"].__setitem__(0, 3.0),
    ),
    "class attribute of an ABC": (
        lambda x: OfAbstract.c * (x**2).sum(),
        lambda: setattr(Abstract, "c", 3.0),
    ),
    "class attribute of a Generic": (
        lambda x: OfGeneric.c * (x**2).sum(),
        lambda: setattr(Generic, "c", 3.0),
    ),
    "attribute of a metaclass": (
        lambda x: OfMeta.c * (x**2).sum(),
        lambda: setattr(Meta, "c", 3.0),
    ),
    "value of an Enum member": (
        lambda x: Option.TABLE.value["c"] * (x**2).sum(),
        lambda: Option.TABLE.value.update(c=3.0),
    ),
    "SimpleNamespace": (lambda x: space.c * (x**2).sum(), lambda: setattr(space, "c", 3.0)),
    "one of two attributes": (
        lambda x: two_names.first * (x**2).sum(),
        lambda: setattr(two_names, "first", 3.0),
    ),
    "argparse.Namespace": (lambda x: parsed.c * (x**2).sum(), lambda: setattr(parsed, "c", 3.0)),
    "UserDict": (lambda x: user_dict["c"] * (x**2).sum(), lambda: user_dict.update(c=3.0)),
    "UserList": (lambda x: user_list[0] * (x**2).sum(), lambda: user_list.__setitem__(0, 3.0)),
    "OrderedDict": (lambda x: ordered["c"] * (x**2).sum(), lambda: ordered.update(c=3.0)),
    "defaultdict": (lambda x: default["c"] * (x**2).sum(), lambda: default.update(c=3.0)),
    "ChainMap": (lambda x: chain["c"] * (x**2).sum(), lambda: behind.update(c=3.0)),
    # MindSpore does not compile it on Python 3.12
    **(
        {"MappingProxyType": (lambda x: proxy["c"] * (x**2).sum(), lambda: behind.update(c=3.0))}
        if sys.version_info < (3, 12)
        else {}
    ),
    "deque": (lambda x: queue[0] * (x**2).sum(), lambda: queue.__setitem__(0, 3.0)),
    "array.array": (lambda x: numbers[0] * (x**2).sum(), lambda: numbers.__setitem__(0, 3.0)),
    "bytearray": (lambda x: bytes_[0] * (x**2).sum(), lambda: bytes_.__setitem__(0, 3)),
    "memoryview": (lambda x: memory[0] * (x**2).sum(), lambda: view.__setitem__(0, 3)),
    "__slots__": (lambda x: slots.c * (x**2).sum(), lambda: setattr(slots, "c", 3.0)),
    "inherited __slots__": (
        lambda x: more_slots.c * (x**2).sum(),
        lambda: setattr(more_slots, "c", 3.0),
    ),
    "dataclass with slots": (
        lambda x: slots_data.c * (x**2).sum(),
        lambda: setattr(slots_data, "c", 3.0),
    ),
    "dataclass": (lambda x: data.c * (x**2).sum(), lambda: setattr(data, "c", 3.0)),
    "namedtuple of a list": (
        lambda x: named.c[0] * (x**2).sum(),
        lambda: named.c.__setitem__(0, 3.0),
    ),
    "attribute of a dict": (lambda x: of_dict.c * (x**2).sum(), lambda: setattr(of_dict, "c", 3.0)),
    "dict with __getattr__": (lambda x: dots.c * (x**2).sum(), lambda: dots.update(c=3.0)),
    "object with __getattr__": (
        lambda x: lookup.c * (x**2).sum(),
        lambda: lookup._content.update(c=3.0),
    ),
    "property that reads a global": (
        lambda x: reads_global.c * (x**2).sum(),
        lambda: set_global(3.0),
    ),
    "descriptor that reads a global": (
        lambda x: described.c * (x**2).sum(),
        lambda: set_global(3.0),
    ),
    "another property": (lambda x: reads_global.c * (x**2).sum(), renew_property),
    "cached_property": (lambda x: lazy.c * (x**2).sum(), lambda: setattr(lazy, "c", 3.0)),
    "import pkg.inner": (
        lambda x: package.inner.c * (x**2).sum(),
        lambda: setattr(package.inner, "c", 3.0),
    ),
    "alias of a module": (lambda x: alias.c * (x**2).sum(), lambda: setattr(alias, "c", 3.0)),
    "module attribute": (lambda x: package.c * (x**2).sum(), lambda: setattr(package, "c", 3.0)),
    "structured array": (
        lambda x: float_of(structured) * (x**2).sum(),
        lambda: structured["c"].__setitem__(0, 3.0),
    ),
    "array": (
        lambda x: float(plain_array[0]) * (x**2).sum(),
        lambda: plain_array.__setitem__(0, 3.0),
    ),
    "array of objects": (
        lambda x: object_array[0] * (x**2).sum(),
        lambda: object_array.__setitem__(0, 3.0),
    ),
    "numpy scalar": (
        lambda x: float(scalars["c"]) * (x**2).sum(),
        lambda: scalars.update(c=np.float64(3.0)),
    ),
    "long list": (lambda x: long_list[99] * (x**2).sum(), lambda: long_list.__setitem__(99, 3.0)),
    "long dict": (lambda x: long_dict[99] * (x**2).sum(), lambda: long_dict.__setitem__(99, 3.0)),
    "closure of a method": (
        lambda x: holder.factor() * (x**2).sum(),
        lambda: holder_table.update(c=3.0),
    ),
    "getattr": (
        lambda x: getattr(space, "d" if False else "c") * (x**2).sum(),
        lambda: setattr(space, "c", 3.0),
    ),
    "partial": (functools.partial(times, partial_table), lambda: partial_table.update(c=3.0)),
}
INSTANCE = Child()
# these MindSpore does not compile (it would run them as Python); the token sees the change all the
# same
NOT_COMPILED = {"ChainMap", "memoryview", "attribute of a dict"}


def float_of(structured):
    return float(structured["c"][0])


@pytest.fixture(autouse=True)
def as_before():
    yield
    Config.c = Abstract.c = Generic.c = Meta.c = 1.0
    Config.nested["c"][0] = space.c = parsed.c = slots.c = more_slots.c = slots_data.c = data.c = (
        of_dict.c
    ) = 1.0
    two_names.first = package.c = package.inner.c = 1.0
    for table in (
        Option.TABLE.value,
        user_dict,
        ordered,
        default,
        behind,
        dots,
        lookup._content,
        holder_table,
        partial_table,
        lazy.table,
    ):
        table["c"] = 1.0
    for row in (user_list, queue, numbers, named.c, plain_array, object_array):
        row[0] = 1.0
    structured["c"][0] = scalars["c"] = long_list[99] = long_dict[99] = 1.0
    bytes_[0] = view[0] = 1
    set_global(1.0)
    ReadsGlobal.c = property(lambda self: GLOBAL)
    lazy.__dict__.pop("c", None)
    if "c" in vars(Child):
        del Child.c


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_a_transform(name):
    fn, change = CHANGES[name]
    token = Captures(fn).token
    assert Captures(fn).token == token
    try:
        before = mh.hvp(fn, X, V).asnumpy().copy()
    except (mh.NotCompilableError, AttributeError):
        assert name in NOT_COMPILED
        change()
        assert Captures(fn).token != token
        return
    np.testing.assert_allclose(before, 2 * V.asnumpy(), rtol=1e-6)
    change()
    assert Captures(fn).token != token
    np.testing.assert_allclose(mh.hvp(fn, X, V).asnumpy(), 6 * V.asnumpy(), rtol=1e-6)


# --- networks, in operators -----------------------------------------------------------------------


class Mixin:
    mixed = 1.0


class Base(nn.Cell):
    inherited = 1.0


class Net(Mixin, Base):
    """y = (product of what may change) w x; with the mean squared error its Hessian is 2 mean(x^2)
    c^2.
    """

    own = 1.0

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([0.5]), name="w")
        self.scale, self.config, self.space = (
            1.0,
            {"scale": [1.0]},
            types.SimpleNamespace(scale=1.0),
        )
        self.layers = nn.CellList([Times(1.0)])
        self.chain = nn.SequentialCell([Times(1.0)])
        self.numbered_0 = 1.0
        self.doubled = False

    def construct(self, x):
        x = (
            x
            * self.own
            * self.inherited
            * self.mixed
            * self.scale
            * self.config["scale"][0]
            * self.space.scale
        )
        for layer in self.layers:
            x = layer(x)
        if self.doubled:
            x = x * 2
        if self.training:
            x = x * TRAINING[0]
        return self.chain(x) * self.helper() * self.w

    def helper(self):
        return getattr(self, "numbered_" + "0")


TRAINING = [5.0]


class Times(nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def construct(self, x):
        return x * self.factor


NETWORKS = {
    "class attribute": (lambda net, patch: patch.setattr(Net, "own", 3.0), 3),
    "class attribute of the base": (lambda net, patch: patch.setattr(Base, "inherited", 3.0), 3),
    "class attribute of a mixin": (lambda net, patch: patch.setattr(Mixin, "mixed", 3.0), 3),
    "attribute": (lambda net, patch: setattr(net, "scale", 3.0), 3),
    "attribute in the place of a class's": (lambda net, patch: setattr(net, "own", 3.0), 3),
    "table": (lambda net, patch: net.config["scale"].__setitem__(0, 3.0), 3),
    "namespace": (lambda net, patch: setattr(net.space, "scale", 3.0), 3),
    "attribute by a name made at run time": (lambda net, patch: setattr(net, "numbered_0", 3.0), 3),
    "append": (lambda net, patch: net.layers.append(Times(3.0)), 3),
    "insert": (lambda net, patch: net.layers.insert(0, Times(3.0)), 3),
    "append to a SequentialCell": (lambda net, patch: net.chain.append(Times(3.0)), 3),
    "another Cell": (lambda net, patch: net.layers.__setitem__(0, Times(3.0)), 3),
    "attribute of a child": (lambda net, patch: setattr(net.layers[0], "factor", 3.0), 3),
    "flag": (lambda net, patch: setattr(net, "doubled", True), 2),
    "training": (lambda net, patch: net.set_train(True), 5),
    "training of the net alone": (lambda net, patch: setattr(net, "training", True), 5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_change_is_seen_by_an_operator(name, monkeypatch):
    change, factor = NETWORKS[name]
    net, x = Net(), np.array([[1.0], [2.0]], np.float32)
    net.set_train(False)
    op = mh.HessianOperator(net, nn.MSELoss(), (Tensor(x), Tensor(0 * x)), progress=False)
    one, truth = np.ones(1), 2 * (x**2).mean()
    np.testing.assert_allclose(op @ one, truth, rtol=1e-5)
    change(net, monkeypatch)
    np.testing.assert_allclose(op @ one, truth * factor**2, rtol=1e-5)


def test_a_loss_that_changes_is_seen():
    class Loss(nn.Cell):
        def __init__(self):
            super().__init__()
            self.options = types.SimpleNamespace(factor=1.0)

        def construct(self, out, target):
            return self.options.factor * ((out - target) ** 2).mean()

    loss, x = Loss(), np.array([[1.0], [2.0]], np.float32)
    op = mh.GGNOperator(Net().set_train(False), loss, (Tensor(x), Tensor(0 * x)), progress=False)
    np.testing.assert_allclose(op @ np.ones(1), 5.0, rtol=1e-5)
    loss.options.factor = 3.0
    np.testing.assert_allclose(op @ np.ones(1), 15.0, rtol=1e-5)


def test_a_construct_of_the_instance_is_seen():
    net = Times(1.0)

    def construct(self, x):
        return 3.0 * x

    f = lambda x: (net(x) ** 2).sum()  # noqa: E731
    token = Captures(f).token
    net.construct = types.MethodType(construct, net)
    assert Captures(f).token != token


# --- what is in reach, and what is not ------------------------------------------------------------


class Unrelated:
    """Its methods say names of the standard library, and are not called."""

    cached = False

    def save(self):
        import json

        return json.dumps({"home": os.getenv("HOME")})

    def log(self):
        log.warning("never")
        return unknown_source()


class WithUnrelated(nn.Cell):
    def __init__(self):
        super().__init__()
        self.settings, self.flag, self.log_file = Unrelated(), False, sys.stdout

    def construct(self, x):
        if self.flag:
            log.warning("never")
            x = x + len(os.environ.get("HOME"))
        if self.settings.cached:
            x = 2 * x
        return (x**2).sum()

    def save(self):
        return self.settings.save(), os.getcwd(), unknown_source()


unknown_source = types.SimpleNamespace()
exec("def unknown_source():\n    return 1", vars(unknown_source))
unknown_source = unknown_source.unknown_source


def test_only_what_the_compiled_function_reaches_counts(monkeypatch):
    net = WithUnrelated()
    np.testing.assert_allclose(mh.hvp(net, X, V).asnumpy(), 2 * V.asnumpy())
    token = Captures(net).token
    net.unread = object()
    net.settings.also_unread = [1, 2]
    monkeypatch.setattr(log, "handlers", [logging.StreamHandler()])
    assert Captures(net).token == token
    assert Unrelated.save not in Captures(net).functions
    monkeypatch.setattr(Unrelated, "cached", True)
    np.testing.assert_allclose(mh.hvp(net, X, V).asnumpy(), 8 * V.asnumpy())


class Bar:
    """As a progress bar, which changes at every step."""

    __module__ = "tqdm.std"
    n = 0

    def update(self):
        self.n += 1


def test_a_progress_bar_does_not_compile_anew():
    bar, shown = Bar(), False

    def f(x):
        if shown:
            bar.update()
        return (x**2).sum()

    token = Captures(f).token
    bar.update()
    assert Captures(f).token == token


def test_what_no_code_reads_is_not_kept_alive():
    import gc
    import weakref

    settings = Unrelated()
    settings.rows = Data()
    alive = weakref.ref(settings.rows)

    def f(x):
        return x * settings.cached

    captures = Captures(f)
    del settings.rows
    gc.collect()
    assert alive() is None
    assert captures.token


def sin(x):
    raise AssertionError("a global that the function below does not read")


def says_ops_sin(x):
    return ops.sin(x).sum()


def test_a_global_with_the_name_of_an_attribute_is_not_in_reach():
    assert sin not in Captures(says_ops_sin).functions
    np.testing.assert_allclose(
        mh.hvp(says_ops_sin, X, V).asnumpy(), -np.sin(X.asnumpy()) * V.asnumpy(), rtol=1e-5
    )


class OfC:
    """As an object of a library in C whose state is not to be read."""

    def __init__(self):
        self.rows = (row for row in [1])


def test_what_cannot_be_read_is_compiled_anew_and_named():
    opaque = OfC()

    def f(x):
        if opaque.rows is None:
            return x.sum()
        return (x**2).sum()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(7):
            np.testing.assert_allclose(mh.hvp(f, X, V).asnumpy(), 2 * V.asnumpy())
    assert any(
        w.category is RecompileWarning and "function.opaque.rows" in str(w.message) for w in caught
    )


def test_paths_name_the_place_in_the_network():
    net = Net()
    labels = Captures(net, labels=True).labels
    assert "network.layers.0.factor" in labels
    assert "network.config.scale.[0]" in labels


class Many:
    def __init__(self, count):
        self.objects = [Slots(float(i)) for i in range(count)]


BIG = {
    "dict": lambda: {f"key {i}": float(i) for i in range(100_000)},
    "dict of tuples": lambda: {i: (i, str(i), {"k": [i]}) for i in range(10_000)},
    "list": lambda: list(range(1_000_000)),
    "array": lambda: np.ones(2**22),
    "range": lambda: range(10**9),
    "unread attribute": lambda: types.MethodType(lambda self: 1.0, Many(1)) and HasUnread(),
}


class HasUnread:
    def __init__(self):
        self.data = [object() for _ in range(300_000)]

    def factor(self):
        return 1.0


@pytest.mark.parametrize("name", BIG)
def test_large_captures_are_read_fast(name):
    import time

    big = BIG[name]()

    def f(x):
        return x * (big.factor() if False else big)

    best = np.inf
    for _ in range(5):
        start = time.thread_time()
        Captures(f)
        best = min(best, time.thread_time() - start)
    assert best < 0.1  # 0.05 on a machine at rest


def test_a_change_in_a_large_array_or_list_is_seen():
    for big in (np.zeros(2**22), [0.0] * 10**5, {i: [0.0] for i in range(1000)}):

        def f(x, big=big):
            return x * big

        token = Captures(f).token
        if isinstance(big, dict):
            big[999][0] = 1.0
        else:
            big[-1] = 1.0
        assert Captures(f).token != token


def test_equal_values_of_other_types_in_a_large_list_are_told_apart():
    def token(items):
        def f(x):
            return x * items

        return Captures(f).token

    for other in (1, True, np.float64(1.0), -0.0):
        assert token([1.0] * 20 + [0.0]) != token([1.0] * 19 + [other, 0.0])
    assert token([0.0] * 20) != token([-0.0] * 20)
    assert token([float("nan")] * 20) == token([float("nan")] * 20)


def test_a_slow_capture_is_named(monkeypatch):
    monkeypatch.setattr(captures, "SLOW", 0.0)
    many = Many(100)

    def f(x):
        return (x**2).sum() * many.objects[1].c

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            np.testing.assert_allclose(mh.hvp(f, X, V).asnumpy(), 2 * V.asnumpy())
    told = [str(w.message) for w in caught if w.category is RecompileWarning]
    assert len(told) == 1
    assert "function.many.objects" in told[0]


# --- weights --------------------------------------------------------------------------------------

WEIGHTS = {
    "generator": lambda net: (p for p in net.trainable_params()),
    "iterator": lambda net: iter(net.trainable_params()),
    "get_parameters": lambda net: net.get_parameters(),
    "view of a dict": lambda net: net.parameters_dict().values(),
    "filter": lambda net: filter(lambda p: p.requires_grad, net.get_parameters()),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_from_anything_that_gives_them(name):
    net = Times(1.0)
    net.w = Parameter(Tensor([2.0, 3.0]), name="w")

    def f(x):
        return (net.w**3 * x).sum()

    x, truth = Tensor([1.0, 2.0]), np.array([12.0, 36.0])
    product = mh.hvp(f, x, (Tensor([1.0, 1.0]),), weights=WEIGHTS[name](net))[0]
    np.testing.assert_allclose(product.asnumpy(), truth, rtol=1e-5)
    diagonal, matrix = (
        mh.hessian_diag(f, weights=WEIGHTS[name](net)),
        mh.hessian(f, weights=WEIGHTS[name](net)),
    )
    for _ in range(2):  # a generator is read once
        np.testing.assert_allclose(diagonal(x)[0].asnumpy(), truth, rtol=1e-5)
        np.testing.assert_allclose(matrix(x)[0][0].asnumpy(), np.diag(truth), rtol=1e-5)
    np.testing.assert_allclose(
        mh.jacobian(f, weights=WEIGHTS[name](net))(x)[0].asnumpy(), [12, 54], rtol=1e-5
    )


def test_an_embedding_is_the_same_when_its_table_is_trained():
    """MindSpore keeps the Tensor that the table was made of, and both have one memory."""

    class Reads(nn.Cell):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def construct(self, x):
            return self.table(x) + self.table.init_tensor[0]

    changed = []
    for net in (nn.Embedding(3, 2), nn.SequentialCell(nn.Embedding(3, 2)), Reads()):
        before = Captures(net).token
        table = next(iter(net.get_parameters()))
        ops.assign(table, table + 1.0)
        changed.append(Captures(net).token != before)
    assert changed == [False, False, True]
