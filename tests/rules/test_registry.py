"""How our rules come into MindSpore's registries and out of them again."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from mindspore_hessian import _compat, rules


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
        assert (line.kind, line.active, line.replaces, line.why) == (
            "derivative",
            "ours",
            False,
            "for a test",
        )
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
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
