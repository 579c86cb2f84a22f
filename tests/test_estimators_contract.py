"""What all estimators keep: checkpoints, refusals, counts, seeds, progress, and operators of many
kinds.
"""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator
from spectra import Counting, cosine, dense

import mindspore_hessian.estimators as estimators
from mindspore_hessian.estimators import (
    condition_number,
    diagonal,
    eigsh,
    frobenius_norm,
    layer_report,
    logdet,
    negative_curvature,
    solve,
    spectral_density,
    trace,
)
from mindspore_hessian.linops import BlockDiagonal

N = 150
B = np.random.default_rng(5).standard_normal(N)
INDEFINITE = dense(np.r_[np.linspace(-3, -1, 50), np.linspace(0.01, 2, 96), [4, 5, 6, 7]])
POSITIVE = dense(np.geomspace(1e-3, 10, N))

CALLS = {
    "eigsh": (INDEFINITE, lambda op, **more: eigsh(op, 3, max_products=100, **more)),
    "eigsh to the end": (INDEFINITE, lambda op, **more: eigsh(op, 2, "BE", tol=1e-9, **more)),
    "negative_curvature": (INDEFINITE, lambda op, **more: negative_curvature(op, tol=1e-9, **more)),
    "condition_number": (INDEFINITE, condition_number),
    "condition_number, definite": (POSITIVE, condition_number),
    "hutchinson": (INDEFINITE, lambda op, **more: trace(op, max_products=60, **more)),
    "hutchinson to tol": (
        POSITIVE,
        lambda op, **more: trace(op, tol=0.1, max_products=2000, **more),
    ),
    "hutch++": (INDEFINITE, lambda op, **more: trace(op, "hutch++", max_products=70, **more)),
    "xtrace": (INDEFINITE, lambda op, **more: trace(op, "xtrace", max_products=70, **more)),
    "xtrace, sphere": (
        INDEFINITE,
        lambda op, **more: trace(op, "xtrace", distribution="sphere", **more),
    ),
    "diagonal": (INDEFINITE, lambda op, **more: diagonal(op, max_products=60, **more)),
    "xdiag": (INDEFINITE, lambda op, **more: diagonal(op, "xdiag", max_products=70, **more)),
    "exact diagonal": (INDEFINITE, lambda op, **more: diagonal(op, "exact", **more)),
    "frobenius_norm": (INDEFINITE, lambda op, **more: frobenius_norm(op, max_products=60, **more)),
    "logdet": (
        POSITIVE,
        lambda op, **more: logdet(op, num_steps=12, max_products=240, batch=3, **more),
    ),
    "spectral_density": (
        INDEFINITE,
        lambda op, **more: spectral_density(op, 20, 12, batch=3, **more),
    ),
    "cg": (POSITIVE, lambda op, **more: solve(op, B, tol=1e-9, **more)),
    "cg of three": (
        POSITIVE,
        lambda op, **more: solve(op, np.c_[B, 2 * B, B[::-1]], tol=1e-9, max_products=3000, **more),
    ),
    "minres": (INDEFINITE, lambda op, **more: solve(op, B, method="minres", tol=1e-9, **more)),
    "neumann": (
        POSITIVE,
        lambda op, **more: solve(op, B, method="neumann", max_products=150, **more),
    ),
}
ONE_SHOT = {
    "lsmr": (INDEFINITE, lambda op, **more: solve(op, B, method="lsmr", **more)),
}


def numbers(result):
    """All that a result holds, but for the time."""
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    return {name: value for name, value in fields.items() if name != "seconds"}


def assert_identical(one, two):
    for (name, first), (_, second) in zip(numbers(one).items(), numbers(two).items(), strict=True):
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype and np.array_equal(first, second), name
        else:
            assert first == second, name


@pytest.mark.parametrize("after", [1, 9, 25, 47, 90, 149])
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupted_run_goes_on_to_the_same_bits(name, after, tmp_path):
    matrix, call = CALLS[name]
    whole = call(matrix, progress=False)
    file = tmp_path / "state.npz"
    try:
        call(Counting(matrix, after, KeyboardInterrupt()), progress=False, checkpoint=str(file))
        assert whole.num_products <= after
    except KeyboardInterrupt:
        assert whole.num_products > after
    assert {path.name for path in tmp_path.iterdir()} <= {"state.npz"}
    second = Counting(matrix)
    assert_identical(whole, call(second, progress=False, checkpoint=file))
    if file.exists() and after >= 90 and name != "eigsh to the end":
        assert second.columns < whole.num_products
    assert_identical(whole, call(matrix, progress=False, checkpoint=file))  # of a finished run


