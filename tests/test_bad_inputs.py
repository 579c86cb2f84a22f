"""Each bad call of `bad_inputs` ends in one clear error of ours, and leaves everything as it
was.
"""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import bad_inputs
import mindspore as ms
import numpy as np
import pytest
from bad_inputs import NET, OTHER, SUBJECTS, Made, W, rows

import mindspore_hessian as mh
from mindspore_hessian import _compat, rules

PACKAGE = str(Path(mh.__file__).parent)
OURS = (mh.HessianError, ValueError, TypeError, NotImplementedError)
RAW = re.compile(
    r"\n|-{10}|C\+\+|ccsrc|function call stack|fake_bprop|not supported between instances"
)
PYTHONS_OWN = "got an unexpected keyword argument"  # what a signature says is clear, and names it
ROWS = {row.name: row for row in rows()}


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The graphs that were compiled meanwhile, also those that failed."""
    made = []

    class Counted(_compat.Graph):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(_compat, "Graph", Counted)
    return made


def state():
    """What a call that fails must not change."""
    parameters = [W, OTHER, *NET.get_parameters()]
    generator = np.random.get_state()
    return (
        [p.asnumpy().tobytes() for p in parameters],
        [p.requires_grad for p in parameters],
        [cell.training for _, cell in NET.cells_and_names()],
        ms.get_context("mode"),
        ms.get_rng_state().asnumpy().tobytes(),
        generator[1].tobytes(),
        generator[2],
    )


def raised_by_us(error):
    """Whether the error was raised on purpose, by a `raise` in the package."""
    tb = error.__traceback__
    while tb.tb_next is not None:
        tb = tb.tb_next
    file = tb.tb_frame.f_code.co_filename
    return file.startswith(PACKAGE) and linecache.getline(file, tb.tb_lineno).lstrip().startswith(
        "raise "
    )


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # of NaN, and of what is compiled again and again
@pytest.mark.parametrize("name", ROWS)
def test_a_bad_input_is_refused_in_one_paragraph_that_names_it(name, compiled):
    row = ROWS[name]
    arguments = {
        key: value.make() if isinstance(value, Made) else value
        for key, value in row.arguments.items()
    }
    compiled.clear()  # what was made just now
    before, misses = state(), mh.cache_info().misses
    with pytest.raises(OURS) as caught:
        row.call(**arguments)
    text = str(caught.value)
    assert re.search(row.says, text), f"the message does not say {row.says!r}: {text}"
    assert len(text) < 700 and not RAW.search(text), text
    assert raised_by_us(caught.value) or PYTHONS_OWN in text, f"the raw text of another: {text}"
    assert row.compiles or not compiled, "it compiled before it looked"
    assert mh.cache_info().misses == misses or row.compiles
    assert state() == before


GOOD = {name: (call, good) for name, (call, good, _) in SUBJECTS.items()}


def test_the_good_calls_of_the_table_are_good():
    """So that a row fails by its bad argument alone. (Those without an argument to leave out are
    bad by themselves.)
    """
    for name in (
        "hvp",
        "curvature",
        "ggnvp",
        "hessian",
        "laplacian",
        "batched_hessian",
        "HessianOperator",
        "trace",
        "solve",
        "eigsh",
        "layer_report",
        "diagnose",
        "CurvatureMonitor",
        "audit",
    ):
        call, good = GOOD[name]
        call(
            **{
                key: value.make() if isinstance(value, Made) else value
                for key, value in good.items()
            }
        )


def test_the_table_covers_every_public_function():
    """Classes of results and errors are not called by users."""
    called = {name.split(",")[0].split(" ")[0] for name in SUBJECTS}
    without = {
        "cache_info",
        "clear_cache",
        "available_devices",
        "device_info",
        "Operator",
        "Identity",
    }  # no arguments
    wanted = {
        name
        for name in mh.__all__
        if callable(getattr(mh, name))
        and not (
            isinstance(getattr(mh, name), type)
            and (
                issubclass(getattr(mh, name), BaseException | tuple)
                or hasattr(getattr(mh, name), "__dataclass_fields__")
            )
        )
    }
    assert wanted - called - without == set()
    assert {
        f"optim.{name}"
        for name in mh.optim.__all__
        if not hasattr(getattr(mh.optim, name), "__dataclass_fields__")
    } - called == set()


def test_no_bad_rule_was_registered():
    assert not [row for row in rules.status() if row.primitive == "NoSuchPrimitive"]
    assert len(ROWS) > 2500 and bad_inputs.__doc__


def test_an_error_of_ours_is_not_its_own_cause():
    """A ring of causes is gone through without end (by us, and by whoever prints it)."""

    def f(x):
        if x.sum() > 0:
            return (x**3).sum()
        return (x**2).sum()

    with pytest.raises(mh.MissingRuleError, match="loses a term") as caught:
        mh.hvp(f, bad_inputs.X, bad_inputs.V, mode="fwdrev")
    assert caught.value.__cause__ is not caught.value
