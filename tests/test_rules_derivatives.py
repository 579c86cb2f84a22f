"""Every derivative rule, against float64 values of another framework (ci/golden/make_rules.py)."""
from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import special_points
from attributes_table import ROWS as ATTRIBUTES
from mindspore import Tensor, jit, jvp, nn, ops
from ops_functions import wave
from ops_table import ROWS
from ops_table_more import ROWS as MORE

from mindspore_hessian import _compat, hvp, rules
from mindspore_hessian.rules import activations

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "rules.npz")


def _scalar(f, shape, dtype):
    weight = Tensor((wave(*shape, phase=2.2) + 1.5).astype(dtype)) if shape else 1.0

    def s(x):
        y = f(x)
        return (weight * (y + 0.5 * y * y)).sum()
    return s


def _run(function, *args):
    """Compiled once, and freed: a hundred rows under `jit` leave gigabytes behind."""
    return _compat.Graph(function, args, "O0")(args)


def _hvp(s):
    def k(x, v):
        return ops.GradOperation(get_all=True, sens_param=True)(ops.GradOperation(get_all=True)(s))(x, (v,))
    return k


def _third(s):
    def k(x, v):
        def hv(x):
            return ops.GradOperation(get_all=True, sens_param=True)(ops.GradOperation(get_all=True)(s))(x, (v,))
        return ops.GradOperation(get_all=True, sens_param=True)(hv)(x, (v,))
    return k


def _case(row):
    x, v = GOLDEN[f"{row.name}/x"], GOLDEN[f"{row.name}/v"]
    return Tensor(x.astype(row.dtype)), Tensor(v.astype(row.dtype))


def _error(got, expected):
    return np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-3)


def _compare(row, product, order):
    if row.since > _compat.MS_VERSION:
        pytest.skip("no CPU kernel in this version")
    f = row.make(row.dtype)
    x, v = _case(row)
    s = _scalar(f, _run(f, x).shape, row.dtype)
    got = _run(product(s), x, v)[0].asnumpy().copy()
    assert got.dtype == row.dtype
    expected = _quadratic_hvp(s, x, v) if row.linear else GOLDEN[f"{row.name}/{order}"]
    error = _error(got, expected)
    assert error < row.tolerance, f"relative error {error:.1e}"


def _quadratic_hvp(s, x, v):
    def g(x):
        return ops.GradOperation(get_all=True)(s)(x)
    ahead, behind = (_run(g, point)[0].asnumpy().astype(np.float64) for point in (x + v, x - v))
    return (ahead - behind) / 2


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_hvp(row):
    _compare(row, _hvp, "hvp")


@pytest.mark.parametrize("row", [row for row in ROWS if row.third], ids=lambda row: row.name)
def test_third_derivative(row):
    _compare(row, _third, "third")


JVP_NAMES = ("log_softmax", "gelu_tanh", "bce_logits", "avg_pool_layer", "softmax_cross_entropy_dense")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in JVP_NAMES], ids=lambda row: row.name)
def test_jvp_of_grad_is_not_zero(row):
    """Where the rule is missing, MindSpore's jvp(grad) is silently zero."""
    s = _scalar(row.make(row.dtype), jit(row.make(row.dtype))(_case(row)[0]).shape, row.dtype)

    def gradient(x):
        return ops.GradOperation()(s)(x)

    def forward(x, v):
        return jvp(gradient, x, v)[1]
    error = _error(jit(forward)(*_case(row)).asnumpy(), GOLDEN[f"{row.name}/hvp"])
    assert error < row.tolerance