def test_the_last_checkpoint_survives_an_interrupt(tmp_path):
    file = tmp_path / "state.npz"
    contents = []

    class Watching(Counting):
        def __matmul__(self, x):
            contents.append(file.read_bytes() if file.exists() else b"")
            return super().__matmul__(x)

    with pytest.raises(KeyboardInterrupt):
        trace(Watching(INDEFINITE, 30, KeyboardInterrupt()), checkpoint=file, progress=False)
    assert file.read_bytes() == contents[-1] != b""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed=0 there and 1 here"),
        ({"max_products": 99}, "max_products=40 there and 99 here"),
        ({"method": "xtrace"}, "method='hutchinson' there and 'xtrace' here"),
        ({"tol": 0.1}, "tol=None there and 0.1 here"),
        ({"batch": 4}, "batch=8 there and 4 here"),
        ({"op": np.eye(N + 1)}, f"n={N} there and {N + 1} here"),
        ({"op": INDEFINITE.astype(np.float32)}, "dtype='float64' there and 'float32' here"),
        ({"op": INDEFINITE * 1.001}, "another operator"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(change, named, tmp_path):
    file = tmp_path / "state.npz"
    arguments = {"op": INDEFINITE, "max_products": 40, "progress": False, "checkpoint": file}
    trace(**arguments)
    with pytest.raises(ValueError, match=named):
        trace(**{**arguments, **change})


def test_other_refused_checkpoints(tmp_path):
    file = tmp_path / "state.npz"
    eigsh(INDEFINITE, 2, v0=B, checkpoint=file, progress=False)
    for call in (
        lambda: eigsh(INDEFINITE, 2, v0=-B, checkpoint=file),
        lambda: eigsh(INDEFINITE, 3, checkpoint=file),
        lambda: trace(INDEFINITE, checkpoint=file),
    ):
        with pytest.raises(ValueError, match="was made with other arguments"):
            call()
    for contents in (b"", b"no archive", file.read_bytes()[:200]):
        file.write_bytes(contents)
        with pytest.raises(ValueError, match="is no checkpoint"):
            trace(INDEFINITE, checkpoint=file, progress=False)


@pytest.mark.parametrize("name", [*CALLS, *ONE_SHOT])
def test_not_a_number_is_refused_with_the_count(name):
    matrix, call = {**CALLS, **ONE_SHOT}[name]
    op = Counting(matrix, 10)
    with pytest.raises(ValueError, match="op returned NaN or Inf, seen after ") as caught:
        call(op, progress=False)
    assert f"after {op.columns} products" in str(caught.value)


@pytest.mark.parametrize("name", [*CALLS, *ONE_SHOT])
def test_counts_seeds_and_kinds_of_operators(name, capfd):
    matrix, call = {**CALLS, **ONE_SHOT}[name]
    before = np.random.get_state()[1].copy()
    counting = Counting(matrix)
    result = call(counting, progress=False)
    assert result.num_products == counting.columns and result.seconds > 0
    assert (np.random.get_state()[1] == before).all()
    assert_identical(result, call(matrix, progress=False))
    assert capfd.readouterr() == ("", "")
    for other in (aslinearoperator(matrix), Counting(matrix, vectors_only=True)):
        other = call(other, progress=None)
        found = numbers(other)
        for key in ("value", "eigenvalues", "density", "standard_error"):
            if key in found:
                np.testing.assert_allclose(found[key], numbers(result)[key], rtol=1e-4, atol=1e-8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seconds = 0


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (None, False), (False, False)])
def test_progress(progress, shown, capfd):
    trace(INDEFINITE, progress=progress)
    out, err = capfd.readouterr()
    assert out == "" and ("trace: 100%" in err) == shown


def test_another_seed_gives_another_estimate():
    assert len({trace(INDEFINITE, seed=seed, progress=False).value for seed in range(5)}) == 5


