"""What an estimator returns is short where it is printed, and can be kept."""

from __future__ import annotations

import numpy as np
import pytest

import mindspore_hessian as mh
from mindspore_hessian.estimators.report import LayerReport
from mindspore_hessian.estimators.results import Estimate, with_error

RNG = np.random.default_rng(0)
MATRIX = np.diag(np.arange(1.0, 41.0)) + 0.1 * np.ones((40, 40))


class Layered:
    shape = (40, 40)
    layers = {"first": np.arange(30), "<second>": np.arange(30, 40)}

    def __matmul__(self, x):
        return MATRIX @ x


RESULTS = {
    "trace": lambda: mh.trace(MATRIX, max_products=12),
    "diagonal": lambda: mh.diagonal(MATRIX, max_products=12),
    "eigsh": lambda: mh.eigsh(MATRIX, k=2),
    "density": lambda: mh.spectral_density(MATRIX, num_probes=2),
    "condition": lambda: mh.condition_number(MATRIX),
    "negative": lambda: mh.negative_curvature(MATRIX),
    "solve": lambda: mh.solve(MATRIX, np.ones(40)),
    "layers": lambda: mh.layer_report(Layered()),
    "layers with effective dimensions": lambda: mh.layer_report(Layered(), damping=0.1),
}


def same(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b)) and type(a) is type(b)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_from_its_file(name, tmp_path):
    result = RESULTS[name]()
    result.save(tmp_path / "result.npz")
    again = type(result).load(tmp_path / "result.npz")
    before, after = result.to_dict(), again.to_dict()
    assert before.keys() == after.keys()
    assert all(same(before[key], after[key]) for key in before), (before, after)
    assert str(again) == str(result)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_short_where_it_is_shown(name):
    shown = repr(RESULTS[name]())
    assert "\n" not in shown and len(shown) < 400
    assert type(RESULTS[name]()).__name__ in shown


def test_files_of_another_kind_are_refused(tmp_path):
    RESULTS["trace"]().save(tmp_path / "trace.npz")
    with pytest.raises(ValueError, match="holds no LayerReport"):
        LayerReport.load(tmp_path / "trace.npz")
    with pytest.raises(ValueError, match="is not there"):
        Estimate.load(tmp_path / "none.npz")
    with pytest.raises(TypeError, match="path must be a file name"):
        RESULTS["trace"]().save(None)
    with pytest.raises(ValueError, match="folder"):
        RESULTS["trace"]().save(tmp_path / "no" / "x.npz")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.6412, 0.0391, "12.64 ± 0.04"),
        (12.6412, 0.0141, "12.641 ± 0.014"),
        (1234.5, 25.0, "1234 ± 25"),
        (0.5, 0.0, "0.5"),
        (float("nan"), 1.0, "nan ± 1"),
        (3.2e-9, 1e-10, "3.2e-09 ± 1e-10"),
        (-2.0, 3.4, "-2 ± 3"),
    ],
)
def test_a_number_has_the_digits_that_its_error_leaves(value, error, text):
    assert with_error(value, error) == text


def test_an_estimate_says_what_it_cost():
    assert str(Estimate(12.6412, 0.0391, 96, 4.1, 0, "tol")) == "12.64 ± 0.04 (96 products)"
    assert "entries from" in str(RESULTS["diagonal"]())


def test_a_table_in_a_notebook_escapes_names():
    text = RESULTS["layers"]()._repr_html_()
    assert "&lt;second&gt;" in text and text.count("<tr>") == 3


def test_one_switch_for_all_bars(capfd, monkeypatch):
    def shown(progress):
        mh.trace(MATRIX, max_products=8, progress=progress)
        return "trace" in capfd.readouterr().err

    try:
        assert shown(True) and not shown(None)
        mh.set_progress(False)
        assert not shown(True)
        mh.set_progress(True)
        assert shown(None) and not shown(False)
        monkeypatch.setenv("TQDM_DISABLE", "1")
        assert not shown(None)
    finally:
        mh.set_progress(None)
    with pytest.raises(TypeError, match="progress must be"):
        mh.set_progress("yes")