ELSEWHERE = {  # primitives without a CPU kernel: the formula is compared with differences of the activation
    "SeluGrad": (lambda d, x, y: activations.selu_grad(d, y), ops.selu),
    "MishGradExt": (lambda d, x, y: activations.mish_grad(d, x), ops.mish),
    "LogSigmoidGrad": (lambda d, x, y: activations.log_sigmoid_grad(d, x, x), ops.logsigmoid),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_formulas_of_other_devices(name):
    formula, forward = ELSEWHERE[name]
    x, step = Tensor(np.linspace(-2.1, 2.0, 12)), 1e-3
    slope = (forward(x + step) - forward(x - step)) / (2 * step)
    got = formula(ops.ones_like(x), x, forward(x))
    assert np.abs((got - slope).asnumpy()).max() < 1e-3


def test_log_softmax_of_a_number_has_no_slope():
    """MindSpore's gradient of it hangs."""
    def f(x):
        return ops.log_softmax(x, 0) * 2.0 + x ** 2
    assert hvp(f, Tensor(np.array(0.3)), Tensor(np.array(1.0))).asnumpy() == 2.0


def test_every_rule_has_a_row_and_every_row_a_golden_value():
    ours = {line.primitive for line in rules.status() if line.kind == "derivative" and line.active == "ours"}
    tested = {name for row in (*ROWS, *ATTRIBUTES, *MORE) for name in row.rules}
    refused = {name + which for name in ("HFFT", "IHFFT") for which in ("", "2", "N")}
    assert ours == tested | set(ELSEWHERE) | refused | special_points.RULES
    assert {row.name for row in ROWS} <= {key.split("/")[0] for key in GOLDEN}


@pytest.mark.parametrize("point", [0.0, 3.0, -0.5])
def test_square_at_zero(point):
    """MindSpore's third derivative of a power fails; ours is exact where x^(p - 3) is not finite."""
    def f(x):
        return ops.square(x).sum()
    x = Tensor(np.array([point, 1.0]))
    assert np.array_equal(jit(_hvp(f))(x, x + 1)[0].asnumpy(), 2 * (x + 1).asnumpy())
    assert np.array_equal(jit(_third(f))(x, x + 1)[0].asnumpy(), [0.0, 0.0])


def test_ties_in_a_max_pool_keep_the_hessian_symmetric():
    """After a relu many windows hold equal zeros: the second derivative reads where the first one wrote."""
    pool = nn.MaxPool2d(2, 2)

    def f(x):
        return (pool(ops.relu(x)) ** 2).sum()
    x = Tensor(np.where(np.arange(16) % 3 == 0, -1.0, 1.0).reshape(1, 1, 4, 4).astype(np.float32))
    product = jit(_hvp(f))
    rows = [product(x, Tensor(e.reshape(1, 1, 4, 4)))[0].asnumpy().ravel().copy() for e in np.eye(16, dtype=np.float32)]
    hessian = np.stack(rows)
    assert np.array_equal(hessian, hessian.T)
    assert np.count_nonzero(hessian) == 4 and np.trace(hessian) == 8


# --- the registry ----------------------------------------------------------------------------------------------------

def _snapshot():
    return dict(_compat.derivative_registry())


def test_install_is_idempotent_and_uninstall_gives_everything_back():
    installed, names = _snapshot(), os.environ["MS_DEV_USE_PY_BPROP"]
    rules.install()
    assert _snapshot() == installed and os.environ["MS_DEV_USE_PY_BPROP"] == names
    rules.uninstall()
    try:
        assert "GeLUGrad" not in _snapshot()
        assert all(line.active != "ours" for line in rules.status())
        assert os.environ["MS_DEV_USE_PY_BPROP"] == ""
    finally:
        rules.install()
    assert _snapshot() == installed
    assert set(os.environ["MS_DEV_USE_PY_BPROP"].split(",")) == set(names.split(","))


def test_a_rule_of_somebody_else_stays():
    registry = _compat.derivative_registry()

    def theirs(prim):
        raise AssertionError
    registry["SoftMarginLossGrad"] = theirs
    try:
        rules.register_derivative("SoftMarginLossGrad", lambda prim: None, "ours")
        assert registry["SoftMarginLossGrad"] is theirs
    finally:
        del registry["SoftMarginLossGrad"]


def test_a_rule_registered_after_ours_survives_uninstall():
    registry = _compat.derivative_registry()

    def theirs(prim):
        raise AssertionError
    mine, registry["GeLUGrad"] = registry["GeLUGrad"], theirs
    try:
        rules.uninstall()
        assert registry["GeLUGrad"] is theirs
    finally:
        del registry["GeLUGrad"]
        rules.install()
    assert registry["GeLUGrad"] is mine


def test_register_derivative_and_status():
    def getter(prim):
        raise AssertionError
    rules.register_derivative("NoSuchPrimitiveGrad", getter, "for a test")
    try:
        (line,) = [line for line in rules.status() if line.primitive == "NoSuchPrimitiveGrad"]
        assert (line.kind, line.active, line.replaces, line.why) == ("derivative", "ours", False, "for a test")
    finally:
        rules.uninstall()
        rules.install()
    assert "NoSuchPrimitiveGrad" not in _snapshot()


def test_the_rules_are_in_force_here():
    assert rules.in_force()


LATE = """
import warnings
import numpy as np
from mindspore import Tensor, jit, nn, ops
def f(x): return (x * x).sum()
def g(x): return ops.GradOperation()(f)(x)
jit(g)(Tensor(np.ones(3, np.float32)))
import mindspore_hessian
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert not mindspore_hessian.rules.in_force()
    assert not mindspore_hessian.rules.in_force()
names = [warning.category.__name__ for warning in caught]
assert names.count("LateRulesWarning") == 1, names
x = Tensor(np.ones((2, 3), np.float32))
assert np.allclose(mindspore_hessian.hvp(lambda x: (x ** 3).sum(), x, x).asnumpy(), 6)
labels = Tensor(np.eye(3, dtype=np.float32)[:2])
for name, wrong in (("SoftmaxCrossEntropyWithLogits", lambda x: nn.SoftmaxCrossEntropyWithLogits()(x, labels).sum()),
                    ("SeLU", lambda x: ops.selu(x).sum()), ("PadV3", lambda x: (ops.pad(x, (1, 2)) ** 2).sum())):
    for transform in (lambda f: mindspore_hessian.hvp(f, x, x), lambda f: mindspore_hessian.hessian(f)(x)):
        try:
            result = transform(wrong)
        except mindspore_hessian.UnsafeRuntimeError as err:
            assert name in str(err), err
        else:
            raise AssertionError(f"{name} was not refused: {result}")
"""


def test_rules_that_come_too_late_warn(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(rules.__file__).parents[2])}
    env.pop("MS_DEV_USE_PY_BPROP", None)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