GOOD = np.eye(4)
REFUSED = [
    (lambda: eigsh(3.0), TypeError, r"op must have .shape and `@`.*float"),
    (lambda: trace(np.ones((2, 3))), ValueError, r"op must be square.*\(2, 3\)"),
    (lambda: trace(np.ones(3)), ValueError, r"op must be square.*\(3,\)"),
    (lambda: trace(np.eye(3, dtype=complex)), TypeError, "op must be real.*complex128"),
    (
        lambda: trace(type("Op", (Counting,), {"dtype": "Float32"})(GOOD)),
        TypeError,
        "op.dtype must be a numpy dtype",
    ),
    (lambda: eigsh(GOOD, 0), ValueError, "k must be from 1 to 4.*got 0"),
    (lambda: eigsh(GOOD, 5), ValueError, "k must be from 1 to 4.*got 5"),
    (lambda: eigsh(GOOD, 1.5), TypeError, "k must be an int.*1.5"),
    (lambda: eigsh(GOOD, True), TypeError, "k must be an int.*True"),
    (lambda: eigsh(GOOD, 2, "XX"), ValueError, "which must be one of 'LA'.*'XX'"),
    (lambda: eigsh(GOOD, 2, tol=0), ValueError, "tol must be finite and greater than 0, but got 0"),
    (lambda: eigsh(GOOD, 2, tol=np.nan), ValueError, "tol must be finite.*nan"),
    (lambda: eigsh(GOOD, 2, tol="1"), TypeError, "tol must be a number.*'1'"),
    (lambda: eigsh(GOOD, 2, ncv=3), ValueError, r"ncv must be at least 4 \(k \+ 2\), but got 3"),
    (lambda: eigsh(GOOD, 2, max_products=3), ValueError, "max_products must be at least 4.*got 3"),
    (lambda: eigsh(GOOD, 2, v0=np.ones(3)), ValueError, r"v0 must be .*\(4,\).*\(3,\)"),
    (lambda: eigsh(GOOD, 2, v0=np.zeros(4)), ValueError, "v0 is zero"),
    (lambda: eigsh(GOOD, 2, v0=[1, 2, np.inf, 3]), ValueError, "v0 must be finite"),
    (lambda: eigsh(GOOD, 2, seed=-1), ValueError, "seed must be at least 0, but got -1"),
    (lambda: eigsh(GOOD, 2, seed=None), TypeError, "seed must be an int.*None"),
    (lambda: trace(GOOD, "magic"), ValueError, "method must be one of 'hutchinson'.*'magic'"),
    (
        lambda: trace(GOOD, max_products=1),
        ValueError,
        "max_products must be at least 2 for method 'hutchinson'",
    ),
    (
        lambda: trace(GOOD, "hutch++", max_products=5),
        ValueError,
        "max_products must be at least 6.*got 5",
    ),
    (lambda: trace(GOOD, batch=0), ValueError, "batch must be at least 1, but got 0"),
    (
        lambda: trace(GOOD, distribution="cauchy"),
        ValueError,
        "distribution must be one of.*'cauchy'",
    ),
    (lambda: trace(GOOD, tol=-1), ValueError, "tol must be finite and at least 0, but got -1"),
    (lambda: trace(GOOD, progress="yes"), TypeError, "progress must be True, False or None.*'yes'"),
    (
        lambda: diagonal(GOOD, "exact", max_products=3),
        ValueError,
        "max_products must be at least 4 for method 'exact'",
    ),
    (
        lambda: diagonal(GOOD, "xdiag", distribution="normal"),
        ValueError,
        "distribution must be 'rademacher'",
    ),
    (lambda: frobenius_norm(GOOD, max_products=0), ValueError, "max_products must be at least 2"),
    (
        lambda: logdet(GOOD, damping=-1.0),
        ValueError,
        "damping must be finite and at least 0, but got -1",
    ),
    (lambda: logdet(GOOD, max_products=7), ValueError, "max_products must be at least 8"),
    (lambda: spectral_density(GOOD, num_probes=1), ValueError, "num_probes must be at least 2"),
    (
        lambda: spectral_density(GOOD, scale="cubic"),
        ValueError,
        "scale must be one of 'linear', 'log'",
    ),
    (lambda: spectral_density(GOOD, kernel="box"), ValueError, "kernel must be one of"),
    (
        lambda: spectral_density(GOOD, sigma=0.0),
        ValueError,
        "sigma must be finite and greater than 0",
    ),
    (
        lambda: spectral_density(GOOD, grid=[1.0, 1.0]),
        ValueError,
        "grid must be one row of at least two",
    ),
    (
        lambda: spectral_density(GOOD, grid=[-1.0, 1.0], scale="log"),
        ValueError,
        "grid must be positive",
    ),
    (
        lambda: spectral_density(np.zeros((3, 3)), scale="log", progress=False),
        ValueError,
        "scale='log' needs",
    ),
    (
        lambda: condition_number(GOOD, max_products=9),
        ValueError,
        "max_products must be at least 10",
    ),
    (lambda: solve(GOOD, np.ones(3)), ValueError, r"b must be a flat array of shape \(4,\)"),
    (lambda: solve(GOOD, np.ones(4), method="lu"), ValueError, "method must be one of 'cg'.*'lu'"),
    (lambda: solve(GOOD, np.ones(4), np.nan), ValueError, "damping must be finite"),
    (
        lambda: solve(GOOD, np.ones(4), learning_rate=1.0),
        ValueError,
        "learning_rate is for method 'neumann'",
    ),
    (
        lambda: solve(GOOD, np.ones(4), method="lsmr", checkpoint="x"),
        ValueError,
        "checkpoint is not for method 'lsmr'",
    ),
    (lambda: layer_report(GOOD), TypeError, "op must have .layers"),
]


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED, ids=range(len(REFUSED)))
def test_wrong_arguments_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


