"""Whatever a Python user would pass: each kind of callable gives the Hessian product of sum(x^3), 6
x v.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, jit, nn, ops

from mindspore_hessian import NotCompilableError, hvp

X, V = np.array([1.0, 2.0, 3.0]), np.array([1.0, -1.0, 2.0])
EXPECTED = 6 * X * V


def cube(x):
    return (x**3).sum()


def scaled(x, scale=1.0, *, more=1.0):
    return (x**3 * scale * more).sum()


def varargs(*xs):
    return (xs[0] ** 3).sum()


def keywords(x, **options):
    return (x**3 * options["scale"]).sum()


def doubling(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args) * 2

    return wrapper


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def method(self, x):
        return (x**3 * self.scale).sum()

    def __call__(self, x):
        return self.method(x)

    @staticmethod
    def static(x):
        return (x**3).sum()

    @classmethod
    def of_class(cls, x):
        return (x**3).sum()


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([1.0, 1.0, 1.0], ms.float64), name="weight")

    def construct(self, x):
        return (x**3 * self.weight).sum()

    def method(self, x):
        return self.construct(x)


class JitNet(Net):
    @jit
    def construct(self, x):
        return (x**3 * self.weight).sum()


def apply(fn):
    def outer(x):
        return fn(x).sum()

    return outer


NET = Net()


def cell_by_default(x, net=NET):
    return net(x)


def cell_by_keyword(x, *, net=NET):
    return net(x)


net = nn.Dense(3, 3)


def calls_with_default(x):
    def inner(y, net=net):
        return net(y) ** 3

    return inner(x.astype(ms.float32)).sum()


alone = lambda x: (x**3).sum()  # noqa: E731
HALF = 0.5

CALLABLES = {
    "def": cube,
    "lambda on its own line": alone,
    "lambda in the call": lambda x: (x**3).sum(),
    "one of two lambdas in a line": (lambda x: (x**2).sum(), lambda x: (x**3).sum())[1],
    "lambda over two lines": lambda x: (x**3).sum(),
    "lambda with a global": lambda x: (x**3 * 2 * HALF).sum(),
    "closure": apply(alone),
    "closure over a lambda in a call": apply(lambda x: x**3),
    "closure over a partial": apply(functools.partial(ops.pow, exponent=3)),
    "bound method": Scaled(1.0).method,
    "object with __call__": Scaled(1.0),
    "static method": Scaled.static,
    "class method": Scaled.of_class,
    "partial": functools.partial(scaled, scale=1.0),
    "partial with a Tensor": functools.partial(scaled, scale=Tensor(1.0, ms.float64)),
    "partial of a lambda": functools.partial(lambda a, x: (a * x**3).sum(), 1.0),
    "partial of a partial": functools.partial(functools.partial(scaled, scale=2.0), more=0.5),
    "default arguments": scaled,
    "a Cell by default": cell_by_default,
    "a Cell by default, keyword only": cell_by_keyword,
    "a Cell by default of a lambda": lambda x, scale=1.0, net=NET: net(x) * scale,
    "*args": varargs,
    "jit function": jit(cube),
    "jit lambda": jit(alone),
    "trace-mode jit function": jit(capture_mode="trace")(cube),
    "Cell": Net(),
    "Cell.construct": Net().construct,
    "method of a Cell": Net().method,
    "jit Cell": jit(Net()),
    "Cell with a jit construct": JitNet(),
}


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def test_every_kind_of_callable(name, mode):
    ms.set_context(mode=mode)
    try:
        got = hvp(CALLABLES[name], Tensor(X), Tensor(V))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    np.testing.assert_allclose(got.asnumpy(), EXPECTED, rtol=1e-12)


def test_a_cell_by_default_of_what_is_called_inside():
    with pytest.raises(
        NotCompilableError,
        match="lost 'net'. If that is an argument whose default value is an nn.Cell",
    ):
        hvp(calls_with_default, Tensor(X), Tensor(V))


def test_keyword_and_positional_arguments():
    from mindspore_hessian import hessian

    np.testing.assert_allclose(
        hvp(scaled, (Tensor(X), 2.0), Tensor(V), grad_position=0).asnumpy(), 2 * EXPECTED
    )
    h = hessian(keywords)(Tensor(X), scale=3.0)
    np.testing.assert_allclose(h.asnumpy(), np.diag(18 * X))
    h = hessian(scaled)(Tensor(X), more=Tensor(2.0, ms.float64))
    np.testing.assert_allclose(h.asnumpy(), np.diag(12 * X))


def test_a_wrapper_is_not_skipped():
    """MindSpore's parser follows functools.wraps and would differentiate the function inside."""
    np.testing.assert_allclose(hvp(doubling(cube), Tensor(X), Tensor(V)).asnumpy(), 2 * EXPECTED)
    np.testing.assert_allclose(
        hvp(apply(doubling(cube)), Tensor(X), Tensor(V)).asnumpy(), 2 * EXPECTED
    )
    assert doubling(cube).__wrapped__ is cube


