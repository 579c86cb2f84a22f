"""What the operators refuse, name, restore and resume."""

from __future__ import annotations

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, dataset, nn, ops
from test_operators import H, X, Y, batches, close, linear, pipeline, quick

import mindspore_hessian as mh
from mindspore_hessian import GGNOperator, HessianOperator, NonFiniteWarning, NotDeterministicError
from mindspore_hessian.operators.checks import _two_passes, symmetry_gap


class Dropped(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense, self.drop = linear(), nn.Dropout(p=0.5)

    def construct(self, x):
        return self.dense(self.drop(x))


class Normed(nn.Cell):
    def __init__(self):
        super().__init__()
        self.norm, self.dense = nn.BatchNorm1d(3), linear()

    def construct(self, x):
        return self.dense(self.norm(x) ** 2)


def noise(x):
    return (x + np.random.standard_normal(x.shape)).astype(np.float32)


def of(data, network=None):
    return HessianOperator(network or linear(), nn.MSELoss(), data)


# --- two passes -----------------------------------------------------------------------------------


def test_dropout_in_training_mode_is_named():
    net = Dropped()
    net.set_train(True)
    with pytest.raises(
        NotDeterministicError, match=r"Dropout is active in drop: call network.set_train\(False\)"
    ):
        of((X, Y), net)
    assert net.training and net.drop.training
    net.set_train(False)
    close(of((X, Y), net).to_dense(), H)


def test_random_augmentation_is_named():
    with pytest.raises(
        NotDeterministicError, match="The data differ: the pipeline augments at random"
    ):
        of(pipeline(augment=noise))


def test_a_shuffling_pipeline_that_matters_is_named():
    net, x = (
        Normed(),
        np.random.standard_normal((40, 3)).astype(np.float32),
    )  # two shuffles of 40 are never the same
    net.set_train(True)
    seed = dataset.config.get_seed()
    dataset.config.set_seed(
        5489
    )  # the default: other orders at each pass, where a seed of the user's repeats one
    try:
        with pytest.raises(
            NotDeterministicError,
            match="pipeline shuffles.*batch norm is in training.*norm.*shuffle",
        ):
            of(pipeline(shuffle=True, x=x, y=x[:, :1]), net)
    finally:
        dataset.config.set_seed(seed)


class Orders:
    """Passes over two batches, in the order that each is given."""

    def __init__(self, *orders):
        self.orders = iter(orders)

    def __iter__(self):
        return (
            SimpleNamespace(args=(batch,), kwargs={}, targets=()) for batch in next(self.orders)
        )


def test_a_shuffle_that_repeats_itself_by_chance_is_seen():
    a, b = Tensor([1.0]), Tensor([2.0])
    first, second = _two_passes(Orders((a, b), (a, b), (a, b), (b, a)))
    assert first == second[::-1] and first != second
    first, second = _two_passes(Orders(*((a, b) for _ in range(20))))
    assert first == second


def test_a_shuffling_pipeline_that_does_not_matter_is_fine():
    close(of(pipeline(shuffle=True)).to_dense(), H)


def test_a_function_with_a_state_is_refused():
    calls = Parameter(Tensor(0.0, ms.float32), name="calls", requires_grad=False)

    class Counting(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dense, self.calls = linear(), calls

        def construct(self, x):
            ops.assign_add(self.calls, Tensor(1.0, ms.float32))
            return self.dense(x) * (1 + self.calls)

    with pytest.raises(mh.NotCompilableError, match="keeps a state: .*'calls'"):
        of((X, Y), Counting())
    assert calls.asnumpy() == 0


def test_the_symmetry_gap_of_a_matrix():
    class Matrix(mh.Operator):
        def __init__(self, values):
            self.values, self.shape, self.dtype = values, values.shape, values.dtype

        def columns(self, matrix):
            return self.values @ matrix

    skew = np.array([[1.0, 2.0], [0.0, 1.0]])
    assert symmetry_gap(Matrix(skew @ skew.T)) < 1e-15
    assert symmetry_gap(Matrix(skew)) > 0.01


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [None, KeyboardInterrupt, ValueError])
def test_flags_statistics_and_random_numbers_are_as_before(interrupt):
    net = Normed()
    net.set_train(True)
    op = quick(batches(5, 3), net)
    before = {name: p.asnumpy().copy() for name, p in net.parameters_and_names()}
    np.random.seed(1)
    follows = np.random.random(3)
    np.random.seed(1)
    inner, count = op.risk.run, []

    def run(*args):
        count.append(1)
        out = inner(*args)
        if interrupt and len(count) > 1:
            raise interrupt
        return out

    op.risk.run = run
    if interrupt:
        with pytest.raises(interrupt):
            op @ np.ones(op.shape[0])
    else:
        op @ np.ones(op.shape[0])
    for name, p in net.parameters_and_names():
        np.testing.assert_array_equal(p.asnumpy(), before[name])
    assert net.training and net.norm.training
    np.testing.assert_array_equal(np.random.random(3), follows)


def cut_off(monkeypatch, op, vectors, path, after):
    """Ctrl-C in a product after so many runs of its kernel. A 1 for each of them, and a 2 for each
    run from then on.
    """
    monkeypatch.setattr(
        "mindspore_hessian.operators.progress.time.monotonic", iter(range(0, 10**6, 100)).__next__
    )
    inner, done = op.risk.run, []

    def run(*args):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(1)
        return inner(*args)

    op.risk.run = run
    with pytest.raises(KeyboardInterrupt):
        op.product(vectors, checkpoint=path)
    op.risk.run = lambda *args: done.append(2) or inner(*args)
    return done


def test_a_pass_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    op, path, vector = quick(batches(3, 3, 2)), tmp_path / "partial.npz", np.array([1.0, 2.0, 3.0])
    done = cut_off(monkeypatch, op, vector, path, 2)
    assert path.exists()
    with pytest.raises(ValueError, match="checkpoint .* is of another product"):
        op.product(2 * vector, checkpoint=path)
    close(op.product(vector, checkpoint=path), H @ vector)
    assert done == [1, 1, 2] and not path.exists()
    path.write_text("something else")
    with pytest.raises(ValueError, match="is no checkpoint of ours, or is damaged"):
        op.product(vector, checkpoint=path)


def test_a_matrix_goes_on_in_the_chunk_where_it_was_cut_off(tmp_path, monkeypatch):
    op, path, matrix = (
        quick(batches(3, 3, 2), chunk_size=2),
        tmp_path / "partial.npz",
        np.arange(9.0).reshape(3, 3),
    )
    done = cut_off(
        monkeypatch, op, matrix, path, 7
    )  # two columns for each of three batches, and one of the other
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "partial.npz.2"]
    close(op.product(matrix, checkpoint=path), H @ matrix)
    assert done == [1] * 7 + [2] * 2 and not any(tmp_path.iterdir())