class Layered(Counting):
    def __init__(self, matrix, layers, limit=None, error=None):
        super().__init__(matrix, limit, error)
        self.layers = layers


LAYERS = {"conv": np.arange(60), "dense.bias": np.array([60]), "dense": np.arange(61, N)[::-1]}


def test_layer_report():
    op = Layered(INDEFINITE, LAYERS)
    found = layer_report(op, num_probes=200, tol=1e-8, progress=False)
    assert found.num_products == op.columns and found.stopped_by == "tol"
    whole = 0.0
    for row, (name, index) in zip(found.rows, LAYERS.items(), strict=True):
        block = INDEFINITE[np.ix_(index, index)]
        assert (row.name, row.parameters) == (name, len(index)) and row.top_converged
        assert row.top_eigenvalue == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-8)
        assert abs(row.trace - np.trace(block)) <= 4 * row.trace_error
        assert row.mean_diagonal == pytest.approx(row.trace / len(index))
        whole += row.trace
    assert sum(row.share for row in found.rows) == pytest.approx(1)
    assert whole == pytest.approx(trace(INDEFINITE, max_products=200, progress=False).value)
    lines = str(found).splitlines()
    assert len(lines) == 4 and len(set(map(len, lines))) == 1 and lines[2].startswith("dense.bias")


def test_the_table_names_the_class_of_a_layer_and_the_row_keeps_its_name():
    op = Layered(INDEFINITE, LAYERS)
    op.layer_classes = {"conv": "Conv2d", "dense": "Dense"}
    found = layer_report(op, progress=False)
    assert [row.name for row in found.rows] == list(LAYERS)
    assert [row.label for row in found.rows] == ["conv (Conv2d)", "dense.bias", "dense (Dense)"]
    lines = str(found).splitlines()
    assert lines[0].split()[0] == "name" and "layer_class" not in lines[0]
    assert [line.split("  ")[0].strip() for line in lines[1:]] == [row.label for row in found.rows]
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [row["layer_class"] for row in rows] == ["Conv2d", "", "Dense"] and rows[0][
        "name"
    ] == "conv"


def test_layer_report_as_csv_and_pandas(tmp_path, monkeypatch):
    found = layer_report(Layered(INDEFINITE, LAYERS), progress=False)
    text = found.to_csv(tmp_path / "layers.csv")
    assert (tmp_path / "layers.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == list(LAYERS) and float(rows[1]["trace"]) == found.rows[
        1
    ].trace
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_pandas()


EFFECTIVE = POSITIVE @ np.linalg.inv(POSITIVE + 0.5 * np.eye(N))


def test_effective_dimensions_are_parts_of_that_of_the_whole():
    op = Layered(POSITIVE, LAYERS)
    found = layer_report(op, num_probes=400, batch=100, progress=False, damping=0.5)
    assert found.num_products == op.columns and found.seconds > 0
    for row, index in zip(found.rows, LAYERS.values(), strict=True):
        assert (
            abs(row.effective_dimension - EFFECTIVE.diagonal()[index].sum())
            <= 4 * row.effective_error + 1e-6
        )
    assert "effective_dimension" in str(found) and "effective_error" in found.to_csv()
    assert "effective" not in str(layer_report(op, num_probes=2, progress=False))