def test_nested_arguments():
    def f(state, x):
        a, (b, c) = state
        return (a * x**3).sum() + (b["k"] * c).sum()

    one = Tensor([1.0, 1.0, 1.0], ms.float64)
    got = hvp(f, ((one, ({"k": one}, 2)), Tensor(X)), Tensor(V), grad_position=1)
    np.testing.assert_allclose(got.asnumpy(), EXPECTED)


@functools.lru_cache
def cached(x):
    return (x**3).sum()


def power(x, n):
    if n == 0:
        return (x**3).sum()
    return power(x, n - 1)


def even(x, n):
    if n == 0:
        return (x**3).sum()
    return odd(x, n - 1)


def odd(x, n):
    if n == 0:
        return (x**2).sum()
    return even(x, n - 1)


def local_recursion():
    def inner(x, n):
        if n == 0:
            return (x**3).sum()
        return inner(x, n - 1)

    return inner


def local_mutual_recursion():
    def one(x, n):
        if n == 0:
            return (x**3).sum()
        return two(x, n - 1)

    def two(x, n):
        return one(x, n - 1)

    return one


class Recursive(nn.Cell):
    power = 3

    def deeper(self, x, n):
        if n == 0:
            return (x**self.power).sum()
        return self.deeper(x, n - 1)

    def construct(self, x, n):
        def inner(y):
            return self.deeper(y, n)

        return inner(x)


def doubling_method(fn):
    @functools.wraps(fn)
    def wrapper(self, *args):
        return fn(self, *args) * 2

    return wrapper


class Decorated(Recursive):
    @doubling_method
    def construct(self, x, n):
        return self.deeper(x, n) / 2


RECURSIVE = {
    "global": power,
    "mutual": even,
    "local": local_recursion(),
    "local mutual": local_mutual_recursion(),
    "method": Recursive(),
    "decorated method": Decorated(),
    "bound method": Recursive().deeper,
}


@pytest.mark.parametrize("name", RECURSIVE)
def test_recursion(name):
    got = hvp(RECURSIVE[name], (Tensor(X), 4), Tensor(V), grad_position=0)
    np.testing.assert_allclose(got.asnumpy(), EXPECTED, rtol=1e-12)


class Private:
    __power = 3

    def __init__(self):
        self.__factor = 1.0

    def method(self, x):
        return self.__sum(x**self.__power) * self.__factor

    def __sum(self, x):
        return x.sum()


class HidesAttribute(Private):
    __power = 2


class HidesMethod(Private):
    def __sum(self, x):
        return x.sum() ** 2


class HidesItsOwn(Private):
    def __init__(self):
        super().__init__()
        self.__factor = 2.0


def test_private_names():
    np.testing.assert_allclose(hvp(Private().method, Tensor(X), Tensor(V)).asnumpy(), EXPECTED)
    for kind in (HidesAttribute, HidesMethod, HidesItsOwn):
        with pytest.raises(NotCompilableError, match=f"of Private, and {kind.__name__} has"):
            hvp(kind().method, Tensor(X), Tensor(V))


