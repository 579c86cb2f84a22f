"""Data that cannot be gone through twice alike are refused by name; outputs, numbers, vectors and
matrices as given.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import scipy.sparse as sp
from mindspore import Tensor, nn

import mindspore_hessian as mh
from mindspore_hessian import GGNOperator, HessianOperator, NotDeterministicError
from mindspore_hessian.operators import data as data_module
from mindspore_hessian.tools.diagnose import diagnose

RNG = np.random.default_rng(2)
X, Y = (
    RNG.standard_normal((6, 3)).astype(np.float32),
    RNG.standard_normal((6, 1)).astype(np.float32),
)
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]
H = 2 / 6 * X.T @ X
SUM = nn.MSELoss(reduction="sum")


def linear():
    return nn.Dense(3, 1, has_bias=False)


NET = linear()  # one for all, so that it is compiled once


def quick(data, loss=SUM, kind=HessianOperator, net=None, **options):
    return kind(net or NET, loss, data, check_deterministic=False, progress=False, **options)


def close(got, want, tolerance=1e-5):
    assert np.abs(np.asarray(got) - want).max() <= tolerance * np.abs(want).max()


# --- passes ---------------------------------------------------------------------------------------


class Counted:
    """What GeneratorDataset reads, and how often."""

    def __init__(self):
        self.reads = 0

    def __getitem__(self, number):
        self.reads += 1
        return X[number], Y[number]

    def __len__(self):
        return len(X)


def counted():
    source = Counted()
    return source, ms.dataset.GeneratorDataset(
        source, ["x", "y"], shuffle=False, num_parallel_workers=1
    ).batch(2)


@pytest.mark.parametrize("checked", [True, False])
def test_the_batches_of_a_pipeline_are_kept(checked):
    source, data = counted()
    op = HessianOperator(NET, SUM, data, check_deterministic=checked, progress=False)
    for _ in range(2):
        close(op @ np.eye(3), 3 * 2 * H)
    reads = source.reads
    close(op @ np.eye(3), 3 * 2 * H)
    close(op.gradient_and_loss()[1], ((X @ NET.weight.asnumpy().T - Y) ** 2).sum())
    plan = op.plan()
    assert source.reads == reads
    assert plan.data_bytes == X.nbytes + Y.nbytes
    assert "MiB of data kept" in str(plan)


@pytest.mark.parametrize("free", [10**9, 4 * (X.nbytes + Y.nbytes) - 4])
def test_batches_are_not_kept_where_that_is_not_wanted_or_too_much(free, monkeypatch):
    monkeypatch.setattr("mindspore_hessian.operators.curvature.memory_available", lambda: free)
    source, data = counted()
    op = quick(data, keep_data=free < 10**9)
    for _ in range(2):
        op @ np.ones(3)  # noqa: B018
    reads = source.reads
    close(op @ np.eye(3), 3 * 2 * H)
    assert source.reads == reads + len(X)
    assert op.plan().data_bytes == 0


def test_a_list_is_read_at_every_product():
    data = [(X[:4].copy(), Y[:4].copy())]
    op = quick(data)
    op @ np.ones(3)  # noqa: B018
    data[0][0][...] *= 2
    close(op @ np.eye(3), 4 * 2 * X[:4].T @ X[:4])


class Shared:
    """One iterator for all passes."""

    def __init__(self):
        self.rows = iter(BATCHES)

    def __iter__(self):
        return self.rows

    def __len__(self):
        return 2


class Hidden(Shared):
    """The same, behind a generator."""

    def __iter__(self):
        yield from self.rows


class Passes:
    """Pass k gives the k-th list of batches; the last one for ever."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __iter__(self):
        yield from self.passes.pop(0) if len(self.passes) > 1 else self.passes[0]


class Endless:
    def __iter__(self):
        while True:
            yield BATCHES[1]


class EndlessWithLength(Endless):
    def __len__(self):
        return 3


def pipeline():
    return ms.dataset.NumpySlicesDataset({"x": X, "y": Y}, shuffle=False).batch(2)


class UsedUp:
    """What GeneratorDataset reads once."""

    def __init__(self):
        self.rows = iter(zip(X, Y, strict=True))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rows)