def test_effective_dimensions_of_structure_are_exact():
    class Blocks(BlockDiagonal):
        layers = LAYERS

    op = Blocks([POSITIVE[np.ix_(index, index)] for index in LAYERS.values()], LAYERS.values())
    found = layer_report(op, progress=False, damping=0.5)
    for row, index in zip(found.rows, LAYERS.values(), strict=True):
        values = np.linalg.eigvalsh(POSITIVE[np.ix_(index, index)])
        assert (
            row.effective_dimension == pytest.approx((values / (values + 0.5)).sum())
            and row.effective_error == 0
        )


def test_there_is_no_effective_dimension_of_an_indefinite_matrix():
    with pytest.raises(
        ValueError,
        match="positive definite and its systems solved, but one stopped by negative curv",
    ):
        layer_report(Layered(INDEFINITE, LAYERS), progress=False, damping=0.1)


def test_an_interrupted_effective_dimension_goes_on(tmp_path):
    options = {"num_probes": 4, "batch": 2, "progress": False, "damping": 1e-3}
    op = Layered(POSITIVE, LAYERS)
    whole = layer_report(op, **options)
    with pytest.raises(KeyboardInterrupt):
        layer_report(
            Layered(POSITIVE, LAYERS, op.columns - 9, KeyboardInterrupt()),
            checkpoint=tmp_path / "a",
            **options,
        )
    assert_identical(
        whole, layer_report(Layered(POSITIVE, LAYERS), checkpoint=tmp_path / "a", **options)
    )


@pytest.mark.parametrize("after", [10, 40, 60])
def test_an_interrupted_layer_report_goes_on(after, tmp_path):
    whole = layer_report(Layered(INDEFINITE, LAYERS), progress=False)
    stopping = Layered(INDEFINITE, LAYERS, after, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        layer_report(stopping, progress=False, checkpoint=tmp_path / "a")
    assert_identical(
        whole, layer_report(Layered(INDEFINITE, LAYERS), progress=False, checkpoint=tmp_path / "a")
    )


@pytest.mark.parametrize(
    "layers", [{}, None, [1], {"a": [N]}, {"a": [-1]}, {"a": []}, {"a": [0.5]}, {"a": [[1]]}]
)
def test_wrong_layers_are_refused(layers):
    with pytest.raises((TypeError, ValueError), match="layers"):
        layer_report(Layered(INDEFINITE, layers), progress=False)


def test_float32_is_fed_float32():
    seen = set()

    class Single(Counting):
        dtype = np.dtype(np.float32)

        def __matmul__(self, x):
            seen.add((x.dtype, x.flags.c_contiguous))
            return super().__matmul__(x).astype(np.float32)

    for call in (trace, eigsh, diagonal, frobenius_norm, spectral_density, negative_curvature):
        call(Single(INDEFINITE), progress=False)
    layered = Single(INDEFINITE)
    layered.layers = LAYERS
    layer_report(layered, progress=False)
    assert seen == {(np.dtype(np.float32), True)}
    assert trace(cosine(np.arange(50.0), np.float32), progress=False).value == pytest.approx(
        1225, rel=0.1
    )


@pytest.mark.parametrize("name", estimators.__all__)
def test_public_functions_are_documented(name):
    thing = getattr(estimators, name)
    if inspect.isfunction(thing):
        for part in (
            "Args:",
            "Returns:",
            "Raises:",
            "Source:",
            "Examples:",
            "Supported Platforms:\n        ``Ascend`` ``GPU`` ``CPU``",
        ):
            assert part in thing.__doc__, part
        assert all(
            f"        {argument}: " in thing.__doc__
            for argument in inspect.signature(thing).parameters
        )


@pytest.mark.parametrize("shows", [True, False])
def test_an_operator_can_say_that_another_process_shows_the_bar(shows, capfd):
    class Ranked:
        shape, shows_progress = INDEFINITE.shape, shows

        def __matmul__(self, block):
            return INDEFINITE @ block

    trace(Ranked(), max_products=20, progress=True)
    assert ("trace" in capfd.readouterr().err) == shows