def through_numpy(x):
    return Tensor(np.sum(x.asnumpy() ** 3))


def with_try(x):
    try:
        return (x**3).sum()
    except ValueError:
        return x.sum()


def generator(x):
    yield (x**3).sum()


async def coroutine(x):
    return (x**3).sum()


class Context:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


context = Context()


def with_context(x):
    with context:
        y = x**3
    return y.sum()


def with_file(x):
    with open("file"):
        return (x**3).sum()


class This(nn.Cell):
    def construct(this, x):
        return (x**3).sum()


class DecoratedThis(nn.Cell):
    @doubling
    def construct(self, x):
        return (x**3).sum()


class ThisMethod:
    def method(this, x):
        return (x**3).sum()


REFUSED = {
    "generator": (generator, "generator.*Collect the values"),
    "async": (coroutine, "coroutine.*plain `def`"),
    "async inside": (lambda x: coroutine(x), "coroutine.*plain `def`"),
    "with": (with_context, "with_context.*`with` block"),
    "with open": (with_file, "with_file.*`with` block"),
    "construct(this)": (This(), "This.construct.*`self`"),
    "construct(*args) by a decorator": (DecoratedThis(), "DecoratedThis.construct.*`self`"),
    "method(this)": (ThisMethod().method, "ThisMethod.method.*`self`"),
    "lru_cache": (cached, "__wrapped__"),
    "Tensor method": (Tensor.sum, "def f"),
    "builtin": (sum, "def f"),
    "numpy inside": (through_numpy, "gradient is lost"),
    "try": (with_try, "Try"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_says_why(name):
    fn, message = REFUSED[name]
    with pytest.raises(NotCompilableError, match=message):
        hvp(fn, Tensor(X), Tensor(V))


def test_exec_has_no_source():
    space = {}
    exec("def f(x):\n    return (x ** 3).sum()", space)
    with pytest.raises(NotCompilableError, match="out of reach"):
        hvp(space["f"], Tensor(X), Tensor(V))


def test_an_edited_file_is_noticed(tmp_path, monkeypatch):
    """MindSpore compiles the text on disk, Python runs what it imported."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_function.py"
    file.write_text("def f(x):\n    return (x ** 3).sum()\n")
    import edited_function

    file.write_text("def f(x):\n    return (x ** 2).sum()\n")
    with pytest.raises(NotCompilableError, match="edited"):
        hvp(edited_function.f, Tensor(X), Tensor(V))


EDITS = {
    "constant": ("return (x ** 3).sum()", "return (x ** 2).sum()"),
    "in an assert": (
        "assert x.ndim == 1\n    return (x ** 3).sum()",
        "assert x.ndim == 2\n    return (x ** 3).sum()",
    ),
    "beside an assert": (
        "assert x.ndim == 1\n    return (x ** 3).sum()",
        "assert x.ndim == 1\n    return (x ** 2).sum()",
    ),
    "in a local function": (
        "def g(y):\n        return y ** 3\n    return g(x).sum()",
        "def g(y):\n        return y ** 2\n    return g(x).sum()",
    ),
    "one line down": ("return (x ** 3).sum()", "\n    return (x ** 2).sum()"),
}


@pytest.mark.parametrize("by", ["python", "pytest"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_noticed_also_where_pytest_rewrote_the_asserts(name, by, tmp_path):
    import ast

    from _pytest.assertion.rewrite import rewrite_asserts

    file, (before, after) = tmp_path / f"edited_{by}.py", EDITS[name]
    text = f"def f(x):\n    {before}\n"
    file.write_text(text)
    tree = ast.parse(text)
    if by == "pytest":
        rewrite_asserts(tree, text.encode())
    space = {"__name__": "of_the_edited_file"}
    exec(compile(tree, str(file), "exec"), space)
    np.testing.assert_allclose(hvp(space["f"], Tensor(X), Tensor(V)).asnumpy(), EXPECTED)
    file.write_text(f"def f(x):\n    {after}\n")
    from mindspore_hessian import clear_cache

    clear_cache()
    with pytest.raises(NotCompilableError, match="edited"):
        hvp(space["f"], Tensor(X), Tensor(V))


def test_a_function_without_source_in_a_dead_branch_does_no_harm():
    space = {"__name__": __name__}
    exec("def f(x):\n    return x", space)
    inner = space["f"]

    def outer(x):
        if False:
            return inner(x)
        return (x**3).sum()

    def calls(x):
        return inner(x).sum()

    np.testing.assert_allclose(hvp(outer, Tensor(X), Tensor(V)).asnumpy(), EXPECTED)
    with pytest.raises(NotCompilableError, match="source"):
        hvp(calls, Tensor(X), Tensor(V))
    del space["__name__"]
    exec("def f(x):\n    return x", space)
    inner = space["f"]
    with pytest.raises(NotCompilableError, match="__name__"):
        hvp(calls, Tensor(X), Tensor(V))


def test_the_error_says_how_the_function_is_reached(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_cell.py"
    text = "from mindspore import nn\nclass Act(nn.Cell):\n    def construct(self, x):\n        return x ** {}\n"
    file.write_text(text.format(3))
    import edited_cell

    net = nn.SequentialCell(nn.SequentialCell(edited_cell.Act()))
    file.write_text(text.format(2))
    with pytest.raises(NotCompilableError, match=r"reached as network\.0\.0\.construct"):
        hvp(net, Tensor(X), Tensor(V))


def test_a_function_with_other_globals_than_its_module(tmp_path, monkeypatch):
    """As in a doctest or runpy: the name space is not that of the module that the function claims
    to be from.
    """
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_a_doctest.py").write_text("POWER = 2\n")
    import package_of_a_doctest

    file = tmp_path / "script.py"
    file.write_text(
        "POWER = 3\n\ndef helper(x):\n    return x ** POWER\n\ndef f(x):\n    return "
        "helper(x).sum()\n"
    )
    for name in ("package_of_a_doctest", "no_such_module"):
        space = {"__name__": name}
        exec(compile(file.read_text(), str(file), "exec"), space)
        np.testing.assert_allclose(hvp(space["f"], Tensor(X), Tensor(V)).asnumpy(), EXPECTED)
    assert sys.modules["package_of_a_doctest"] is package_of_a_doctest
    assert package_of_a_doctest.POWER == 2
    assert "no_such_module" not in sys.modules


def run(code, *args, **kwargs):
    return subprocess.run(
        [sys.executable, *args],
        input=textwrap.dedent(code),
        text=True,
        capture_output=True,
        timeout=240,
        check=False,
        **kwargs,
    )


SCRIPT = """
from mindspore import Tensor
from mindspore_hessian import hvp
def f(x):
    return (x ** 3).sum()
print("RESULT", hvp(f, Tensor([1.0, 2.0]), Tensor([1.0, 1.0])))
"""


def test_a_plain_prompt_is_refused_and_a_script_works(tmp_path):
    typed = run(SCRIPT, "-")
    assert "NotCompilableError" in typed.stderr
    assert ".py file or a notebook cell" in typed.stderr
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    ran = run("", str(file), cwd=tmp_path)
    assert "RESULT [ 6. 12.]" in ran.stdout, ran.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("rank")] == []


def test_a_notebook_cell_typed_twice():
    """A notebook puts its cells into linecache under names of their own, as is done here."""
    import linecache

    space = {"__name__": "__main__", "ops": ops}
    for number, power in enumerate((3, 2)):
        name, text = (
            f"<ipython-input-{number}>",
            f"def f(x):\n    return ops.pow(x, {power}).sum()\n",
        )
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(text, name, "exec"), space)
        expected = EXPECTED if power == 3 else 2 * V
        np.testing.assert_allclose(
            hvp(space["f"], Tensor(X), Tensor(V)).asnumpy(), expected, rtol=1e-12
        )