REFUSED = {
    "generator": (
        lambda: (row for row in BATCHES),
        TypeError,
        r"iterator, which can be gone.*list\(data\)",
    ),
    "shared": (Shared, TypeError, r"iterator, which can be gone.*list\(data\)"),
    "dataset-iterator": (
        lambda: pipeline().create_tuple_iterator(),
        TypeError,
        "iterator, which can be gone",
    ),
    "hidden": (
        Hidden,
        NotDeterministicError,
        "first pass.*2 batches of 6 samples in all, and this one 0 batches of 0",
    ),
    "shrinks": (
        lambda: Passes(BATCHES, BATCHES[:1]),
        NotDeterministicError,
        "2 batches of 6.* 1 batch of 4 samples",
    ),
    "grows": (
        lambda: Passes(BATCHES[:1], BATCHES),
        NotDeterministicError,
        "1 batch of 4.*this one more than 1 batches",
    ),
    "other-sizes": (
        lambda: Passes(BATCHES[:1], BATCHES[1:]),
        NotDeterministicError,
        "1 batch of 4.*1 batch of 2 samples",
    ),
    "endless": (
        Endless,
        ValueError,
        "has given 50 batches and goes on.*endless.*__len__.*num_data=",
    ),
    "endless-with-length": (
        EndlessWithLength,
        ValueError,
        r"more batches than its len\(\), which is 3: is it endless",
    ),
    "endless-pipeline": (
        lambda: pipeline().repeat(-1),
        ValueError,
        "has given 50 batches and goes on",
    ),
    "used-up-pipeline": (
        lambda: ms.dataset.GeneratorDataset(UsedUp(), ["x", "y"], shuffle=False).batch(2),
        NotDeterministicError,
        "first pass.*3 batches of 6 samples in all, and this one 0 batches",
    ),
    "empty": (lambda: Passes([]), ValueError, "data has no batches"),
    "no-rows": (
        lambda: [BATCHES[0], (X[:0], Y[:0])],
        ValueError,
        r"batch 1 has no samples.*\(0, 3\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_gone_through_twice_alike(name, monkeypatch):
    make, error, message = REFUSED[name]
    monkeypatch.setattr(data_module, "MOST_BATCHES", 50)
    with pytest.raises(error, match=message):
        quick(make()) @ np.ones(3)


def test_num_data_of_at_least_the_number_of_batches_lifts_the_limit(monkeypatch):
    monkeypatch.setattr(data_module, "MOST_BATCHES", 1)
    with pytest.raises(ValueError, match="has given 1 batches"):
        quick(Passes(BATCHES))
    close(quick(Passes(BATCHES), nn.MSELoss(), num_data=6) @ np.ones(3), H @ np.ones(3))


def test_a_pass_that_fails_half_way_costs_that_product_only():
    class Fails:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield BATCHES[0]
            if self.passes == 3:
                raise OSError("disk")
            yield BATCHES[1]

    op, v = quick(Fails()), np.arange(3.0)
    close(op @ v, 6 * H @ v)
    with pytest.raises(OSError, match="disk"):
        op @ v
    close(op @ v, 6 * H @ v)


# --- outputs --------------------------------------------------------------------------------------


class Several(nn.Cell):
    """A network that returns more than one thing."""

    def __init__(self, form):
        super().__init__()
        self.dense, self.form = linear(), form

    def construct(self, x):
        out = self.dense(x)
        if self.form == "dict":
            return {"hidden": x, "out": out}
        return x, (out, x)


class WithLoss(nn.Cell):
    """It returns its loss and its output, as transformers do."""

    def __init__(self):
        super().__init__()
        self.dense = linear()

    def construct(self, x, y):
        out = self.dense(x)
        return ((out - y) ** 2).sum(), out


def nested(out):
    return out[1][0]


@pytest.mark.parametrize(
    ("form", "output"), [("dict", "out"), ("tuple", nested), ("tuple", lambda out: out[1][0])]
)
def test_the_output_that_is_named(form, output):
    net = Several(form)
    for kind in (HessianOperator, GGNOperator):
        close(quick(BATCHES[:1], kind=kind, net=net, output=output).to_dense(), 2 * X[:4].T @ X[:4])


@pytest.mark.parametrize("output", [0, np.int64(-2)])
def test_the_loss_among_what_the_network_returns(output):
    close(
        quick(BATCHES[:1], None, net=WithLoss(), output=output, reduction="sum").to_dense(),
        2 * X[:4].T @ X[:4],
    )


OUTPUTS = [
    (
        lambda: quick(BATCHES, net=Several("dict")) @ np.ones(3),
        TypeError,
        r"something else than one Tensor.*output=0",
    ),
    (
        lambda: quick(BATCHES, kind=GGNOperator, net=Several("tuple")) @ np.ones(3),
        TypeError,
        "something else than one",
    ),
    (
        lambda: quick(BATCHES, None, net=WithLoss(), reduction="sum") @ np.ones(3),
        TypeError,
        "something else than one",
    ),
    (
        lambda: quick(BATCHES, net=Several("tuple"), output=5) @ np.ones(3),
        ValueError,
        "output=5 is no part of what",
    ),
    (
        lambda: quick(BATCHES, net=Several("dict"), output="no") @ np.ones(3),
        ValueError,
        "output='no' is no part of",
    ),
    (lambda: quick(BATCHES, output=1.5), TypeError, "output must be an index.*but got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "message"), OUTPUTS, ids=range(len(OUTPUTS)))
def test_outputs_are_asked_for(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- numbers, vectors, weights --------------------------------------------------------------------


def test_a_list_of_numbers_is_a_vector_and_a_list_of_tensors_a_structure():
    op = quick(BATCHES)
    want = 6 * H @ [1.0, 2.0, 3.0]
    for flat in ([1.0, 2.0, 3.0], (1, 2, 3), list(np.arange(1.0, 4.0))):
        got = op @ flat
        assert isinstance(got, np.ndarray)
        close(got, want)
    (got,) = op @ [Tensor([[1.0, 2.0, 3.0]])]
    close(got.asnumpy()[0], want)
    assert (op @ np.zeros((3, 0))).shape == (3, 0)
    with pytest.raises(ValueError, match=r"shape \(3,\).*but got shape \(2,\)"):
        op @ [1.0, 2.0]


@pytest.mark.parametrize(
    "weights",
    [
        lambda net: (p for p in net.trainable_params()),
        lambda net: filter(None, ["*"]),
        lambda net: {p.name: p for p in net.trainable_params()}.values(),
    ],
)
def test_weights_from_a_generator(weights):
    close(quick(BATCHES, weights=weights(NET)) @ np.ones(3), 6 * H @ np.ones(3))


def test_numpy_integers_are_integers(tmp_path):
    n = np.int64
    op = quick(BATCHES, nn.MSELoss(), micro_batch=n(4), chunk_size=n(2), num_data=n(6))
    close(op.to_dense(), H)
    fisher = quick(
        BATCHES, kind=mh.FisherOperator, mc_samples=n(2), seed=n(1), likelihood="gaussian"
    )
    np.testing.assert_array_equal(
        fisher @ np.ones(3),
        quick(BATCHES, kind=mh.FisherOperator, mc_samples=2, seed=1, likelihood="gaussian")
        @ np.ones(3),
    )
    matrix = np.diag([3.0, 2.0, 1.0])
    file = tmp_path / "checkpoint"
    found = mh.eigsh(matrix, n(1), max_products=np.int32(9), seed=np.uint8(1), checkpoint=file)
    close(found.eigenvalues, [3.0])
    assert (
        mh.trace(
            matrix, max_products=n(4), batch=n(2), checkpoint=file.with_name("two")
        ).num_products
        == 4
    )
    x = Tensor([1.0, 2.0])
    close(mh.hessian(cubic, chunk_size=n(1))(x).asnumpy(), np.diag([6.0, 12.0]))
    close(mh.hvp(cubic, (x, x), Tensor([1.0, 1.0]), grad_position=n(1)).asnumpy(), [6.0, 12.0])
    size = mh.cache_info().maxsize
    mh.set_cache_size(n(size))
    for bad in (True, 1.0, np.float64(2.0), np.bool_(True)):
        with pytest.raises((TypeError, ValueError)):
            quick(BATCHES, chunk_size=bad)


def cubic(x, y=None):
    return (x**3).sum() + (0.0 if y is None else (y**3).sum())


# --- matrices -------------------------------------------------------------------------------------


class Foreign:
    """What another library's tensor is to numpy: it has a shape, a dtype of its own, `@` for its
    own kind, an array.
    """

    shape, dtype = (3, 3), "their.float32"

    def __matmul__(self, other):
        raise TypeError("only with my own kind")

    def __array__(self, dtype=None, copy=None):
        return np.asarray(MATRIX, dtype or np.float32)


MATRIX = [[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]]
MATRICES = {
    "matrix": np.matrix(MATRIX),
    "list": MATRIX,
    "integers": [[4, 1, 0], [1, 3, 0], [0, 0, 1]],
    "Tensor": Tensor(MATRIX),
    "foreign": Foreign(),
    "sparse": sp.csr_matrix(MATRIX),
    "sparse-array": sp.coo_array(MATRIX),
    "float32": np.float32(MATRIX),
    "bool": np.eye(3, dtype=bool),
}
ESTIMATORS = {
    "eigsh": lambda op: mh.eigsh(op, 1, "LA").eigenvalues,
    "trace": lambda op: mh.trace(op, max_products=3).value,
    "diagonal": lambda op: mh.diagonal(op, max_products=30).value,
    "solve": lambda op: mh.solve(op, np.ones(3)).x,
    "condition": lambda op: mh.condition_number(op).value,
    "diagnose": lambda op: diagnose(op, gradient=np.zeros(3)).sharpness,
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_is_a_matrix(name):
    matrix = MATRICES[name]
    dense = np.array(matrix.todense() if sp.issparse(matrix) else matrix, dtype=np.float64)
    for estimate in ESTIMATORS.values():
        close(estimate(matrix), estimate(dense), 1e-4)


@pytest.mark.parametrize(
    "bad", [[["a", "b"], ["c", "d"]], [[1.0], [1.0, 2.0]], [1.0, 2.0], np.matrix([[1.0, 2.0]])]
)
def test_what_is_no_square_matrix_is_refused(bad):
    with pytest.raises((TypeError, ValueError), match="op "):
        mh.eigsh(bad, 1)


def test_options_reach_the_monitor():
    from mindspore_hessian.tools.monitor import CurvatureMonitor

    monitor = CurvatureMonitor(
        BATCHES[:1], Several("dict"), SUM, options={"output": "out"}, metrics=("sharpness",)
    )
    close(monitor.measure(1).sharpness, np.linalg.eigvalsh(2 * X[:4].T @ X[:4])[-1], 1e-3)
