"""The checks pass what is right, name what is wrong, and leave the weights as they were."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from networks import load
from scenarios import BY_NAME, cast

from mindspore_hessian import _compat
from mindspore_hessian.core.program import Program
from mindspore_hessian.testing import check, check_hessian, check_hvp

HVP_NAMES = [
    "cubic",
    "tanh",
    "piecewise",
    "branch",
    "linear",
    "quartic_of_scalar",
    "rosenbrock",
    "log_sum_exp",
    "scalars",
    "labelled_regression",
    "mlp_weights",
    "conv2d",
]
ALL_MODES = {"cubic", "branch", "mlp_weights"}  # a forward mode costs two compilations more
X = ms.Tensor([0.75, -1.5, 2.0], ms.float64)
X32 = X.astype(ms.float32)


def tensors(name, dtype="float64"):
    return tuple(ms.Tensor(array) for array in cast(BY_NAME[name].example(), dtype))


# --- what is right passes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", HVP_NAMES)
def test_a_right_product_passes(name):
    scenario = BY_NAME[name]
    modes = ("auto", "revrev", "fwdrev") if name in ALL_MODES else ("auto", "revrev")
    report = check_hvp(
        scenario.fn,
        tensors(name, scenario.dtypes[-1]),
        grad_position=scenario.positions,
        modes=modes,
    )
    assert report.ok
    assert report.dtype.lower() == scenario.dtypes[-1]
    assert report.order > 2.7


@pytest.mark.parametrize(
    ("name", "modes"),
    [("cubic", ("auto", "fwdrev", "revrev")), ("coupled", ("auto",)), ("forecast", ("auto",))],
)
def test_a_right_hessian_passes(name, modes):
    scenario = BY_NAME[name]
    report = check_hessian(scenario.fn, tensors(name), scenario.positions, modes=modes)
    assert report.ok
    assert report.modes == modes


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mlp", "float64"),
        ("attention", "float64"),
        ("conv", "float32"),
        ("layernorm", "float32"),
        ("batchnorm", "float32"),
    ],
)
def test_a_network_passes_and_keeps_its_weights(name, dtype):
    net, loss, inputs, _ = load(name, dtype)
    before = snapshot(net)
    report = check_hvp(loss, inputs, weights=net.trainable_params(), modes=("auto",))
    assert report.ok
    assert report.dtype.lower() == dtype
    assert bool(report.notes) == (dtype == "float32")
    assert snapshot(net) == before


@pytest.mark.full_run
def test_weights_and_inputs_together():
    net, loss, inputs, _ = load("mlp", "float64")
    assert check_hessian(loss, inputs, 0, weights=[net.out.bias], modes=("auto",)).ok


@pytest.mark.full_run
def test_several_outputs():
    def both(x):
        return ops.sin(x), (x * x * x).sum()

    assert check_hessian(both, X, modes=("auto",)).ok


def test_a_function_that_rounds_to_float32_inside():
    def f(x):
        return ops.sin(x.astype(ms.float32)).sum()

    assert check_hvp(f, X, modes="auto").ok


def test_the_users_direction_is_tested():
    """Wrong along one direction only."""

    class Wrong(nn.Cell):
        def construct(self, x):
            return (x * x).sum()

        def bprop(self, x, out, dout):
            return (dout * 2 * ops.cat((x[:2], ops.stop_gradient(x[2:]))),)

    report = check_hvp(
        Wrong(), X, ms.Tensor([0.0, 0.0, 1e-20], ms.float64), modes="auto", raise_exception=False
    )
    assert report["differences"].error > 1
    assert "argument 0[2]" in report["differences"].detail


# --- what is wrong fails --------------------------------------------------------------------------


class WrongGradient(nn.Cell):
    """The gradient of x² is 2x, not 3x."""

    def construct(self, x):
        return (x * x).sum()

    def bprop(self, x, out, dout):
        return (dout * 3 * x,)


class WrongHessian(nn.Cell):
    """A right gradient whose derivative is dropped."""

    def construct(self, x):
        return (x * x * x).sum()

    def bprop(self, x, out, dout):
        return (dout * 3 * ops.stop_gradient(x) * x,)


class NotSymmetric(nn.Cell):
    """The gradient of x·Ax / 2 is (A + Aᵀ)x / 2, not Ax."""

    def construct(self, x):
        return 0.5 * (x * (x + 2 * ops.cat((x[1:], x[:1])))).sum()

    def bprop(self, x, out, dout):
        return (dout * (x + 2 * ops.cat((x[1:], x[:1]))),)


def dropout(x):
    return (DROPOUT(x) ** 3).sum()


DROPOUT = nn.Dropout(p=0.5).set_train(True)


def magnitude(x):
    return ops.abs(x).sum()


def logarithm(x):
    return ops.log(x).sum()


def jump(x):
    return ops.where(x > 0, x * x + 1, x * x).sum()


ZEROS = ms.Tensor(np.zeros(3))
WRONG = [
    (WrongGradient(), X, "taylor", "first derivative"),
    (WrongHessian(), X, "differences", "second derivative"),
    (NotSymmetric(), X, "symmetry", "not the gradient of any function"),
    (dropout, X, "repeatable", "set_train(False)"),
    (magnitude, ZEROS, "differences", "kink"),
    (jump, ZEROS, "taylor", "kink"),
    (logarithm, ZEROS, "finite", "log of 0"),
]


@pytest.mark.parametrize(
    ("fn", "x", "name", "cause"), WRONG, ids=[row[2] + str(i) for i, row in enumerate(WRONG)]
)
def test_what_is_wrong_is_named(fn, x, name, cause):
    function = getattr(fn, "__name__", type(fn).__name__)
    with pytest.raises(AssertionError, match=f"the check '{name}' of {function}") as failed:
        check_hvp(fn, x, modes="auto")
    message, _ = str(failed.value).split("\n", 1)
    assert cause in message


def test_a_matrix_that_is_not_symmetric():
    report = check_hessian(NotSymmetric(), X, modes="auto", raise_exception=False)
    assert not report["symmetry"].ok
    assert "H and its transpose: 2 and 0" in report["symmetry"].detail


def test_a_wrong_gradient_is_found_in_float32():
    weight = ms.Parameter(np.ones(3, np.float32), name="w")
    wrong = WrongGradient()

    def f(x):
        return wrong(x * weight)

    report = check_hvp(f, X32, modes="auto", raise_exception=False)
    assert report.dtype == "Float32"
    assert not report["taylor"].ok


def test_the_order_tells_what_is_wrong():
    assert check_hvp(
        WrongGradient(), X, modes="auto", raise_exception=False
    ).order == pytest.approx(1, abs=0.05)
    assert check_hvp(WrongHessian(), X, modes="auto", raise_exception=False).order == pytest.approx(
        2, abs=0.05
    )


def test_a_kink_beside_the_point_does_no_harm():
    assert check_hvp(
        BY_NAME["relu_squared"].fn, ms.Tensor([1e-3, -1e-3, 1.0], ms.float64), modes="auto"
    ).ok


def test_modes_that_disagree(monkeypatch):
    true = check.hvp
    monkeypatch.setattr(
        check,
        "hvp",
        lambda *args, mode, **more: true(*args, **more) * (1.001 if mode == "revrev" else 1),
    )
    with pytest.raises(AssertionError, match="modes 'auto' and 'revrev'"):
        check_hvp(BY_NAME["cubic"].fn, X, modes=("auto", "revrev"))


@pytest.mark.parametrize("wrong", check.MODES[1:])
def test_all_modes_are_compared(monkeypatch, wrong):
    true = check.hessian
    monkeypatch.setattr(
        check,
        "hessian",
        lambda *args, mode, **more: (
            lambda x: true(*args, **more)(x) + (0.5 if mode == wrong else 0)
        ),
    )
    with pytest.raises(AssertionError, match=f"modes 'auto' and '{wrong}'"):
        check_hessian(BY_NAME["cubic"].fn, X)


def test_a_dtype_that_is_wrong(monkeypatch):
    true = check.hvp
    monkeypatch.setattr(
        check,
        "hvp",
        lambda fn, x, *args, **more: (
            true(fn, x, *args, **more) * (1.5 if x.dtype == ms.float32 else 1)
        ),
    )
    with pytest.raises(AssertionError, match="the check 'dtype'"):
        check_hvp(BY_NAME["cubic"].fn, X32, modes="auto")


def test_a_wrong_derivative_rule_is_found(tmp_path):
    script = tmp_path / "wrong_rule.py"
    script.write_text(
        textwrap.dedent("""
        import mindspore as ms
        from mindspore import ops
        from mindspore_hessian import rules
        from mindspore_hessian.testing import check_hvp

        def getter(prim):
            def bprop(y, dy, out, dout):
                return -y * dy * dout, dout * (1 - y * y)  # -2 y dy dout is right
            return bprop

        def f(x):
            return ops.tanh(x).sum()

        rules.register_derivative("TanhGrad", getter, replaces=True)
        report = check_hvp(f, ms.Tensor([0.5, -1.0], ms.float64), raise_exception=False)
        print(*[check.name for check in report.checks if not check.ok], round(report.order))
        """)
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split()[-3:] == ["differences", "taylor", "2"], done.stdout


# --- weights are put back -------------------------------------------------------------------------


def snapshot(net):
    return [(p.data_ptr(), p.dtype, p.asnumpy().tobytes()) for p in net.get_parameters()]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_survive_an_error(monkeypatch, error):
    net, loss, inputs, _ = load("mlp", "float64")
    before, runs, true = snapshot(net), [], Program.run

    def run(self, *args):
        if self.name == "testing":
            runs.append(snapshot(net) != before)
            if len(runs) == 5:
                raise error
        return true(self, *args)

    monkeypatch.setattr(Program, "run", run)
    with pytest.raises(error):
        check_hvp(loss, inputs, weights=net.trainable_params(), modes="auto")
    assert runs == [False, True, True, True, True]
    assert snapshot(net) == before


def test_weights_survive_ctrl_c_while_they_are_put_back(monkeypatch):
    net, loss, inputs, _ = load("mlp", "float64")
    before, calls, true = snapshot(net), [], _compat.assign

    def assign(*args):
        calls.append(None)
        if len(calls) == 7:  # four weights out, two back
            raise KeyboardInterrupt
        true(*args)

    monkeypatch.setattr(_compat, "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        check_hvp(loss, inputs, weights=net.trainable_params(), modes="auto")
    assert snapshot(net) == before


# --- the report and the options -------------------------------------------------------------------


def test_the_report():
    report = check_hvp(BY_NAME["cubic"].fn, X32, modes="auto")
    assert [c.name for c in report.checks] == [
        "finite",
        "repeatable",
        "symmetry",
        "differences",
        "taylor",
        "dtype",
    ]
    assert (report.function, report.dtype, report.modes, report.notes) == (
        "cubic",
        "Float64",
        ("auto",),
        (),
    )
    assert round(report.order, 2) == 3
    assert report["taylor"].error <= report["taylor"].tolerance
    assert repr(report).startswith("HvpReport: cubic in Float64, modes auto: ok\n")
    assert len(repr(report).splitlines()) == 7
    with pytest.raises(KeyError, match="no check 'modes' was made; there are finite, "):
        report["modes"]
    with pytest.raises(FrozenInstanceError):
        report.order = 1.0


def test_a_refused_mode_is_a_note():
    report = check_hvp(BY_NAME["branch"].fn, tensors("branch"))
    assert report.modes == ("auto", "revrev")
    assert (
        "mode 'fwdrev' was refused: a forward derivative in MindSpore loses a term"
        in report.notes[0]
    )


def test_tolerances_can_be_set():
    report = check_hvp(WrongHessian(), X, modes="auto", rtol=2, order=1.9, raise_exception=False)
    assert report.ok


def test_a_half_precision_input_is_compared_in_float64():
    report = check_hvp(BY_NAME["cubic"].fn, X.astype(ms.float16), modes="auto")
    assert report.dtype == "Float64"
    assert "Float64 and Float16" in report["dtype"].detail


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"modes": "sideways"}, ValueError, "modes must be one of"),
        ({"modes": ()}, ValueError, "modes is empty"),
        ({"directions": 1}, ValueError, "directions must be at least 2, but got 1"),
        ({"rtol": -1}, ValueError, "rtol must be finite and at least 0, but got -1"),
        ({"step": 0}, ValueError, "step must be finite and greater than 0, but got 0"),
        ({"vectors": ZEROS}, ValueError, "vectors is zero"),
        ({"vectors": X[:2]}, ValueError, "must have its shape"),
        ({"grad_position": 3}, ValueError, "out of range"),
    ],
)
def test_wrong_options(options, error, words):
    with pytest.raises(error, match=words):
        check_hvp(BY_NAME["cubic"].fn, X, **options)


def test_the_users_errors_come_through():
    with pytest.raises(ValueError, match="must return one number"):
        check_hvp(BY_NAME["vector_sine"].fn, X)
