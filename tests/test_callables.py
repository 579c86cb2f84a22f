"""Whatever a Python user would pass: each kind of callable gives the Hessian product of sum(x^3), 6 x v."""
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
    return (x ** 3).sum()


def scaled(x, scale=1.0, *, more=1.0):
    return (x ** 3 * scale * more).sum()


def varargs(*xs):
    return (xs[0] ** 3).sum()


def keywords(x, **options):
    return (x ** 3 * options["scale"]).sum()


def doubling(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args) * 2
    return wrapper


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def method(self, x):
        return (x ** 3 * self.scale).sum()

    def __call__(self, x):
        return self.method(x)

    @staticmethod
    def static(x):
        return (x ** 3).sum()

    @classmethod
    def of_class(cls, x):
        return (x ** 3).sum()


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([1.0, 1.0, 1.0], ms.float64), name="weight")

    def construct(self, x):
        return (x ** 3 * self.weight).sum()

    def method(self, x):
        return self.construct(x)


class JitNet(Net):
    @jit
    def construct(self, x):
        return (x ** 3 * self.weight).sum()


def apply(fn):
    def outer(x):
        return fn(x).sum()
    return outer


alone = lambda x: (x ** 3).sum()  # noqa: E731
HALF = 0.5

CALLABLES = {
    "def": cube,
    "lambda on its own line": alone,
    "lambda in the call": lambda x: (x ** 3).sum(),
    "one of two lambdas in a line": (lambda x: (x ** 2).sum(), lambda x: (x ** 3).sum())[1],
    "lambda over two lines": lambda x: (
        x ** 3).sum(),
    "lambda with a global": lambda x: (x ** 3 * 2 * HALF).sum(),
    "closure": apply(alone),
    "closure over a lambda in a call": apply(lambda x: x ** 3),
    "closure over a partial": apply(functools.partial(ops.pow, exponent=3)),
    "bound method": Scaled(1.0).method,
    "object with __call__": Scaled(1.0),
    "static method": Scaled.static,
    "class method": Scaled.of_class,
    "partial": functools.partial(scaled, scale=1.0),
    "partial with a Tensor": functools.partial(scaled, scale=Tensor(1.0, ms.float64)),
    "partial of a lambda": functools.partial(lambda a, x: (a * x ** 3).sum(), 1.0),
    "partial of a partial": functools.partial(functools.partial(scaled, scale=2.0), more=0.5),
    "default arguments": scaled,
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


def test_keyword_and_positional_arguments():
    from mindspore_hessian import hessian
    np.testing.assert_allclose(hvp(scaled, (Tensor(X), 2.0), Tensor(V), grad_position=0).asnumpy(), 2 * EXPECTED)
    h = hessian(keywords)(Tensor(X), scale=3.0)
    np.testing.assert_allclose(h.asnumpy(), np.diag(18 * X))
    h = hessian(scaled)(Tensor(X), more=Tensor(2.0, ms.float64))
    np.testing.assert_allclose(h.asnumpy(), np.diag(12 * X))


def test_a_wrapper_is_not_skipped():
    """MindSpore's parser follows functools.wraps and would differentiate the function inside."""
    np.testing.assert_allclose(hvp(doubling(cube), Tensor(X), Tensor(V)).asnumpy(), 2 * EXPECTED)
    np.testing.assert_allclose(hvp(apply(doubling(cube)), Tensor(X), Tensor(V)).asnumpy(), 2 * EXPECTED)
    assert doubling(cube).__wrapped__ is cube


def test_nested_arguments():
    def f(state, x):
        a, (b, c) = state
        return (a * x ** 3).sum() + (b["k"] * c).sum()
    one = Tensor([1.0, 1.0, 1.0], ms.float64)
    got = hvp(f, ((one, ({"k": one}, 2)), Tensor(X)), Tensor(V), grad_position=1)
    np.testing.assert_allclose(got.asnumpy(), EXPECTED)


@functools.lru_cache
def cached(x):
    return (x ** 3).sum()


def through_numpy(x):
    return Tensor(np.sum(x.asnumpy() ** 3))


def with_try(x):
    try:
        return (x ** 3).sum()
    except ValueError:
        return x.sum()


REFUSED = {"lru_cache": (cached, "__wrapped__"), "Tensor method": (Tensor.sum, "def f"), "builtin": (sum, "def f"),
           "numpy inside": (through_numpy, "gradient is lost"), "try": (with_try, "Try")}


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


def test_a_function_with_other_globals_than_its_module(tmp_path, monkeypatch):
    """As in a doctest or runpy: the name space is not that of the module that the function claims to be from."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_a_doctest.py").write_text("POWER = 2\n")
    import package_of_a_doctest
    file = tmp_path / "script.py"
    file.write_text("POWER = 3\n\ndef helper(x):\n    return x ** POWER\n\ndef f(x):\n    return helper(x).sum()\n")
    for name in ("package_of_a_doctest", "no_such_module"):
        space = {"__name__": name}
        exec(compile(file.read_text(), str(file), "exec"), space)
        np.testing.assert_allclose(hvp(space["f"], Tensor(X), Tensor(V)).asnumpy(), EXPECTED)
    assert sys.modules["package_of_a_doctest"] is package_of_a_doctest
    assert package_of_a_doctest.POWER == 2
    assert "no_such_module" not in sys.modules


def run(code, *args, **kwargs):
    return subprocess.run([sys.executable, *args], input=textwrap.dedent(code), text=True, capture_output=True,
                          timeout=300, check=False, **kwargs)


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
        name, text = f"<ipython-input-{number}>", f"def f(x):\n    return ops.pow(x, {power}).sum()\n"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        exec(compile(text, name, "exec"), space)
        expected = EXPECTED if power == 3 else 2 * V
        np.testing.assert_allclose(hvp(space["f"], Tensor(X), Tensor(V)).asnumpy(), expected, rtol=1e-12)