def test_nan_is_named_with_its_batch_and_weights():
    data = batches(4, 4)
    bad = X[4:].copy()
    bad[2, 1] = np.nan
    op = quick([data[0], (Tensor(bad), data[1][1])])
    with pytest.warns(
        NonFiniteWarning, match="HessianOperator with batch 1 holds NaN or Inf, in .* of weight"
    ):
        op @ np.ones(3)


# --- refusals -------------------------------------------------------------------------------------


def generator():
    yield X, Y


LOSS = nn.MSELoss()
REFUSED = [
    (lambda: quick(generator()), TypeError, "iterator, which can be gone through once only.*list"),
    (lambda: quick([]), ValueError, "data is an empty list"),
    (
        lambda: quick(3),
        TypeError,
        "data must be a mindspore.dataset pipeline, a list of batches.*but got int",
    ),
    (
        lambda: quick([Tensor(X), Tensor(Y)]),
        ValueError,
        "list of Tensors, which could be one batch or many",
    ),
    (lambda: quick((X[:0], Y[:0])), ValueError, "batch 0 has no samples"),
    (lambda: quick([{"x": X, "z": Y}]), ValueError, r"columns \['x', 'z'\].*called one of label"),
    (
        lambda: quick((X, Y), weights="conv*"),
        ValueError,
        r"no trainable Parameter has a name like 'conv\*'.*weight",
    ),
    (
        lambda: quick((X, Y), weights=[Tensor(X)]),
        TypeError,
        r"weights\[0\] must be a Parameter, but got Tensor",
    ),
    (lambda: HessianOperator(lambda x: x.sum(), None, X), ValueError, "say which Parameters"),
    (
        lambda: HessianOperator(3, LOSS, X),
        TypeError,
        "network must be a Cell or a function, but got int",
    ),
    (
        lambda: HessianOperator(linear(), 3, X),
        TypeError,
        "loss_fn must be callable or None, but got int",
    ),
    (lambda: GGNOperator(linear(), None, X), ValueError, "GGNOperator needs loss_fn"),
    (
        lambda: quick((X, Y), block_diagonal="row"),
        ValueError,
        "block_diagonal must be one of 'layer', 'parameter'",
    ),
    (lambda: quick((X, Y), reduction="none"), ValueError, "reduction must be one of 'mean', 'sum'"),
    (lambda: quick((X, Y), num_data=0), ValueError, "num_data must be a positive int"),
    (lambda: quick((X, Y), micro_batch=-1), ValueError, "micro_batch must be a positive int"),
    (lambda: quick((X, Y), distributed=1), TypeError, "distributed must be a bool"),
    (lambda: quick((X, Y), distributed=True), mh.DistributedError, "has joined no job"),
    (
        lambda: quick((X, Y)) @ np.ones(4),
        ValueError,
        r"vectors of shape \(3,\) and matrices.*but got shape \(4,\)",
    ),
    (lambda: quick((X, Y)) @ np.ones(3, complex), TypeError, "real numbers, but got dtype complex"),
    (lambda: quick((X, Y)) @ [np.ones(3), np.ones(3)], ValueError, "holds 1 Tensors, but got 2"),
    (
        lambda: quick((X, Y)) @ [np.ones(3)],
        ValueError,
        r"weight 'weight' must have its shape \(1, 3\)",
    ),
    (lambda: quick((X, Y)) + quick((X, Y), nn.Dense(3, 2)), ValueError, "different shapes"),
    (
        lambda: quick((X, Y)).plan(columns=0),
        ValueError,
        "columns must be a positive int, but got 0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=range(len(REFUSED)))
def test_one_clear_error(call, error, message):
    with pytest.raises(error, match=message):
        call()
